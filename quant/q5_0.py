"""Q5_0: 32 values share an f16 scale; 5 bits each, centred on 16."""

import numpy as np

BLOCK_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])  # value = d * (q - 16)
assert BLOCK_Q5_0.itemsize == 22


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    q = unpack(blocks).astype(np.int8) - np.int8(16)
    return blocks["d"].astype(np.float32)[:, None] * q.astype(np.float32)


def unpack(blocks: np.ndarray) -> np.ndarray:
    """The 5-bit quants (n_blocks, 32) uint8."""
    qs = blocks["qs"]
    fifth = np.unpackbits(blocks["qh"], axis=1, bitorder="little")
    return np.concatenate([qs & 15, qs >> 4], axis=1) | fifth << 4
