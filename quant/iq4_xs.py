"""IQ4_XS: 256 values in 8 groups of 32; an f16 scale, a 6-bit scale per group, and the levels of IQ4_NL."""

import numpy as np

from qllama.quant.iq4_nl import LEVELS

BLOCK_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))])
assert BLOCK_IQ4_XS.itemsize == 136  # value = d * (scale - 32) * LEVELS[q]


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    scales = blocks["d"].astype(np.float32)[:, None] * _scales(blocks).astype(np.float32)  # (n_blocks, 8)
    qs = blocks["qs"]
    levels = LEVELS[np.concatenate([qs & 15, qs >> 4], axis=2)]  # (n_blocks, 8, 32)
    return (scales[:, :, None] * levels).reshape(-1, 256)


def _scales(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks, 8) int8: 4 low bits in nibbles, 2 high bits in a word for all groups."""
    low = np.stack([blocks["scales_l"] & 15, blocks["scales_l"] >> 4], axis=2).reshape(-1, 8)
    high = (blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    return (low | high << 4).astype(np.int8) - np.int8(32)
