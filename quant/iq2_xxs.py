"""IQ2_XXS: 256 values in 8 groups of 32; 8 at a time are one of 256 vectors, with signs of their own.

A group is two words: four codes, and four signs of 7 bits with a 4-bit scale above them.
"""

import numpy as np

from qllama.grids import IQ2_XXS

BLOCK_IQ2_XXS = np.dtype([("d", "<f2"), ("groups", [("codes", "u1", 4), ("signs", "<u4")], 8)])
assert BLOCK_IQ2_XXS.itemsize == 66  # value = d * (2 * scale + 1) / 8 * sign * level

VECTORS = IQ2_XXS.levels[IQ2_XXS.digits].astype(np.float32)  # (256, 8)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    groups = blocks["groups"]
    scale, signs = word_of_signs(groups["signs"])
    d = blocks["d"].astype(np.float32)[:, None] * scale * np.float32(0.125)  # (n_blocks, 8)
    return (d[:, :, None, None] * (signs * VECTORS[groups["codes"]])).reshape(-1, 256)


def word_of_signs(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n_blocks, 8) uint32: 2 * scale + 1 (n_blocks, 8), and signs (n_blocks, 8, 4, 8), both float32."""
    seven = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return (2 * (words >> 28) + 1).astype(np.float32), signs_of(with_parity(seven.astype(np.uint8)))


def with_parity(seven: np.ndarray) -> np.ndarray:
    """Seven signs to eight: the last makes the number of minuses even. uint8 to uint8."""
    odd = seven ^ seven >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    return seven | odd << 7


def signs_of(bits: np.ndarray) -> np.ndarray:
    """(...) uint8 -> (..., 8) float32: -1 where the bit is set, the lowest first."""
    minus = np.unpackbits(bits[..., None], axis=-1, bitorder="little")
    return np.float32(1) - 2 * minus.astype(np.float32)
