"""Q8_1: 32 values share an f16 scale; a signed byte each. Made for activations, which `s` = d * sum(qs) serves."""

import numpy as np

BLOCK_Q8_1 = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])  # value = d * q
assert BLOCK_Q8_1.itemsize == 36


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)
