"""AVX2 with VNNI (Alder Lake and later, Zen 5): AVX-512's int8 dot product at 256 bits."""

from llvmlite import ir

from qllama.simd.avx2 import AVX2, I32x8, by_halves
from qllama.simd.build import call


class AVXVNNI(AVX2):
    """16 registers of 256 bits; `vpdpbusd` multiplies unsigned by signed, so 8-bit weights carry a bias."""

    BIAS8 = 128

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return by_halves(b, lambda b, *v: call(b, "llvm.x86.avx512.vpdpbusd.256", I32x8, *v), acc, w, x)

    dot_small = dot_8
