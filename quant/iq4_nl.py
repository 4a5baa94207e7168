"""IQ4_NL: 32 values share an f16 scale; 4 bits each, an index into 16 levels that lie closer around zero."""

import numpy as np

BLOCK_IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # value = d * LEVELS[q]
assert BLOCK_IQ4_NL.itemsize == 18

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    return blocks["d"].astype(np.float32)[:, None] * LEVELS[np.concatenate([qs & 15, qs >> 4], axis=1)]
