"""IQ1_M: 256 values in 16 groups of 16; 8 at a time are one of IQ1_S's vectors, each shifted by 1/8.

There is no field for the f16 scale: its four nibbles are the top ones of the words of `scales`, the lowest first. Below
them a word has the 3-bit scales of four groups. A nibble of `qh` is of one vector: bits 8-10 of its code, and whether
it is shifted down.
"""

import numpy as np

from qllama.quant.iq1_s import SHIFT, VECTORS

BLOCK_IQ1_M = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)])
assert BLOCK_IQ1_M.itemsize == 56  # value = d * (2 * scale + 1) * (level + shift)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    qh = np.stack([blocks["qh"] & 15, blocks["qh"] >> 4], axis=2).reshape(-1, 32)
    values = VECTORS[blocks["qs"] | (qh & 7).astype(np.uint16) << 8]  # (n_blocks, 32, 8)
    values = values + np.where(qh & 8, -SHIFT, SHIFT)[:, :, None]
    scale = (blocks["scales"][:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    d = _scale(blocks["scales"])[:, None] * (2 * scale + 1).astype(np.float32)
    return (d[:, :, None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


def _scale(words: np.ndarray) -> np.ndarray:
    """(n_blocks, 4) uint16 -> (n_blocks,) float32."""
    nibbles = (words >> 12) << np.array([0, 4, 8, 12], np.uint16)
    return np.bitwise_or.reduce(nibbles, axis=1).astype("<u2").view("<f2").astype(np.float32)
