"""Q5_K: w = d * scale * q - dmin * min, as Q4_K with 5 bits for q.

Packed block: that of Q4_K with 5-bit values (fives.py) instead of nibbles.
"""

import numpy as np

from qllama.kernels.fives import FIFTH, FIVES, ONES, five, pack_fives
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import PAIRED
from qllama.kernels.q4_k import HEAD, SCALES, pack_scales, scale_half, unpack_scales
from qllama.kernels.tiles import TILE
from qllama.simd import (
    field,
    in_order,
    load_f16x16,
    load_i8x64,
    load_i64,
    or_i8,
    store_f32,
    tile_dot_small,
    tile_zero_i32,
)

PART = SCALES + 2 * FIVES
BLOCK = HEAD + 8 * PART
assert LAYOUTS["Q5_K"].nbytes == BLOCK


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        d_low, d_high = load_f16x16(w), load_f16x16(w + 32)
        dmin_low, dmin_high = load_f16x16(w + 64), load_f16x16(w + 96)
        w += HEAD
        for _ in range(8):
            ask_ahead(zero, w, PART)
            at = w + SCALES
            acc_low = tile_zero_i32(zero)
            acc_high = acc_low
            rest_low, rest_high = load_i8x64(at + FIFTH), load_i8x64(at + FIFTH + 64)
            for j in range(4):
                in_order()
                q = x + 16 + 4 * j
                v, u = load_i8x64(at + PAIRED * j), load_i8x64(at + PAIRED * j + 64)
                acc_low = tile_dot_small(acc_low, field(v, 0, 31), q, ld_x)
                acc_high = tile_dot_small(acc_high, field(u, 0, 31), q, ld_x)
                v = or_i8(field(v, 3, 28), field(rest_low, 2 * j, 3))
                u = or_i8(field(u, 3, 28), field(rest_high, 2 * j, 3))
                acc_low = tile_dot_small(acc_low, v, q + 16, ld_x)
                acc_high = tile_dot_small(acc_high, u, q + 16, ld_x)
            low = scale_half(low, acc_low, d_low, dmin_low, w, x, ld_x)
            high = scale_half(high, acc_high, d_high, dmin_high, w + 16, x, ld_x)
            w += PART
            x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def _quants(src, b, k):
    """Columns 8k .. 8k+7 of the 32 columns b, in the bytes of an int64; src is a block of the file."""
    nibbles = (load_i64(src + 48 + b // 2 * 32 + 8 * k) >> (b % 2 * 4)) & (15 * ONES)
    return nibbles | (((load_i64(src + 16 + 8 * k) >> b) & ONES) << 4)


@function
def pack_block(src, dst, r):
    pack_scales(src, dst, r, PART)
    for b in range(8):
        q = dst + HEAD + b * PART + SCALES + 4 * r
        pack_fives(q, _quants(src, b, 0), _quants(src, b, 1), _quants(src, b, 2), _quants(src, b, 3))


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        for b in range(8):
            at = w + HEAD + b * PART
            d, least = unpack_scales(w, r, at)
            for c in range(32):
                store_f32(out + 4 * c, d * np.float32(five(at + SCALES + 4 * r, c)) + least)
            out += 128
        w += BLOCK


layout_kernels("Q5_K", TILE, times, pack_block, unpack_row)
