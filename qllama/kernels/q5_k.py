"""Q5_K: w = d * scale * q - dmin * min, as Q4_K with 5 bits for q.

Packed block: that of Q4_K with 5 vectors for each 32 columns. Byte 4r+i of vector j < 4 has column 4j+i of row r in
bits 0-4 and the upper 3 bits of column 16+4j+i in bits 5-7; the lower 2 are bits 2j and 2j+1 of the fifth vector.
"""

import numpy as np

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
    load_u8,
    or_i8,
    store_f32,
    store_i32,
    tile_dot_small,
    tile_zero_i32,
)

BLOCK32 = 5 * 64
HALF = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q5_K"].nbytes == 2 * HALF
ONES = 0x0101010101010101


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
        q, rest = dst + QUANTS + b * BLOCK32 + 4 * lane, 0
        for k in range(2):  # two vectors at a time
            first, second = _quants(src, b, k), _quants(src, b, k + 2)
            both = first | (((second >> 2) & (7 * ONES)) << 5)
            store_i32(q + 128 * k, np.int32(both))
            store_i32(q + 128 * k + 64, np.int32(both >> 32))
            rest |= (second & (3 * ONES)) << (4 * k)
        store_i32(q + 256, np.int32(rest | (rest >> 30)))  # bits 0, 1, 4, 5 of four bytes, then 2, 3, 6, 7


@function
def _quant(q, c):
    """Column c of 32; q is where the row's bytes are in the first vector."""
    j, i = c % 16 // 4, c % 4
    byte, rest = np.int32(load_u8(q + 64 * j + i)), np.int32(load_u8(q + 256 + i))
    return byte & 31 if c < 16 else (byte >> 5 << 2) | ((rest >> (2 * j)) & 3)


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        for b in range(8):
            d, least = unpack_scales(w, lane, b)
            q = w + QUANTS + b * BLOCK32 + 4 * lane
            for c in range(32):
                store_f32(out + 4 * c, d * np.float32(_quant(q, c)) + least)
            out += 128
        w += 2 * HALF


layout_kernels("Q5_K", TILE, times, pack_block, unpack_row)
