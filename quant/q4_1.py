"""Q4_1: 32 values share an f16 scale and an f16 minimum; 4 bits each."""

import numpy as np

BLOCK_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])  # value = d * q + m
assert BLOCK_Q4_1.itemsize == 20


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    q = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]
