"""Q8_K: 256 values share a float32 scale; a signed byte each. Made for activations, which `bsums` serves."""

import numpy as np

BLOCK_Q8_K = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])  # value = d * q
assert BLOCK_Q8_K.itemsize == 292


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)
