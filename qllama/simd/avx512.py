"""AVX-512 with VNNI (Ice Lake, Zen 4 and later)."""

from llvmlite import ir

from qllama.simd.avx2 import AVX2
from qllama.simd.build import call


class AVX512(AVX2):
    """32 registers of 512 bits; `vpdpbusd` multiplies unsigned by signed, so 8-bit weights carry a bias."""

    BIAS8 = 128

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, w, x)

    dot_small = dot_8

    @staticmethod
    def lookup16(b: ir.IRBuilder, table: list[int], index: ir.Value) -> ir.Value:
        return call(b, "llvm.x86.avx512.pshuf.b.512", index.type, ir.Constant(index.type, table * 4), index)
