"""Q8_0: 32 values share an f16 scale; a signed byte each."""

import numpy as np

BLOCK_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])  # value = d * q
assert BLOCK_Q8_0.itemsize == 34


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)
