"""MXFP4: 32 values share a scale that is a power of two; each is a float of 4 bits.

Source: OCP Microscaling Formats (MX) Specification 1.0. Byte for byte what llama.cpp writes.
"""

import numpy as np

BLOCK_MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])  # value = 2**(e - 128) * CODES[q]
assert BLOCK_MXFP4.itemsize == 17

SIZES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)  # twice the floats, to be integers
CODES = np.concatenate([SIZES, 0 - SIZES])  # no -0.0: the sign of a zero is dropped
MIDDLES = (SIZES[:-1] + SIZES[1:]) / 2


def decode(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 32) float32."""
    qs = blocks["qs"]
    return _scale(blocks["e"])[:, None] * CODES[np.concatenate([qs & 15, qs >> 4], axis=1)]


def encode(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 32) float32 -> (n_blocks,). A value in the middle of two codes takes the smaller.

    The exponent is that of the largest magnitude less 2, so that 8 to 16 scales are to be covered, of which 12 are.
    """
    largest = np.abs(values).max(axis=1)
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1).astype(np.float64)).astype(np.float32))
    blocks = np.empty(len(values), BLOCK_MXFP4)
    blocks["e"] = np.where(largest > 0, np.maximum(exponent + 125, 0), 0)
    q = codes_of(values, _scale(blocks["e"])[:, None])
    blocks["qs"] = q[:, :16] | q[:, 16:] << 4
    return blocks


def codes_of(values: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The code of which d times its value is nearest, uint8; the smaller one in the middle of two, 0 where d is 0."""
    size = np.abs(values)
    q = sum((size > d * middle).astype(np.uint8) for middle in MIDDLES)
    return np.where(d == 0, 0, np.where((values < 0) & (q > 0), q + 8, q)).astype(np.uint8)


def _scale(e: np.ndarray) -> np.ndarray:
    """2**(e - 128) float32, exactly: the first two are subnormal."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)
