"""AVX2 with VNNI (Alder Lake and later, Zen 5): AVX-512's int8 dot product at 256 bits."""

from llvmlite import ir

from qllama.simd.avx2 import AVX2, LOW, I32x8, by_halves, pairs
from qllama.simd.build import call
from qllama.simd.generic import Generic


class AVXVNNI(AVX2):
    """16 registers of 256 bits; `vpdpbusd` multiplies unsigned by signed, so 8-bit weights carry a bias."""

    BIAS8 = 128

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return by_halves(b, lambda b, *v: call(b, "llvm.x86.avx512.vpdpbusd.256", I32x8, *v), acc, w, x)

    dot_small = dot_short = dot_8
    short = Generic.short

    @staticmethod
    def mad_short(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """With the addition LLVM makes one instruction of it, `vpdpwssd`."""
        return b.add(acc, by_halves(b, pairs, x, b.and_(y, LOW)))
