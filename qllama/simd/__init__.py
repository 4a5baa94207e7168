"""The SIMD vocabulary: what kernels are written in. Importing it imports Numba."""

from qllama.simd.vocabulary import *  # noqa: F403
