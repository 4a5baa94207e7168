"""ARM's Advanced SIMD: base ARMv8, and with the int8 dot product (`sdot`).

The int8 matrix product (`smmla`, FEAT_I8MM) is not used: it takes 8 columns of 2 rows at a time, and a packed vector
has 4 columns of 16 rows. Shuffles that bring 8 columns of a row together cost what it saves (benchmarks/README.md).
"""

from collections.abc import Callable

from llvmlite import ir

from qllama.simd.build import I32, call, pointer, splat
from qllama.simd.generic import F32x16, Generic
from qllama.simd.types import vector

I8x16, I16x8, I32x4 = vector("i8", 16), vector("i16", 8), vector("i32", 4)


def part(b: ir.IRBuilder, v: ir.Value, i: int, n: int) -> ir.Value:
    """Part i of the n equal parts of a vector."""
    width = v.type.count // n
    mask = ir.Constant(vector("i32", width), list(range(i * width, (i + 1) * width)))
    return b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask)


def join(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    while len(parts) > 1:
        both = ir.Constant(vector("i32", 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(x, y, both) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def by_quarters(b: ir.IRBuilder, f: Callable[..., ir.Value], *values: ir.Value) -> ir.Value:
    """f on the 128-bit quarters of each vector; the four results joined."""
    return join(b, [f(b, *(part(b, v, i, 4) for v in values)) for i in range(4)])


def _hidden(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The vector, of which LLVM no longer knows where it comes from: a piece of assembly without an instruction."""
    return b.asm(ir.FunctionType(v.type, [v.type]), "", "=w,0", [v], side_effect=False)


def _quads(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc plus sums of four products, without the dot product. Sums of two fit 16 bits: 2 * 128 * 127 < 2**15."""
    low, high = (
        call(b, "llvm.aarch64.neon.smull.v8i16", I16x8, part(b, w, side, 2), part(b, x, side, 2)) for side in (0, 1)
    )
    pairs = call(b, "llvm.aarch64.neon.addp.v8i16", I16x8, low, high)
    return b.add(acc, call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", I32x4, pairs))


class NEON(Generic):
    """Base ARMv8: 32 registers of 128 bits; 8-bit products are signed by signed, so weights carry no bias."""

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return by_quarters(b, _quads, acc, w, x)

    dot_small = dot_short = dot_8

    @staticmethod
    def shift_bytes(b: ir.IRBuilder, v: ir.Value, n: ir.Value) -> ir.Value:
        return b.lshr(v, splat(b, n, 64))

    @staticmethod
    def lookup16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        def look_up(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
            return call(b, "llvm.aarch64.neon.tbl1.v16i8", I8x16, table, index)

        return by_quarters(b, look_up, table, index)

    @staticmethod
    def i8_to_f32(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
        """By way of int16: left to itself, LLVM takes four instructions for what two widen."""
        halves = [_hidden(b, b.sext(part(b, v, side, 2), I16x8)) for side in (0, 1)]
        return join(
            b, [b.sitofp(b.sext(part(b, h, side, 2), I32x4), vector("f32", 4)) for h in halves for side in (0, 1)]
        )

    @staticmethod
    def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return call(b, "llvm.fma.v16f32", F32x16, x, y, z)

    @staticmethod
    def from_half(b: ir.IRBuilder, h: ir.Value) -> ir.Value:
        return b.fpext(b.bitcast(h, ir.VectorType(ir.HalfType(), 16)), F32x16)

    @staticmethod
    def to_half(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
        return b.bitcast(b.fptrunc(v, ir.VectorType(ir.HalfType(), 16)), vector("i16", 16))

    @staticmethod
    def pause(b: ir.IRBuilder) -> None:
        """ISB: some ten cycles, as x86's pause. YIELD does nothing on cores with one hardware thread."""
        call(b, "llvm.aarch64.isb", ir.VoidType(), ir.Constant(I32, 15))


def _sdot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32x4, acc, w, x)


class NEONDot(NEON):
    """With FEAT_DotProd (Cortex-A76, Neoverse N1, Apple M1 and later)."""

    @staticmethod
    def load_four(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Into one lane, which `sdot` repeats by itself.

        LLVM would rather load them into all lanes, which takes an instruction more for the address, and a slot of the
        units that multiply.
        """
        four = b.load(pointer(b, address, I32), align=1)
        lane = b.insert_element(ir.Constant(I32x4, ir.Undefined), four, ir.Constant(I32, 0))
        lane = _hidden(b, lane)
        return b.bitcast(b.shuffle_vector(lane, lane, ir.Constant(vector("i32", 16), [0] * 16)), vector("i8", 64))

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return by_quarters(b, _sdot, acc, w, x)

    dot_small = dot_short = dot_8
