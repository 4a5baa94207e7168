"""AVX-512 with VNNI (Ice Lake, Zen 4 and later)."""

from llvmlite import ir

from qllama.simd.avx2 import AVX2, LOW
from qllama.simd.build import call
from qllama.simd.generic import Generic
from qllama.simd.types import vector


class AVX512(AVX2):
    """32 registers of 512 bits; `vpdpbusd` multiplies unsigned by signed, so 8-bit weights carry a bias."""

    BIAS8 = 128

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        return call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, w, x)

    dot_small = dot_short = dot_8
    short = Generic.short

    @staticmethod
    def mad_short(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """With the addition LLVM makes one instruction of it, `vpdpwssd`."""
        x, y = b.bitcast(x, vector("i16", 32)), b.bitcast(b.and_(y, LOW), vector("i16", 32))
        return b.add(acc, call(b, "llvm.x86.avx512.pmaddw.d.512", acc.type, x, y))

    @staticmethod
    def lookup16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        return call(b, "llvm.x86.avx512.pshuf.b.512", index.type, table, index)
