"""IQ3_S: 256 values in 8 groups of 32; 4 at a time are one of 512 vectors, with 4 signs of their own."""

import numpy as np

from qllama.grids import IQ3_S
from qllama.quant.iq2_xs import odd_scales
from qllama.quant.iq2_xxs import signs_of

# A byte of `qh` has bit 8 of eight codes.
BLOCK_IQ3_S = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])
assert BLOCK_IQ3_S.itemsize == 110  # value = d * (2 * scale + 1) * sign * level

VECTORS = IQ3_S.levels[IQ3_S.digits].astype(np.float32)  # (512, 4)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    codes = blocks["qs"] | np.unpackbits(blocks["qh"], axis=1, bitorder="little").astype(np.uint16) << 8
    values = signs_of(blocks["signs"]).reshape(-1, 64, 4) * VECTORS[codes]
    d = blocks["d"].astype(np.float32)[:, None] * odd_scales(blocks["scales"])  # (n_blocks, 8)
    return (d[:, :, None] * values.reshape(-1, 8, 32)).reshape(-1, 256)
