"""IQ1_S: 256 values in 8 groups of 32; 8 at a time are one of 2048 vectors of -1, 0 and 1, a group shifted by 1/8."""

import numpy as np

from qllama.grids import IQ1_S

# A word of `qh`: bits 8-10 of the group's four codes, its 3-bit scale, and whether it is shifted down.
BLOCK_IQ1_S = np.dtype([("d", "<f2"), ("qs", "u1", (8, 4)), ("qh", "<u2", 8)])
assert BLOCK_IQ1_S.itemsize == 50  # value = d * (2 * scale + 1) * (level + shift)

VECTORS = IQ1_S.levels[IQ1_S.digits].astype(np.float32)  # (2048, 8)
SHIFT = np.float32(0.125)


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 256) float32."""
    qh = blocks["qh"]
    high = qh[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7  # (n_blocks, 8, 4)
    shift = np.where(qh & 0x8000, -SHIFT, SHIFT)
    d = blocks["d"].astype(np.float32)[:, None] * (2 * (qh >> 12 & 7) + 1).astype(np.float32)
    values = VECTORS[blocks["qs"] | high << 8] + shift[:, :, None, None]  # (n_blocks, 8, 4, 8)
    return (d[:, :, None, None] * values).reshape(-1, 256)
