"""The encoders as kernels. Importing this imports Numba; only the process that compiles them does.

16 blocks are encoded at a time, one per lane, so that each lane does llama.cpp's operations in llama.cpp's order,
none fused: the bytes are the same.
"""

from qllama.quant.encoders import affine, iq, levels, plain, symmetric, ternary

__all__ = ["affine", "iq", "levels", "plain", "symmetric", "ternary"]
