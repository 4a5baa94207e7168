"""Q4_0: w = d * (q - 8), blocks of 32.

Packed block: 32 scales f16, then the nibbles, paired (nibbles.py).
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import NIBBLES, PAIRED, pack_paired, paired_nibble
from qllama.kernels.tiles import TILE
from qllama.simd import (
    high_nibbles,
    load_f16,
    load_f16x16,
    load_i8x64,
    load_u16,
    low_nibbles,
    store_f32,
    store_u16,
    tile_dot_small,
    tile_scale,
    tile_splat_i32,
)

QUANTS = 32 * 2
BLOCK = QUANTS + 2 * NIBBLES
assert LAYOUTS["Q4_0"].nbytes == BLOCK


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK)
        acc_low = tile_splat_i32(zero, x + 4, ld_x)  # -8 * sum: the dot product takes q without its offset
        acc_high = acc_low
        for j in range(4):
            q = x + 16 + 4 * j
            v = load_i8x64(w + QUANTS + PAIRED * j)
            u = load_i8x64(w + QUANTS + PAIRED * j + 64)
            acc_low = tile_dot_small(acc_low, low_nibbles(v), q, ld_x)
            acc_high = tile_dot_small(acc_high, low_nibbles(u), q, ld_x)
            acc_low = tile_dot_small(acc_low, high_nibbles(v), q + 16, ld_x)
            acc_high = tile_dot_small(acc_high, high_nibbles(u), q + 16, ld_x)
        low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_f16x16(w + 32), x, ld_x)
        w += BLOCK
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_block(src, dst, r):
    store_u16(dst + 2 * r, load_u16(src))
    pack_paired(src + 2, dst + QUANTS + 4 * r)


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        d = load_f16(w + 2 * r)
        for c in range(32):
            store_f32(out + 4 * c, d * np.float32(paired_nibble(w + QUANTS + 4 * r, c) - 8))
        w += BLOCK
        out += 128


layout_kernels("Q4_0", TILE, times, pack_block, unpack_row)
