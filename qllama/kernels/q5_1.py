"""Q5_1: w = d * q + m, blocks of 32.

Packed block: 32 d f16, 32 m f16, then the 5-bit values (fives.py).
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

MIN, QUANTS = 64, 128
BLOCK = QUANTS + 2 * FIVES
assert LAYOUTS["Q5_1"].nbytes == BLOCK


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK)
        acc_low = tile_zero_i32(zero)
        acc_high = acc_low
        for j in range(4):
            q = x + 16 + 4 * j
            acc_low = tile_dot_small(acc_low, low_fives(w + QUANTS, j), q, ld_x)
            acc_high = tile_dot_small(acc_high, low_fives(w + QUANTS + 64, j), q, ld_x)
            acc_low = tile_dot_small(acc_low, high_fives(w + QUANTS, j), q + 16, ld_x)
            acc_high = tile_dot_small(acc_high, high_fives(w + QUANTS + 64, j), q + 16, ld_x)
        low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_f16x16(w + 32), x, ld_x)
        low = tile_fma(low, load_f16x16(w + MIN), x + 12, ld_x)  # m times the sum of the activations
        high = tile_fma(high, load_f16x16(w + MIN + 32), x + 12, ld_x)
        w += BLOCK
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_block(src, dst, r):
    store_u16(dst + 2 * r, load_u16(src))
    store_u16(dst + MIN + 2 * r, load_u16(src + 2))
    pack_block_of_32(src + 4, dst + QUANTS + 4 * r)


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        d, m = load_f16(w + 2 * r), load_f16(w + MIN + 2 * r)
        for c in range(32):
            store_f32(out + 4 * c, d * np.float32(five(w + QUANTS + 4 * r, c)) + m)
        w += BLOCK
        out += 128


layout_kernels("Q5_1", TILE, times, pack_block, unpack_row)
