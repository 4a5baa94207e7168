"""Q4_0: 32 values share an f16 scale; 4 bits each, centred on 8."""

import numpy as np

BLOCK_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # value = d * (q - 8)
assert BLOCK_Q4_0.itemsize == 18


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    q = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int8) - np.int8(8)
    return blocks["d"].astype(np.float32)[:, None] * q.astype(np.float32)
