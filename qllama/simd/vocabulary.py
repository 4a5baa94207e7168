"""The vocabulary in plain LLVM IR: what every machine does alike. What differs is `target`'s."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qllama.simd.build import (
    I32,
    I64,
    addr,
    const,
    load_splat,
    offset,
    pointer,
    primitive,
    splat,
    tile_primitive,
)
from qllama.simd.generic import one_half
from qllama.simd.target import target
from qllama.simd.types import LANE, LOWER, UPPER, Tile, f32x16, i8x64, i32x16, vector

i32, i64, f32 = types.int32, types.int64, types.float32
F32x16, I32x16 = vector("f32", 16), vector("i32", 16)
tile_f32, tile_i32 = Tile(f32x16, 0), Tile(i32x16, 0)  # any number of tokens: the 0 is not looked at

# ---- memory: scalars. Addresses are int64; alignment is never assumed beyond the scalar's own.


def _scalar_load(lane: ir.Type, ret: Any) -> Any:
    def load(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
        return b.load(pointer(b, a, lane), align=1)

    return primitive(ret, addr)(load)


load_i64 = _scalar_load(I64, i64)
load_i32 = _scalar_load(I32, i32)
load_f32 = _scalar_load(LANE["f32"], f32)
load_f64 = _scalar_load(LANE["f64"], types.float64)
load_u8 = _scalar_load(LANE["i8"], types.uint8)
load_u16 = _scalar_load(LANE["i16"], types.uint16)


def _store(lane: ir.Type, value: Any) -> Any:
    def store(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> None:
        b.store(v, pointer(b, a, lane), align=1)

    return primitive(types.void, addr, value)(store)


store_i64 = _store(I64, i64)
store_i32 = _store(I32, i32)
store_f32 = _store(LANE["f32"], f32)
store_u8 = _store(LANE["i8"], types.uint8)
store_u16 = _store(LANE["i16"], types.uint16)

# ---- memory: vectors

load_i8x64 = _scalar_load(vector("i8", 64), i8x64)
load_i32x16 = _scalar_load(I32x16, i32x16)
load_f32x16 = _scalar_load(F32x16, f32x16)
store_i8x64 = _store(vector("i8", 64), i8x64)
store_i32x16 = _store(I32x16, i32x16)
store_f32x16 = _store(F32x16, f32x16)


@primitive(f32x16, addr)
def load_f16x16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 float16 at `a`, widened."""
    return target.from_half(b, b.load(pointer(b, a, vector("i16", 16)), align=2))


def _finite_half(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """16 float32 to float16, ties to even; what is too large becomes the largest, not infinity."""
    most, least = const("f32", 16, 65504.0), const("f32", 16, -65504.0)
    v = b.select(b.fcmp_ordered(">", v, most), most, v)
    return target.to_half(b, b.select(b.fcmp_ordered("<", v, least), least, v))


@primitive(types.void, addr, f32x16)
def store_f16x16(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> None:
    """16 float32 rounded to float16 and held within its range: infinity times a weight of zero would be NaN."""
    b.store(_finite_half(b, v), pointer(b, a, vector("i16", 16)), align=2)


@primitive(f32, addr)
def load_f16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    return one_half(b, target, b.load(pointer(b, a, LANE["i16"]), align=2))


@primitive(f32x16, addr)
def load_bf16x16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 bfloat16 at `a`, widened: they are the upper halves of float32."""
    half = b.load(pointer(b, a, vector("i16", 16)), align=2)
    wide = b.shl(b.zext(half, I32x16), const("i32", 16, 16))
    return b.bitcast(wide, F32x16)


@primitive(types.void, addr, f32)
def store_f16(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> None:
    half = b.extract_element(_finite_half(b, splat(b, v, 16)), ir.Constant(I32, 0))
    b.store(half, pointer(b, a, LANE["i16"]), align=2)


@primitive(f32, addr)
def load_bf16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """The bfloat16 at `a`."""
    half = b.zext(b.load(pointer(b, a, LANE["i16"]), align=2), I32)
    return b.bitcast(b.shl(half, ir.Constant(I32, 16)), LANE["f32"])


@primitive(types.void, addr, i32x16)
def store_i8x16(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> None:
    """The low bytes of 16 int32."""
    b.store(b.trunc(v, vector("i8", 16)), pointer(b, a, vector("i8", 16)), align=1)


@primitive(f32x16, addr)
def load_i8x16_f32(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 signed bytes at `a` as float32."""
    return target.i8_to_f32(b, b.load(pointer(b, a, vector("i8", 16)), align=1))


@primitive(types.void, addr)
def prefetch(b: ir.IRBuilder, a: ir.Value) -> None:
    """Ask the second-level cache for the line at `a`, which need not exist."""
    byte = b.inttoptr(a, ir.IntType(8).as_pointer())
    flags = [ir.Constant(I32, v) for v in (0, 2, 1)]  # to read, to the second level, data
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [byte.type, I32, I32, I32]), "llvm.prefetch.p0"
    )
    b.call(function, [byte, *flags])


