"""Q2_0: 64 values share an f16 scale; 2 bits each, for -1, 0, 1 and 2 scales. Byte for byte what llama.cpp writes."""

import numpy as np

from qllama.quant.tq2_0 import whole

BLOCK_Q2_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # value = d * (q - 1)
assert BLOCK_Q2_0.itemsize == 18

SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 64) float32."""
    q = (blocks["qs"][:, :, None] >> SHIFTS & 3).reshape(-1, 64)
    return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - np.float32(1))


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 64) float32 -> (n_blocks,). The scale is the largest magnitude, so that 2 is never used."""
    d, q = whole(values)
    blocks = np.empty(len(values), BLOCK_Q2_0)
    blocks["d"] = d
    blocks["qs"] = np.bitwise_or.reduce(q.reshape(-1, 16, 4) << SHIFTS, axis=2)
    return blocks
