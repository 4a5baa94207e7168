"""NVFP4: 64 values in 4 groups of 16; a scale per group that is a float of 8 bits, and a float of 4 bits each.

Source: NVIDIA's description of the format; the scale is E4M3 of the OCP 8-bit floating point specification 1.0, without
its sign.
"""

import numpy as np

from qllama.quant.mxfp4 import CODES, codes_of

BLOCK_NVFP4 = np.dtype([("d", "u1", 4), ("qs", "u1", (4, 8))])  # value = d / 2 * CODES[q]
assert BLOCK_NVFP4.itemsize == 36


def _half_scales() -> np.ndarray:
    """(256,) float32: half of what each byte stands for. Its top bit does not count; 0x7F, a NaN in E4M3, is 0."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = np.ldexp(8 + mantissa, exponent - 10)
    half = np.where(exponent > 0, normal, np.ldexp(mantissa, -9)) / 2
    half[0x7F] = 0
    return half.astype(np.float32)


HALF_SCALES = _half_scales()


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 64) float32."""
    codes = CODES[np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], axis=2)]  # (n_blocks, 4, 16)
    return (HALF_SCALES[blocks["d"]][:, :, None] * codes).reshape(-1, 64)


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 64) float32 -> (n_blocks,), byte for byte what llama.cpp writes; magnitudes up to 6 * 448.

    The largest magnitude of a group becomes 6, but for the rounding of the scale.
    """
    groups = values.reshape(-1, 4, 16)
    blocks = np.empty(len(groups), BLOCK_NVFP4)
    blocks["d"] = _scale(np.abs(groups).max(axis=2) / np.float32(6))
    q = codes_of(groups, HALF_SCALES[blocks["d"]][:, :, None])
    blocks["qs"] = q[:, :, :8] | q[:, :, 8:] << 4
    return blocks


def _scale(x: np.ndarray) -> np.ndarray:
    """The nearest byte to x >= 0, halves rounded up; of those above 240, which are from 0x78 on, only the last, 448."""
    bits = x.view(np.uint32)
    normal = (bits + (1 << 19) >> 20).astype(np.int64) - (120 << 3)
    small = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.int64), 7)
    return np.where(bits < 121 << 23, small, np.where(normal < 0x78, normal, 0x7E)).astype(np.uint8)
