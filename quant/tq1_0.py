"""TQ1_0: 256 values share an f16 scale; -1, 0 or 1 scale each, five in a byte. Byte for byte what llama.cpp writes.

A byte holds the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded up to 256ths: t_n is the whole part of 3 times what is
left of it after n multiplications by 3.
"""

import numpy as np

from qllama.quant.tq2_0 import whole

BLOCK_TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])  # value = d * (t - 1)
assert BLOCK_TQ1_0.itemsize == 54

POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
RUNS = (
    (0, 32, 5),
    (160, 16, 5),
    (240, 4, 4),
)  # first value, bytes, digits of a byte: digit n of byte i is at n * bytes + i


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    parts = blocks["qs"][:, :32], blocks["qs"][:, 32:], blocks["qh"]
    q = np.concatenate([_digits(part, n) for part, (_, _, n) in zip(parts, RUNS, strict=True)], axis=1)
    return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - np.float32(1))


def _digits(part: np.ndarray, n: int) -> np.ndarray:
    """(n_blocks, n_bytes) -> (n_blocks, n * n_bytes) uint8, 0 .. 2."""
    left = part[:, None] * POWERS[:n, None]  # modulo 256: only the fraction stays
    return (left.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(-1, n * part.shape[1])


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 256) float32 -> (n_blocks,)."""
    d, q = whole(values)
    packed = []
    for first, n_bytes, n in RUNS:
        digits = q[:, first : first + n * n_bytes].reshape(-1, n, n_bytes).astype(np.uint16)
        number = (digits * POWERS[::-1][:n, None].astype(np.uint16)).sum(axis=1)
        packed.append((number * 256 + 242) // 243)
    blocks = np.empty(len(values), BLOCK_TQ1_0)
    blocks["d"] = d
    blocks["qs"], blocks["qh"] = np.concatenate(packed[:2], axis=1), packed[2]
    return blocks
