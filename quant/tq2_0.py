"""TQ2_0: 256 values share an f16 scale; 2 bits each, for -1, 0 and 1 scale. Byte for byte what llama.cpp writes."""

import numpy as np

from qllama.quant.q2_k import low_bits

BLOCK_TQ2_0 = np.dtype([("qs", "u1", 64), ("d", "<f2")])  # value = d * (q - 1)
assert BLOCK_TQ2_0.itemsize == 66


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    q = low_bits(blocks["qs"]).reshape(-1, 256).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * (q - np.float32(1))


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 256) float32 -> (n_blocks,)."""
    d, q = whole(values)
    blocks = np.empty(len(values), BLOCK_TQ2_0)
    blocks["d"] = d
    runs = q.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks["qs"] = np.bitwise_or.reduce(runs, axis=2).reshape(-1, 64)
    return blocks


def whole(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales (n_blocks,) float32, the largest magnitude each, and values in scales + 1 (n_blocks, n) uint8: 0, 1 or 2.

    Halves round away from zero.
    """
    d = np.abs(values).max(axis=1)
    inverse = np.where(d > 0, np.float32(1) / d, np.float32(0))[:, None]
    scaled = values * inverse
    part = np.trunc(scaled)
    q = part + np.copysign(np.abs(scaled - part) >= 0.5, scaled)
    return d, (q + 1).astype(np.uint8)
