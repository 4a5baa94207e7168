"""Q6_K: 256 values in 16 groups of 16; an f16 scale, a signed byte per group, 6 bits per value.

Byte for byte what llama.cpp writes without an importance matrix. That needs every float32 operation in the
same order and none fused, so the sums below run value by value and NumPy's own are not used.
"""

import numpy as np

BLOCK_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
assert BLOCK_Q6_K.itemsize == 210  # value = d * scale * (q - 32)

TINY = np.float32(1e-15)  # a group, or a block's scale, below this counts as zero
# What the largest value of a group is tried as; 32 first, for the others have to be better.
TRIALS = [np.float32(32) + np.float32(0.1) * np.float32(i) for i in (0, *range(-9, 0), *range(1, 10))]


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    d = blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32)  # (n_blocks, 16)
    q = _unpack(blocks).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    return (d[:, :, None] * q).reshape(-1, 256)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 256) float32 -> (n_blocks,)."""
    scale, q = _fit(np.ascontiguousarray(values.reshape(-1, 16).T))
    scale, q = scale.reshape(-1, 16), q.T.reshape(-1, 16, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    empty = np.abs(largest) < TINY  # (n_blocks, 1)
    inverse = np.where(empty, 0, np.float32(-128) / largest)
    blocks = np.empty(len(values), BLOCK_Q6_K)
    blocks["d"] = np.where(empty, 0, np.float32(1) / inverse)[:, 0]
    blocks["scales"] = np.minimum(np.rint(inverse * scale), 127).astype(np.int8)
    step = (blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32))[:, :, None]
    q = np.where(step == 0, q, _round(values.reshape(-1, 16, 16) / step))
    q = np.where(empty[:, :, None], -32, q)
    blocks["ql"], blocks["qh"] = _pack((q + 32).astype(np.uint8))
    return blocks


def _round(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), -32, 31)


def _fit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale (n_groups,) and quants (16, n_groups) that fit groups x (16, n_groups) best, all float32.

    Least squares weighted by x²: for given quants the best scale is Σx³q / Σx²q², and the error it leaves is
    the smaller, the larger (Σx³q)² / Σx²q² is.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    squared = x * x
    cubed = squared * x
    scale, best, q = np.zeros_like(largest), np.full_like(largest, -np.inf), np.zeros_like(x)
    for trial in TRIALS:
        tried = _round(-trial / largest * x)
        xq, qq = _sum(cubed * tried), _sum(squared * tried * tried)
        better = ~(xq * xq <= best * qq)  # NaN, from values too large, is kept for the caller to find
        scale = np.where(better, xq / qq, scale)
        best = np.where(better, scale * xq, best)
        q = np.where(better, tried, q)
    empty = np.abs(largest) < TINY
    return np.where(empty, 0, scale), np.where(empty, -32, q)


def _sum(terms: np.ndarray) -> np.ndarray:
    """The 16 rows of `terms` added one after the other."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _pack(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`ql` (n_blocks, 128) and `qh` (n_blocks, 64) of 6-bit quants q, n_blocks x 256 uint8.

    Half a block is 4 runs of 32. A byte of `ql` holds the low 4 bits of a value and of the one two runs on;
    a byte of `qh` the high 2 bits of the values at one place in all four runs.
    """
    q = q.reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = low[:, :, :2] | low[:, :, 2:] << 4
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return ql.reshape(-1, 128), qh.reshape(-1, 64)


def _unpack(blocks: np.ndarray) -> np.ndarray:
    """The 6-bit quants (n_blocks, 2, 4, 32) uint8; see _pack."""
    ql, qh = blocks["ql"].reshape(-1, 2, 2, 32), blocks["qh"].reshape(-1, 2, 1, 32)
    low = np.concatenate([ql & 15, ql >> 4], axis=2)
    high = qh >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return low | high << 4
