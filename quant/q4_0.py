"""Q4_0: 32 values share an f16 scale; 4 bits each, centred on 8. Byte for byte what llama.cpp writes."""

import numpy as np

BLOCK_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # value = d * (q - 8)
assert BLOCK_Q4_0.itemsize == 18


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    q = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int8) - np.int8(8)
    return blocks["d"].astype(np.float32)[:, None] * q.astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,).

    The value of largest magnitude, whatever its sign, becomes -8: that end of the range is one step longer.
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    d = (largest + 0) / np.float32(-8)  # (n_blocks, 1) float32; + 0, for -0.0 counts as 0.0
    inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0  # no scale: d is 0, or so small that f16 has only 0 for it
    q = (values * inverse + np.float32(8.5)).astype(np.uint8)  # cuts off, and is never negative
    q = np.minimum(q, 15)
    blocks = np.empty(len(values), BLOCK_Q4_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = q[:, :16] | q[:, 16:] << 4
    return blocks