def _half_e8m0(b: ir.IRBuilder, e: ir.Value) -> ir.Value:
    """2**(e - 128), exactly: the first two are subnormal."""
    small = b.shl(b.add(e, const("i32", 16, 1)), const("i32", 16, 21))
    normal = b.shl(b.sub(e, const("i32", 16, 1)), const("i32", 16, 23))
    return b.bitcast(b.select(b.icmp_signed("<", e, const("i32", 16, 2)), small, normal), F32x16)


@primitive(f32x16, addr)
def load_e8m0x16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 exponents (E8M0 bytes) at `a`, as half the powers of two that they stand for."""
    v = b.load(pointer(b, a, vector("i8", 16)), align=1)
    return _half_e8m0(b, b.zext(v, I32x16))


@primitive(f32, addr)
def load_e8m0(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    e = b.zext(b.load(pointer(b, a, LANE["i8"]), align=1), I32)
    return b.extract_element(_half_e8m0(b, splat(b, e, 16)), ir.Constant(I32, 0))


def _half_e4m3(b: ir.IRBuilder, e: ir.Value) -> ir.Value:
    """Half of an unsigned E4M3: as the top of a float32 it is too small by a power of two, subnormal or not."""
    return b.fmul(b.bitcast(b.shl(e, const("i32", 16, 20)), F32x16), const("f32", 16, 2.0**119))


@primitive(f32x16, addr)
def load_e4m3x16(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 scales (bytes of E4M3 without a sign; there is no NaN) at `a`, halved."""
    v = b.load(pointer(b, a, vector("i8", 16)), align=1)
    return _half_e4m3(b, b.zext(v, I32x16))


