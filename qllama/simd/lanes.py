"""What encoders need beyond the kernels' vocabulary: 16 blocks side by side, one per lane, rounded and packed."""

from llvmlite import ir
from numba import types

from qllama.simd.build import I64, addr, call, const, pointer, primitive, splat
from qllama.simd.generic import F32x16, I32x16
from qllama.simd.target import target
from qllama.simd.types import f32x16, i32x16, vector

i32 = types.int32
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer (ties to even) in the low mantissa bits


@primitive(f32x16, f32x16, f32x16)
def minimum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The smaller; y where x is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@primitive(f32x16, f32x16)
def sqrt(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return call(b, "llvm.sqrt.v16f32", F32x16, x)


@primitive(f32x16, f32x16)
def negative(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.fneg(x)


@primitive(f32x16, f32x16)
def nearest(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The nearest integer, ties to even; |x| < 2**22."""
    shift = const("f32", 16, _ROUND)
    return b.fsub(b.fadd(x, shift), shift)


@primitive(f32x16, f32x16)
def nearest_wrapped(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The same; an |x| beyond that wraps around as in llama.cpp, which reads the mantissa."""
    bits = b.bitcast(b.fadd(x, const("f32", 16, _ROUND)), I32x16)
    return b.sitofp(b.sub(b.and_(bits, const("i32", 16, 0x7FFFFF)), const("i32", 16, 0x400000)), F32x16)


@primitive(f32x16, f32x16)
def nearest_away(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The nearest integer, ties away from zero; |x| < 2**31."""
    whole = b.sitofp(b.fptosi(x, I32x16), F32x16)
    rest = b.fsub(x, whole)  # exact
    up = b.select(b.fcmp_ordered(">=", rest, const("f32", 16, 0.5)), const("f32", 16, 1.0), const("f32", 16, 0.0))
    down = b.select(b.fcmp_ordered("<=", rest, const("f32", 16, -0.5)), const("f32", 16, 1.0), const("f32", 16, 0.0))
    return b.fsub(b.fadd(whole, up), down)


@primitive(i32x16, f32x16)
def cut_i32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The integer part; 0 where there is none that fits, for the instruction's answer is not the same everywhere."""
    fits = b.fcmp_ordered("<", _absolute(b, x), const("f32", 16, 2.0**31))
    return b.fptosi(b.select(fits, x, const("f32", 16, 0.0)), I32x16)


def _absolute(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.bitcast(b.and_(b.bitcast(x, I32x16), const("i32", 16, 0x7FFFFFFF)), F32x16)


@primitive(i32x16, i32x16, i32x16)
def or_i32(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.or_(x, y)


@primitive(i32x16, i32x16, i32)
def shl_i32(b: ir.IRBuilder, x: ir.Value, n: ir.Value) -> ir.Value:
    return b.shl(x, splat(b, n, 16))


@primitive(i32x16, i32x16, i32)
def min_i32(b: ir.IRBuilder, x: ir.Value, most: ir.Value) -> ir.Value:
    most = splat(b, most, 16)
    return b.select(b.icmp_signed("<", x, most), x, most)


@primitive(i32x16, i32x16, f32x16)
def largest_bits(b: ir.IRBuilder, seen: ir.Value, x: ir.Value) -> ir.Value:
    """The larger of `seen` and the bits of |x|, which order as their values do; infinity and NaN are on top."""
    bits = b.and_(b.bitcast(x, I32x16), const("i32", 16, 0x7FFFFFFF))
    return b.select(b.icmp_signed(">", bits, seen), bits, seen)


@primitive(i32x16, f32x16)
def half_bits(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """float16, ties to even, as its 16 bits; what is too large becomes infinity."""
    return b.zext(target.to_half(b, x), I32x16)


@primitive(f32x16, i32x16)
def half_value(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return target.from_half(b, b.trunc(bits, vector("i16", 16)))


@primitive(types.void, addr, addr, addr, addr)
def transpose(b: ir.IRBuilder, src: ir.Value, ld_src: ir.Value, dst: ir.Value, ld_dst: ir.Value) -> None:
    """16 rows of 16 values of 32 bits, `ld_src` bytes apart, become the columns of 16 rows at `dst`.

    Four times, the upper and the lower half of the rows are interleaved, as cards are shuffled.
    """
    order = [ir.Constant(I32x16, [i // 2 + half + 16 * (i % 2) for i in range(16)]) for half in (0, 8)]
    at = [ir.Constant(I64, i) for i in range(16)]
    rows = [b.load(pointer(b, b.add(src, b.mul(ld_src, i)), I32x16), align=4) for i in at]
    for _ in range(4):
        rows = [b.shuffle_vector(rows[i], rows[i + 8], half) for i in range(8) for half in order]
    for i, row in zip(at, rows, strict=True):
        b.store(row, pointer(b, b.add(dst, b.mul(ld_dst, i)), I32x16), align=4)
