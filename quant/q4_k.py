"""Q4_K: 256 values in 8 groups of 32; two f16 scales, and for each group 6 bits of scale and of minimum."""

import numpy as np

BLOCK_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
assert BLOCK_Q4_K.itemsize == 144  # value = d * scale * q - dmin * min


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    return affine(blocks, nibbles(blocks))


def nibbles(blocks: np.ndarray) -> np.ndarray:
    """The 4-bit quants (n_blocks, 8, 32) uint8: a run of 32 bytes has one group low, the next high."""
    qs = blocks["qs"].reshape(-1, 4, 1, 32)
    return np.concatenate([qs & 15, qs >> 4], axis=2).reshape(-1, 8, 32)


def affine(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d * scale * q - dmin * min of quants (n_blocks, 8, 32): (n_blocks, 256) float32."""
    scales, mins = _scales_and_mins(blocks["scales"])
    d = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)  # (n_blocks, 8)
    dmin = blocks["dmin"].astype(np.float32)[:, None] * mins.astype(np.float32)
    return (d[:, :, None] * q.astype(np.float32) - dmin[:, :, None]).reshape(-1, 256)


def _scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n_blocks, 12) uint8 -> scales and mins, each (n_blocks, 8) uint8.

    The first 4 of both have the low 6 bits of a byte each; the last 4 the halves of a byte, and on top of them the
    2 bits that the first ones leave.
    """
    first, last = packed[:, :8].reshape(-1, 2, 4), packed[:, 8:]
    top = first >> 6 << 4
    scales = np.concatenate([first[:, 0] & 63, last & 15 | top[:, 0]], axis=1)
    return scales, np.concatenate([first[:, 1] & 63, last >> 4 | top[:, 1]], axis=1)
