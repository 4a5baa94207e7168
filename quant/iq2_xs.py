"""IQ2_XS: 256 values in 16 groups of 16; 8 at a time are one of 512 vectors, with signs of their own."""

import numpy as np

from qllama.grids import IQ2_XS
from qllama.quant.iq2_xxs import signs_of, with_parity

# A word has a code in its low 9 bits and 7 signs above; a byte of `scales` is of two groups, the first in its low half.
BLOCK_IQ2_XS = np.dtype([("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)])
assert BLOCK_IQ2_XS.itemsize == 74  # value = d * (2 * scale + 1) / 8 * sign * level

VECTORS = IQ2_XS.levels[IQ2_XS.digits].astype(np.float32)  # (512, 8)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    qs = blocks["qs"]
    values = signs_of(with_parity((qs >> 9).astype(np.uint8))) * VECTORS[qs & 511]  # (n_blocks, 32, 8)
    d = blocks["d"].astype(np.float32)[:, None] * odd_scales(blocks["scales"]) * np.float32(0.125)
    return (d[:, :, None] * values.reshape(-1, 16, 16)).reshape(-1, 256)


def odd_scales(packed: np.ndarray) -> np.ndarray:
    """(n_blocks, n) bytes of two 4-bit scales -> (n_blocks, 2n) float32 of 2 * scale + 1."""
    scale = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 2 * packed.shape[1])
    return (2 * scale + 1).astype(np.float32)
