"""Q5_1: w = d * q + m, blocks of 32.

Packed block: for each half of 16 rows, 16 d f16, 16 m f16, then the 5-bit values (fives.py).
"""

import numpy as np

from qllama.kernels.fives import FIVES, five, high_fives, low_fives, pack_block_of_32
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE
from qllama.simd import (
    load_f16,
    load_f16x16,
    load_u16,
    store_f32,
    store_u16,
    tile_dot_small,
    tile_fma,
    tile_scale,
    tile_zero_i32,
)

MIN, QUANTS = 32, 64
HALF = QUANTS + FIVES
assert LAYOUTS["Q5_1"].nbytes == 2 * HALF


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(w, 2 * HALF)
        acc_low = tile_zero_i32(zero)
        acc_high = acc_low
        for j in range(4):
            q = x + 16 + 4 * j
            acc_low = tile_dot_small(acc_low, low_fives(w + QUANTS, j), q, ld_x)
            acc_high = tile_dot_small(acc_high, low_fives(w + HALF + QUANTS, j), q, ld_x)
            acc_low = tile_dot_small(acc_low, high_fives(w + QUANTS, j), q + 16, ld_x)
            acc_high = tile_dot_small(acc_high, high_fives(w + HALF + QUANTS, j), q + 16, ld_x)
        low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_f16x16(w + HALF), x, ld_x)
        low = tile_fma(low, load_f16x16(w + MIN), x + 12, ld_x)  # m times the sum of the activations
        high = tile_fma(high, load_f16x16(w + HALF + MIN), x + 12, ld_x)
        w += 2 * HALF
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    store_u16(dst + 2 * lane, load_u16(src))
    store_u16(dst + MIN + 2 * lane, load_u16(src + 2))
    pack_block_of_32(src + 4, dst + QUANTS + 4 * lane)


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        d, m = load_f16(w + 2 * lane), load_f16(w + MIN + 2 * lane)
        for c in range(32):
            store_f32(out + 4 * c, d * np.float32(five(w + QUANTS + 4 * lane, c)) + m)
        w += 2 * HALF
        out += 128


layout_kernels("Q5_1", TILE, times, pack_block, unpack_row)
