"""Q8_K: w = d * q, superblocks of 256.

Packed block: 32 scales f32, then 64 pairs of vectors as in Q8_0's (q8_0.py).
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.q8_0 import FLIP, PAIR, SHIFT
from qllama.kernels.tiles import TILE
from qllama.simd import (
    BIAS8,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i32,
    load_u8,
    store_f32,
    store_i32,
    tile_dot_8,
    tile_scale,
    tile_shl,
    tile_splat_i32,
)

QUANTS, BLOCK32 = 32 * 4, 8 * PAIR
BLOCK = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q8_K"].nbytes == BLOCK


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        d_low, d_high = load_f32x16(w), load_f32x16(w + 64)
        at = w + QUANTS
        for _ in range(8):
            ask_ahead(zero, at, BLOCK32)
            acc_low = tile_shl(tile_splat_i32(zero, x + 4, ld_x), SHIFT)
            acc_high = acc_low
            for j in range(8):
                q = x + 16 + 4 * j
                acc_low = tile_dot_8(acc_low, load_i8x64(at + PAIR * j), q, ld_x)
                acc_high = tile_dot_8(acc_high, load_i8x64(at + PAIR * j + 64), q, ld_x)
            low = tile_scale(low, acc_low, d_low, x, ld_x)
            high = tile_scale(high, acc_high, d_high, x, ld_x)
            at += BLOCK32
            x += BLOCK_Q8
        w += BLOCK
    finish(low, high, out, ld_out, add)


@function
def pack_block(src, dst, r):
    dst += 4 * r
    store_i32(dst, load_i32(src))
    for j in range(64):
        store_i32(dst + QUANTS + PAIR * j, load_i32(src + 4 + 4 * j) ^ FLIP)


@function
def unpack_row(w, r, out, n_block):
    w += 4 * r
    for _ in range(n_block):
        d = load_f32(w)
        for c in range(256):
            byte = load_u8(w + QUANTS + c // 4 * PAIR + c % 4) ^ np.uint8(BIAS8)
            store_f32(out + 4 * c, d * np.float32(np.int8(byte)))
        w += BLOCK
        out += 1024


layout_kernels("Q8_K", TILE, times, pack_block, unpack_row)
