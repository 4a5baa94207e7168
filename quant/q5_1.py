"""Q5_1: 32 values share an f16 scale and an f16 minimum; 5 bits each. Byte for byte what llama.cpp writes."""

import numpy as np

from qllama.quant.q4_1 import fit
from qllama.quant.q5_0 import pack, unpack

BLOCK_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])  # value = d * q + m
assert BLOCK_Q5_1.itemsize == 24


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    q = unpack(blocks).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,)."""
    d, m, q = fit(values, 31)
    blocks = np.empty(len(values), BLOCK_Q5_1)
    blocks["d"], blocks["m"] = d, m
    blocks["qh"], blocks["qs"] = pack(q)
    return blocks
