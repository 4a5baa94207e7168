"""Q8_0: 32 values share an f16 scale; a signed byte each. Byte for byte what llama.cpp writes."""

import numpy as np

BLOCK_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])  # value = d * q
assert BLOCK_Q8_0.itemsize == 34


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    return blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,). The largest magnitude becomes 127; ties round away from zero."""
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)  # (n_blocks, 1) float32
    inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0  # no scale: d is 0, or so small that f16 has only 0 for it
    scaled = values * inverse
    whole = np.trunc(scaled)
    q = whole + np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    blocks = np.empty(len(values), BLOCK_Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = q.astype(np.int8)
    return blocks
