"""Q1_0: 128 values share an f16 scale; a sign each. Byte for byte what llama.cpp writes."""

import numpy as np

BLOCK_Q1_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # value = d where the bit is set, else -d
assert BLOCK_Q1_0.itemsize == 18


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 128) float32."""
    positive = np.unpackbits(blocks["qs"], axis=1, bitorder="little").astype(bool)
    d = blocks["d"].astype(np.float32)[:, None]
    return np.where(positive, d, -d)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 128) float32 -> (n_blocks,). The scale is the mean magnitude, summed in order."""
    blocks = np.empty(len(values), BLOCK_Q1_0)
    blocks["d"] = np.add.accumulate(np.abs(values), axis=1)[:, -1] / np.float32(128)
    blocks["qs"] = np.packbits(values >= 0, axis=1, bitorder="little")
    return blocks
