"""Q5_1: 32 values share an f16 scale and an f16 minimum; 5 bits each."""

import numpy as np

from qllama.quant.q5_0 import unpack

BLOCK_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])  # value = d * q + m
assert BLOCK_Q5_1.itemsize == 24


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    q = unpack(blocks).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]
