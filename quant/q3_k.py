"""Q3_K: 256 values in 16 groups of 16; a 6-bit scale per group, 3 bits per value."""

import numpy as np

from qllama.quant.q2_k import low_bits

BLOCK_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
assert BLOCK_Q3_K.itemsize == 110  # value = d * (scale - 32) * (q - 4)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    scale = _scales(blocks["scales"]).astype(np.float32) - np.float32(32)
    high = blocks["hmask"][:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n_blocks, 8, 32)
    q = low_bits(blocks["qs"]).reshape(-1, 8, 32) | high << 2
    q = q.reshape(-1, 16, 16).astype(np.float32) - np.float32(4)
    d = blocks["d"].astype(np.float32)[:, None] * scale  # (n_blocks, 16)
    return (d[:, :, None] * q).reshape(-1, 256)


def _scales(packed: np.ndarray) -> np.ndarray:
    """(n_blocks, 12) -> (n_blocks, 16) uint8, 0 .. 63.

    The first 8 bytes have the low 4 bits of scales 0-7 and 8-15; byte 8 + i the high 2 bits of scales i, 4 + i, ...
    """
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3  # (n_blocks, 4, 4)
    return low | high.reshape(-1, 16) << 4
