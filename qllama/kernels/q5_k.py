"""Q5_K: w = d * scale * q - dmin * min, as Q4_K with 5 bits for q.

Packed block: that of Q4_K with 5-bit values (fives.py) instead of nibbles.
"""

import numpy as np

from qllama.kernels.fives import FIVES, ONES, five, pack_fives
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.q4_k import QUANTS, SCALES, pack_scales, scale_half, unpack_scales
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

BLOCK32 = FIVES
HALF = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q5_K"].nbytes == 2 * HALF


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(w, QUANTS)
        ask_ahead(w + HALF, QUANTS)
        d_low, dmin_low = load_f16x16(w), load_f16x16(w + 32)
        d_high, dmin_high = load_f16x16(w + HALF), load_f16x16(w + HALF + 32)
        scales, at = w + SCALES, w + QUANTS
        for _ in range(8):
            ask_ahead(at, BLOCK32)
            ask_ahead(at + HALF, BLOCK32)
            acc_low = tile_zero_i32(zero)
            acc_high = acc_low
            rest_low, rest_high = load_i8x64(at + 256), load_i8x64(at + HALF + 256)
            for j in range(4):
                in_order()
                q = x + 16 + 4 * j
                v, u = load_i8x64(at + 64 * j), load_i8x64(at + HALF + 64 * j)
                acc_low = tile_dot_small(acc_low, field(v, 0, 31), q, ld_x)
                acc_high = tile_dot_small(acc_high, field(u, 0, 31), q, ld_x)
                v = or_i8(field(v, 3, 28), field(rest_low, 2 * j, 3))
                u = or_i8(field(u, 3, 28), field(rest_high, 2 * j, 3))
                acc_low = tile_dot_small(acc_low, v, q + 16, ld_x)
                acc_high = tile_dot_small(acc_high, u, q + 16, ld_x)
            low = scale_half(low, acc_low, d_low, dmin_low, scales, x, ld_x)
            high = scale_half(high, acc_high, d_high, dmin_high, scales + HALF, x, ld_x)
            scales += 32
            at += BLOCK32
            x += BLOCK_Q8
        w += 2 * HALF
    finish(low, high, out, ld_out, add)


@function
def _quants(src, b, k):
    """Columns 8k .. 8k+7 of the 32 columns b, in the bytes of an int64; src is a block of the file."""
    nibbles = (load_i64(src + 48 + b // 2 * 32 + 8 * k) >> (b % 2 * 4)) & (15 * ONES)
    return nibbles | (((load_i64(src + 16 + 8 * k) >> b) & ONES) << 4)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    pack_scales(src, dst, lane)
    for b in range(8):
        q = dst + QUANTS + b * BLOCK32 + 4 * lane
        pack_fives(q, _quants(src, b, 0), _quants(src, b, 1), _quants(src, b, 2), _quants(src, b, 3))


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        for b in range(8):
            d, least = unpack_scales(w, lane, b)
            q = w + QUANTS + b * BLOCK32 + 4 * lane
            for c in range(32):
                store_f32(out + 4 * c, d * np.float32(five(q, c)) + least)
            out += 128
        w += 2 * HALF


layout_kernels("Q5_K", TILE, times, pack_block, unpack_row)