@primitive(f32, addr)
def load_e4m3(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    e = b.zext(b.load(pointer(b, a, LANE["i8"]), align=1), I32)
    return b.extract_element(_half_e4m3(b, splat(b, e, 16)), ir.Constant(I32, 0))


@primitive(f32x16, f32)
def splat_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return splat(b, x, 16)


# ---- arithmetic, lane by lane. IEEE, never reassociated.


@primitive(f32x16, f32x16, f32x16)
def add(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.fadd(x, y)


@primitive(f32x16, f32x16, f32x16)
def sub(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.fsub(x, y)


@primitive(f32x16, f32x16, f32x16)
def mul(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.fmul(x, y)


@primitive(f32x16, f32x16, f32x16)
def div(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.fdiv(x, y)


@primitive(f32x16, f32x16, f32x16, f32x16)
def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x * y + z, rounded once."""
    return target.fma(b, x, y, z)


@primitive(f32x16, f32x16, f32x16)
def maximum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The larger; y where x is NaN (what the x86 instruction does, so it is written as one compare)."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@primitive(f32x16, f32x16)
def absolute(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    bits = b.and_(b.bitcast(x, I32x16), const("i32", 16, 0x7FFFFFFF))
    return b.bitcast(bits, F32x16)


@primitive(f32x16, f32x16, f32x16, f32x16, f32x16)
def select_lt(b: ir.IRBuilder, x: ir.Value, y: ir.Value, then: ir.Value, other: ir.Value) -> ir.Value:
    """`then` where x < y, else `other`."""
    return b.select(b.fcmp_ordered("<", x, y), then, other)


@primitive(f32x16, i32x16, i32, f32x16, f32x16)
def select_below(b: ir.IRBuilder, x: ir.Value, limit: ir.Value, then: ir.Value, other: ir.Value) -> ir.Value:
    """`then` in the lanes where the integer x < limit, else `other`."""
    return b.select(b.icmp_signed("<", x, splat(b, limit, 16)), then, other)


@primitive(i32x16)
def lane_ids(b: ir.IRBuilder) -> ir.Value:
    """0, 1, ..., 15."""
    return ir.Constant(I32x16, list(range(16)))


@primitive(f32x16, i32x16)
def to_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.sitofp(x, F32x16)


_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer (ties to even) in the low mantissa bits


@primitive(i32x16, f32x16)
def round_i32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The nearest integer, ties to even; |x| < 2**22."""
    shifted = b.fadd(x, const("f32", 16, _ROUND))
    return b.sub(b.bitcast(shifted, I32x16), const("i32", 16, 0x4B400000))


@primitive(f32x16, f32x16, i32x16)
def scale_pow2(b: ir.IRBuilder, x: ir.Value, n: ir.Value) -> ir.Value:
    """x * 2**n for -126 <= n <= 127."""
    power = b.shl(b.add(n, const("i32", 16, 127)), const("i32", 16, 23))
    return b.fmul(x, b.bitcast(power, F32x16))


# ---- 4-bit halves of bytes


@primitive(i8x64, i8x64)
def low_nibbles(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.and_(v, const("i8", 64, 15))


@primitive(i8x64, i8x64)
def high_nibbles(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.and_(target.shift_bytes(b, v, ir.Constant(LANE["i8"], 4)), const("i8", 64, 15))


@primitive(i8x64, i8x64, i64, i64)
def field(b: ir.IRBuilder, v: ir.Value, n: ir.Value, mask: ir.Value) -> ir.Value:
    """Each byte shifted right by n, of that the bits in `mask`: 0 .. 255 >> n."""
    return b.and_(target.shift_bytes(b, v, b.trunc(n, LANE["i8"])), splat(b, b.trunc(mask, LANE["i8"]), 64))


def code_book(table: list[int]) -> Any:
    """A primitive that looks up 64 indices 0..15 in `table`, 16 integers of 8 bits."""
    bytes_ = ir.Constant(vector("i8", 64), [value % 256 for value in table] * 4)

    def lookup(b: ir.IRBuilder, index: ir.Value) -> ir.Value:
        return target.lookup16(b, bytes_, index)

    return primitive(i8x64, i8x64)(lookup)


@primitive(i8x64, i8x64, i8x64)
def look_up(b: ir.IRBuilder, book: ir.Value, index: ir.Value) -> ir.Value:
    """The same in a book that is not known before: its 16 bytes, four times over."""
    return target.lookup16(b, book, index)


@primitive(i8x64, i8x64, i8x64)
def or_i8(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.or_(x, y)


# ---- across lanes: a fixed tree, so that the order of the sum never depends on the machine


def _halve(b: ir.IRBuilder, x: ir.Value, n: int) -> tuple[ir.Value, ir.Value]:
    undef = ir.Constant(x.type, ir.Undefined)
    index = ir.VectorType(I32, n // 2)
    low = b.shuffle_vector(x, undef, ir.Constant(index, list(range(n // 2))))
    high = b.shuffle_vector(x, undef, ir.Constant(index, list(range(n // 2, n))))
    return low, high


def _tree(b: ir.IRBuilder, x: ir.Value, join: Any) -> ir.Value:
    for n in (16, 8, 4, 2):
        x = join(*_halve(b, x, n))
    return b.extract_element(x, ir.Constant(I32, 0))


@primitive(f32, f32x16)
def sum_lanes(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Lane i + lane i+8, then +4, +2, +1."""
    return _tree(b, x, b.fadd)


@primitive(f32, f32x16)
def max_lanes(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _tree(b, x, lambda low, high: b.select(b.fcmp_ordered(">", low, high), low, high))


@primitive(i64, i32x16, i32x16)
def sum_bytes(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The sum of x's lanes in the lower 32 bits, that of y's in the upper; lanes are -127..127.

    A dot product with ones adds four lanes at a time.
    """
    i8x16 = vector("i8", 16)
    both = b.shuffle_vector(b.trunc(x, i8x16), b.trunc(y, i8x16), ir.Constant(vector("i32", 32), list(range(32))))
    wide = b.shuffle_vector(both, ir.Constant(both.type, [0] * 32), ir.Constant(vector("i32", 64), list(range(64))))
    quads = target.dot_small(b, const("i32", 16, 0), const("i8", 64, 1), wide)
    for swap in (2, 1):
        order = ir.Constant(I32x16, [i ^ swap for i in range(16)])
        quads = b.add(quads, b.shuffle_vector(quads, ir.Constant(I32x16, ir.Undefined), order))
    low = b.zext(b.extract_element(quads, ir.Constant(I32, 0)), I64)
    high = b.zext(b.extract_element(quads, ir.Constant(I32, 4)), I64)
    return b.or_(low, b.shl(high, ir.Constant(I64, 32)))


# ---- tiles: t vectors, one per token; `base + i * stride` is where token i's scalar is


@intrinsic(prefer_literal=True)
def tile(_context: Any, t: Any) -> Any:
    """A float32 tile of `t` (a literal) zero vectors."""
    if not isinstance(t, types.IntegerLiteral):
        return None
    ret = Tile(f32x16, t.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(ir.ArrayType(F32x16, ret.t), None)

    return ret(t), generate


def _of_half(half: int) -> Any:
    def only(_context: Any, like: Any) -> Any:
        return Tile(like.vec, like.t, half)(like), lambda _c, _b, _s, values: values[0]

    return intrinsic(only)


# A tile of one half of a panel, from one of both. Only its rows are stored, so LLVM drops what computes the others.
lower_half, upper_half = _of_half(LOWER), _of_half(UPPER)


@intrinsic
def half_of(_context: Any, like: Any) -> Any:
    """LOWER or UPPER, the rows that are wanted of a tile, or BOTH."""
    return i64(like), lambda _c, _b, _s, _v: ir.Constant(I64, like.half)


@intrinsic
def tokens_of(_context: Any, like: Any) -> Any:
    """The number of tokens of a tile."""
    return i64(like), lambda _c, _b, _s, _v: ir.Constant(I64, like.t)


def array_of(b: ir.IRBuilder, values: list[ir.Value]) -> ir.Value:
    out = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for i, v in enumerate(values):
        out = b.insert_value(out, v, i)
    return out


@tile_primitive
def tile_splat_i32(b, t, _like: tile_f32, base: addr, stride: addr) -> tile_i32:
    """An int32 tile: each token's scalar in all lanes."""
    return array_of(b, [load_splat(b, offset(b, base, stride, i), I32, 16) for i in range(t)])


@tile_primitive
def tile_zero_i32(b, t, _like: tile_f32) -> tile_i32:
    return ir.Constant(ir.ArrayType(I32x16, t), None)


@tile_primitive
def tile_shl(b, t, x: tile_i32, n: i32) -> tile_i32:
    return array_of(b, [b.shl(b.extract_value(x, i), splat(b, n, 16)) for i in range(t)])


@tile_primitive
def tile_sub_i32(b, t, x: tile_i32, y: tile_i32) -> tile_i32:
    return array_of(b, [b.sub(b.extract_value(x, i), b.extract_value(y, i)) for i in range(t)])


def four_activations(b: ir.IRBuilder, base: ir.Value, stride: ir.Value, i: int) -> ir.Value:
    """Token i's next four int8 activations, repeated for the 16 rows of a vector of weights."""
    return target.load_four(b, offset(b, base, stride, i))


@tile_primitive
def tile_dot_small(b, t, acc: tile_i32, w: i8x64, base: addr, stride: addr) -> tile_i32:
    """acc + w . activations for 16 rows x 4 columns; weights 0..127."""
    return array_of(
        b,
        [target.dot_small(b, b.extract_value(acc, i), w, four_activations(b, base, stride, i)) for i in range(t)],
    )


@tile_primitive
def tile_dot_8(b, t, acc: tile_i32, w: i8x64, base: addr, stride: addr) -> tile_i32:
    """The same for 8-bit weights stored with the target's bias."""
    return array_of(
        b, [target.dot_8(b, b.extract_value(acc, i), w, four_activations(b, base, stride, i)) for i in range(t)]
    )


@tile_primitive
def tile_scale(b, t, total: tile_f32, acc: tile_i32, d: f32x16, base: addr, stride: addr) -> tile_f32:
    """total + acc * (d * the token's scale): the one float operation of a block."""
    out = []
    for i in range(t):
        scale = b.fmul(d, load_splat(b, offset(b, base, stride, i), LANE["f32"], 16))
        out.append(target.fma(b, b.sitofp(b.extract_value(acc, i), F32x16), scale, b.extract_value(total, i)))
    return array_of(b, out)


@tile_primitive
def tile_scale_pair(
    b, t, total: tile_f32, acc: tile_i32, d: f32x16, other: tile_i32, d_other: f32x16, base: addr, stride: addr
) -> tile_f32:
    """total + (acc * d + other * d_other) * the token's scale: two sums of one block of activations."""
    out = []
    for i in range(t):
        first = b.fmul(b.sitofp(b.extract_value(acc, i), F32x16), d)
        both = target.fma(b, b.sitofp(b.extract_value(other, i), F32x16), d_other, first)
        scale = load_splat(b, offset(b, base, stride, i), LANE["f32"], 16)
        out.append(target.fma(b, both, scale, b.extract_value(total, i)))
    return array_of(b, out)


@tile_primitive
def tile_fma(b, t, total: tile_f32, v: f32x16, base: addr, stride: addr) -> tile_f32:
    """total + v * the token's scalar."""
    out = []
    for i in range(t):
        x = load_splat(b, offset(b, base, stride, i), LANE["f32"], 16)
        out.append(target.fma(b, v, x, b.extract_value(total, i)))
    return array_of(b, out)


@tile_primitive
def tile_store(b, t, x: tile_f32, base: addr, stride: addr) -> types.void:
    for i in range(t):
        b.store(b.extract_value(x, i), pointer(b, offset(b, base, stride, i), F32x16), align=4)


@tile_primitive
def tile_add_to(b, t, x: tile_f32, base: addr, stride: addr) -> types.void:
    """Add each token's vector to the 16 floats at its address."""
    for i in range(t):
        p = pointer(b, offset(b, base, stride, i), F32x16)
        b.store(b.fadd(b.load(p, align=4), b.extract_value(x, i)), p, align=4)


# What 8-bit weights are stored with: added when they are packed, taken off through the sums of the activations.
BIAS8 = target.BIAS8
