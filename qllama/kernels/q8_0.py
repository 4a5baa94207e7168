"""Q8_0, and Q8_1 in its layout: w = d * q, blocks of 32.

Packed block: 32 scales f16, then 8 pairs of vectors of 64 bytes; byte 4r+i of pair j has column 4j+i of row r, plus the
target's BIAS8.
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels, pack_kernel
from qllama.kernels.tiles import TILE
from qllama.simd import (
    BIAS8,
    load_f16,
    load_f16x16,
    load_i8x64,
    load_i32,
    load_u8,
    load_u16,
    store_f32,
    store_i32,
    store_u16,
    tile_dot_8,
    tile_scale,
    tile_shl,
    tile_splat_i32,
)

QUANTS, PAIR = 32 * 2, 2 * 64
BLOCK = QUANTS + 8 * PAIR
assert LAYOUTS["Q8_0"].nbytes == LAYOUTS["Q8_1"].nbytes == BLOCK
assert BIAS8 in (0, 128)
FLIP = np.int32(np.array([BIAS8] * 4, "<u1").view("<i4")[0])  # adds the bias to four bytes: an exclusive or
SHIFT = np.int32(4 if BIAS8 else 31)  # -8 * sum to -BIAS8 * sum; a shift by 31 of a multiple of 8 leaves zero


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK)
        acc_low = tile_shl(tile_splat_i32(zero, x + 4, ld_x), SHIFT)
        acc_high = acc_low
        for j in range(8):
            q = x + 16 + 4 * j
            acc_low = tile_dot_8(acc_low, load_i8x64(w + QUANTS + PAIR * j), q, ld_x)
            acc_high = tile_dot_8(acc_high, load_i8x64(w + QUANTS + PAIR * j + 64), q, ld_x)
        low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_f16x16(w + 32), x, ld_x)
        w += BLOCK
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def _pack_row(d, q, dst, r):
    """From where the f16 and the bytes are."""
    store_u16(dst + 2 * r, load_u16(d))
    for j in range(8):
        store_i32(dst + QUANTS + PAIR * j + 4 * r, load_i32(q + 4 * j) ^ FLIP)


@function
def pack_block(src, dst, r):
    _pack_row(src, src + 2, dst, r)


@function
def pack_q8_1(src, dst, r):
    _pack_row(src, src + 4, dst, r)


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        d = load_f16(w + 2 * r)
        for c in range(32):
            byte = load_u8(w + QUANTS + c // 4 * PAIR + 4 * r + c % 4) ^ np.uint8(BIAS8)
            store_f32(out + 4 * c, d * np.float32(np.int8(byte)))
        w += BLOCK
        out += 128


layout_kernels("Q8_0", TILE, times, pack_block, unpack_row)
pack_kernel("Q8_1", pack_q8_1)
