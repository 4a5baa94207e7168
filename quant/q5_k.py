"""Q5_K: Q4_K with a fifth bit for each value, from a byte that 8 groups share."""

import numpy as np

from qllama.quant.q4_k import affine, nibbles

BLOCK_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
assert BLOCK_Q5_K.itemsize == 176  # value = d * scale * q - dmin * min


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    fifth = blocks["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n_blocks, 8, 32)
    return affine(blocks, nibbles(blocks) | fifth << 4)
