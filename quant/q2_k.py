"""Q2_K: 256 values in 16 groups of 16; 4 bits each for a group's scale and minimum, 2 bits per value."""

import numpy as np

BLOCK_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
assert BLOCK_Q2_K.itemsize == 84  # value = d * scale * q - dmin * min; a byte of `scales` has min << 4 | scale


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    scales = blocks["scales"]
    scale = blocks["d"].astype(np.float32)[:, None] * (scales & 15).astype(np.float32)  # (n_blocks, 16)
    minimum = blocks["dmin"].astype(np.float32)[:, None] * (scales >> 4).astype(np.float32)
    q = low_bits(blocks["qs"]).reshape(-1, 16, 16).astype(np.float32)
    return (scale[:, :, None] * q - minimum[:, :, None]).reshape(-1, 256)


def low_bits(qs: np.ndarray) -> np.ndarray:
    """(n_blocks, 64) -> (n_blocks, 2, 4, 32) uint8, 0 .. 3: half a block is 4 runs of 32 that share 32 bytes."""
    return qs.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
