"""The one ISA of this process. A new ISA is a file and a line here, a line in `qllama.cpu`, and its tile sizes."""

from qllama import cpu
from qllama.simd.avx2 import AVX2
from qllama.simd.avx512 import AVX512
from qllama.simd.avxvnni import AVXVNNI
from qllama.simd.generic import Generic
from qllama.simd.neon import NEON, NEONDot

TARGETS: dict[str, type[Generic]] = {
    "generic": Generic,
    "avx2": AVX2,
    "avxvnni": AVXVNNI,
    "avx512": AVX512,
    "neon": NEON,
    "neon-dotprod": NEONDot,
}

target = TARGETS[cpu.isa().name]
