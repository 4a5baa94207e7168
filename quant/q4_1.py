"""Q4_1: 32 values share an f16 scale and an f16 minimum; 4 bits each. Byte for byte what llama.cpp writes."""

import numpy as np

BLOCK_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])  # value = d * q + m
assert BLOCK_Q4_1.itemsize == 20


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    q = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,)."""
    d, m, q = fit(values, 15)
    blocks = np.empty(len(values), BLOCK_Q4_1)
    blocks["d"], blocks["m"] = d, m
    blocks["qs"] = q[:, :16] | q[:, 16:] << 4
    return blocks


def fit(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale (n_blocks,), minimum (n_blocks,) and quants 0..most (n_blocks, 32): the range of a block in equal steps."""
    low = np.take_along_axis(values, values.argmin(axis=1)[:, None], axis=1)  # the first: the sign of a zero counts
    high = np.take_along_axis(values, values.argmax(axis=1)[:, None], axis=1)
    d = (high - low) / np.float32(most)
    inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0  # no scale: d is 0, or so small that f16 has only 0 for it
    q = ((values - low) * inverse + np.float32(0.5)).astype(np.uint8)  # cuts off, and is never negative
    return d[:, 0], low[:, 0], np.minimum(q, most)
