"""IQ2_S: 256 values in 16 groups of 16; 8 at a time are one of 1024 vectors, with 8 signs of their own."""

import numpy as np

from qllama.grids import IQ2_S
from qllama.quant.iq2_xs import odd_scales
from qllama.quant.iq2_xxs import signs_of

# A byte of `qh` has bits 8 and 9 of four codes.
BLOCK_IQ2_S = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)])
assert BLOCK_IQ2_S.itemsize == 82  # value = d * (2 * scale + 1) / 8 * sign * level

VECTORS = IQ2_S.levels[IQ2_S.digits].astype(np.float32)  # (1024, 8)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    high = (blocks["qh"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1, 32)
    codes = blocks["qs"] | high.astype(np.uint16) << 8
    values = signs_of(blocks["signs"]) * VECTORS[codes]  # (n_blocks, 32, 8)
    d = blocks["d"].astype(np.float32)[:, None] * odd_scales(blocks["scales"]) * np.float32(0.125)
    return (d[:, :, None] * values.reshape(-1, 16, 16)).reshape(-1, 256)
