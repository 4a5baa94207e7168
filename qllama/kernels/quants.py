"""Activations to int8, in blocks of 32 (the block's layout is in layouts.py)."""

import numpy as np

from qllama.jit import function
from qllama.kernels.layouts import BLOCK_Q8
from qllama.simd import (
    absolute,
    load_f32x16,
    max_lanes,
    maximum,
    mul,
    round_i32,
    splat_f32,
    store_f32,
    store_i8x16,
    store_i32,
    sum_bytes,
)

TINY = np.float32(1e-30)  # below it a block is zero: 127 / amax would overflow


@function
def quantize_block(low, high, out):
    """32 float32 in two vectors to one block: d = amax / 127, values rounded to nearest, ties to even."""
    amax = max_lanes(maximum(absolute(low), absolute(high)))
    d = np.float32(0)
    inverse = np.float32(0)
    if amax >= TINY:
        d = amax / np.float32(127)
        inverse = np.float32(127) / amax
    q_low = round_i32(mul(low, splat_f32(inverse)))
    q_high = round_i32(mul(high, splat_f32(inverse)))
    sums = sum_bytes(q_low, q_high)
    sum_low = np.int32(sums)
    total = sum_low + np.int32(sums >> 32)
    store_f32(out, d)
    store_i32(out + 4, -8 * total)
    store_i32(out + 8, -8 * sum_low)
    store_f32(out + 12, d * np.float32(total))
    store_i8x16(out + 16, q_low)
    store_i8x16(out + 32, q_high)


@function
def quantize_row(x, out, n):
    """n float32 at x to n // 32 blocks at out."""
    for i in range(n // 32):
        quantize_block(load_f32x16(x + 128 * i), load_f32x16(x + 128 * i + 64), out + BLOCK_Q8 * i)
