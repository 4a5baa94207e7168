"""The SIMD vocabulary: what kernels are written in. Importing it imports Numba."""

from qllama.simd.groups import *  # noqa: F403
from qllama.simd.lanes import *  # noqa: F403
from qllama.simd.machine import *  # noqa: F403
from qllama.simd.vocabulary import *  # noqa: F403
