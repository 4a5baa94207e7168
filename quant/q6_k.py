"""Q6_K: 256 values in 16 groups of 16; an f16 scale, a signed byte per group, 6 bits per value."""

import numpy as np

BLOCK_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
assert BLOCK_Q6_K.itemsize == 210  # value = d * scale * (q - 32)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    d = blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32)  # (n_blocks, 16)
    q = _unpack(blocks).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    return (d[:, :, None] * q).reshape(-1, 256)


def _unpack(blocks: np.ndarray) -> np.ndarray:
    """The 6-bit quants (n_blocks, 2, 4, 32) uint8.

    Half a block is 4 runs of 32. A byte of `ql` holds the low 4 bits of a value and of the one two runs on;
    a byte of `qh` the high 2 bits of the values at one place in all four runs.
    """
    ql, qh = blocks["ql"].reshape(-1, 2, 2, 32), blocks["qh"].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2)
    high = qh >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return low | high << 4
