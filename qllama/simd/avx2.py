"""AVX2 with FMA and F16C (x86-64-v3)."""

from collections.abc import Callable

from llvmlite import ir

from qllama.simd.build import call, const
from qllama.simd.generic import F32x16, Generic
from qllama.simd.types import vector

I8x32, I16x16, I32x8 = vector("i8", 32), vector("i16", 16), vector("i32", 8)
LOW = const("i32", 16, 0xFFFF)


def by_halves(b: ir.IRBuilder, f: Callable[..., ir.Value], *values: ir.Value) -> ir.Value:
    """f on the lower and the upper half of each vector; the two results joined."""
    parts = []
    for side in (0, 1):
        halves = []
        for v in values:
            n = v.type.count // 2
            mask = ir.Constant(vector("i32", n), list(range(side * n, (side + 1) * n)))
            halves.append(b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask))
        parts.append(f(b, *halves))
    whole = vector("i32", 2 * parts[0].type.count)
    return b.shuffle_vector(*parts, ir.Constant(whole, list(range(whole.count))))


def _bytes(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Sums of two products. `vpmaddubsw` saturates at 16 bits: the operands' ranges must keep them below 2**15."""
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", I16x16, unsigned, signed)


def pairs(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Sums of two products of the int16 in <8 x i32>."""
    return call(b, "llvm.x86.avx2.pmadd.wd", I32x8, b.bitcast(x, I16x16), b.bitcast(y, I16x16))


def _quads(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Sums of four products."""
    return pairs(b, _bytes(b, unsigned, signed), ir.Constant(I16x16, [1] * 16))


def _signed_quads(b: ir.IRBuilder, w: ir.Value, x: ir.Value) -> ir.Value:
    """|w| times x with w's sign: |w| <= 128 and |x| <= 127, so that pairs stay below 2**15."""
    negative = b.icmp_signed("<", w, ir.Constant(I8x32, [0] * 32))
    magnitude = b.select(negative, b.neg(w), w)
    return _quads(b, magnitude, call(b, "llvm.x86.avx2.psign.b", I8x32, x, w))


class AVX2(Generic):
    """x86-64-v3: 16 registers of 256 bits, no int8 dot product."""

    @staticmethod
    def dot_small(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return b.add(acc, by_halves(b, _quads, w, x))

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return b.add(acc, by_halves(b, _signed_quads, w, x))

    @staticmethod
    def short(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """As the first of a pair of int16, to which `dot_short` adds: one multiplication scales and joins them."""
        return b.and_(x, LOW)

    @staticmethod
    def dot_short(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        total = b.add(b.bitcast(acc, vector("i16", 32)), by_halves(b, _bytes, w, x))
        return b.bitcast(total, acc.type)

    @staticmethod
    def mad_short(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        twice = b.or_(b.and_(y, LOW), b.shl(y, const("i32", 16, 16)))
        return b.add(acc, by_halves(b, pairs, x, twice))

    @staticmethod
    def lookup16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        def shuffle(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
            return call(b, "llvm.x86.avx2.pshuf.b", I8x32, table, index)

        return by_halves(b, shuffle, table, index)

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
        call(b, "llvm.x86.sse2.pause", ir.VoidType())
