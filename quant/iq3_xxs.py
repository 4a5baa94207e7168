"""IQ3_XXS: 256 values in 8 groups of 32; 4 at a time are one of 256 vectors, with signs of their own."""

import numpy as np

from qllama.grids import IQ3_XXS
from qllama.quant.iq2_xxs import word_of_signs

BLOCK_IQ3_XXS = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("signs", "<u4", 8)])  # `signs` as in IQ2_XXS
assert BLOCK_IQ3_XXS.itemsize == 98  # value = d * (2 * scale + 1) / 4 * sign * level

VECTORS = IQ3_XXS.levels[IQ3_XXS.digits].astype(np.float32)  # (256, 4)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    scale, signs = word_of_signs(blocks["signs"])
    d = blocks["d"].astype(np.float32)[:, None] * scale * np.float32(0.25)  # (n_blocks, 8)
    values = signs * VECTORS[blocks["qs"]].reshape(-1, 8, 4, 8)
    return (d[:, :, None, None] * values).reshape(-1, 256)
