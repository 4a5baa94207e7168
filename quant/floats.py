"""F32, F16 and BF16: a block is one value. Narrowing rounds to nearest, ties to even."""

import numpy as np

BLOCK_F32 = np.dtype("<f4")
BLOCK_F16 = np.dtype("<f2")
BLOCK_BF16 = np.dtype("<u2")  # the upper half of a float32
assert (BLOCK_F32.itemsize, BLOCK_F16.itemsize, BLOCK_BF16.itemsize) == (4, 2, 2)


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 1) float32."""
    return blocks[:, None].astype(np.float32)


def encode_f32(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 1) float32 -> (n_blocks,)."""
    return values[:, 0].astype(BLOCK_F32)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 1) float32."""
    return blocks[:, None].astype(np.float32)


def encode_f16(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 1) float32 -> (n_blocks,)."""
    return values[:, 0].astype(BLOCK_F16)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """(n_blocks,) -> (n_blocks, 1) float32."""
    return (blocks[:, None].astype(np.uint32) << 16).view(np.float32)


def encode_bf16(values: np.ndarray) -> np.ndarray:
    """(n_blocks, 1) float32 -> (n_blocks,)."""
    bits = values[:, 0].view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) >> 16).astype(BLOCK_BF16)
