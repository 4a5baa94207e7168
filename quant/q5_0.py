"""Q5_0: 32 values share an f16 scale; 5 bits each, centred on 16. Byte for byte what llama.cpp writes."""

import numpy as np

BLOCK_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])  # value = d * (q - 16)
assert BLOCK_Q5_0.itemsize == 22


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    q = unpack(blocks).astype(np.int8) - np.int8(16)
    return blocks["d"].astype(np.float32)[:, None] * q.astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,).

    The value of largest magnitude, whatever its sign, becomes -16: that end of the range is one step longer.
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    d = (largest + 0) / np.float32(-16)  # (n_blocks, 1) float32; + 0, for -0.0 counts as 0.0
    inverse = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0  # no scale: d is 0, or so small that f16 has only 0 for it
    q = (values * inverse + np.float32(16.5)).astype(np.uint8)  # cuts off, and is never negative
    blocks = np.empty(len(values), BLOCK_Q5_0)
    blocks["d"] = d[:, 0]
    blocks["qh"], blocks["qs"] = pack(np.minimum(q, 31))
    return blocks


def pack(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`qh` (n_blocks, 4), a bit for each value, and `qs` (n_blocks, 16) of 5-bit quants q, (n_blocks, 32) uint8."""
    low = q & 15
    return np.packbits(q >> 4, axis=1, bitorder="little"), low[:, :16] | low[:, 16:] << 4


def unpack(blocks: np.ndarray) -> np.ndarray:
    """The 5-bit quants (n_blocks, 32) uint8; see pack."""
    qs = blocks["qs"]
    fifth = np.unpackbits(blocks["qh"], axis=1, bitorder="little")
    return np.concatenate([qs & 15, qs >> 4], axis=1) | fifth << 4
