"""Q6_K: w = d * scale * (q - 32), superblocks of 256 with an int8 scale per 16 columns.

Packed block: for each half of 16 rows, 16 d f16, 16 x 16 scales int8, then for each 32 columns 4 vectors of low
nibbles (as Q4_0's) and 2 vectors of upper bits: bits 0-1, 2-3, 4-5, 6-7 of byte 4r+i of vector m belong to columns
8m+i, 8m+4+i, 16+8m+i, 16+8m+4+i of row r.
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE
from qllama.simd import (
    high_nibbles,
    load_f16,
    load_f16x16,
    load_i8x16_f32,
    load_i8x64,
    load_u8,
    load_u16,
    low_nibbles,
    mul,
    or_i8,
    store_f32,
    store_u8,
    store_u16,
    tile_dot_small,
    tile_scale,
    tile_shl,
    tile_splat_i32,
    tile_sub_i32,
    upper_bits,
)

SCALES, QUANTS, BLOCK32 = 32, 32 + 256, 6 * 64
HALF = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q6_K"].nbytes == 2 * HALF
OFFSET = np.int32(2)  # -8 * sum shifted by 2 is -32 * sum


@function
def _sixteen(total, acc, w, d, scale, x, ld_x, q, second):
    """16 columns (the low or the high nibbles of 4 vectors) of one half panel."""
    for j in range(4):
        v = load_i8x64(q + 64 * j)
        bits = load_i8x64(q + 256 + 64 * (j // 2))
        nibbles = high_nibbles(v) if second else low_nibbles(v)
        w6 = or_i8(nibbles, upper_bits(bits, j % 2 + 2 * second))
        acc = tile_dot_small(acc, w6, x + 16 + 16 * second + 4 * j, ld_x)
    return tile_scale(total, acc, mul(load_i8x16_f32(scale), d), x, ld_x)


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(w, QUANTS)
        ask_ahead(w + HALF, QUANTS)
        d_low, d_high = load_f16x16(w), load_f16x16(w + HALF)
        for b in range(8):
            q = w + QUANTS + b * BLOCK32
            scale = w + SCALES + 32 * b
            ask_ahead(q, BLOCK32)
            ask_ahead(q + HALF, BLOCK32)
            first = tile_splat_i32(zero, x + 8, ld_x)
            second = tile_shl(tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first), OFFSET)
            first = tile_shl(first, OFFSET)
            low = _sixteen(low, first, w, d_low, scale, x, ld_x, q, 0)
            low = _sixteen(low, second, w, d_low, scale + 16, x, ld_x, q, 1)
            high = _sixteen(high, first, w, d_high, scale + HALF, x, ld_x, q + HALF, 0)
            high = _sixteen(high, second, w, d_high, scale + HALF + 16, x, ld_x, q + HALF, 1)
            x += BLOCK_Q8
        w += 2 * HALF
    finish(low, high, out, ld_out, add)


@function
def _quant(src, e):
    """Element e of a block of the file, 0..63."""
    half, rest = e // 128, e % 128
    low = np.int32(load_u8(src + 64 * half + rest % 64)) >> (4 * (rest // 64))
    upper = np.int32(load_u8(src + 128 + 32 * half + rest % 32)) >> (2 * (rest // 32))
    return (low & 15) | ((upper & 3) << 4)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    store_u16(dst + 2 * lane, load_u16(src + 208))
    for s in range(16):
        store_u8(dst + SCALES + 16 * s + lane, load_u8(src + 192 + s))
    for b in range(8):
        q = dst + QUANTS + b * BLOCK32 + 4 * lane
        for i in range(4):
            for m in range(2):
                upper = np.int32(0)
                for k in range(2):
                    first = _quant(src, 32 * b + 8 * m + 4 * k + i)
                    second = _quant(src, 32 * b + 16 + 8 * m + 4 * k + i)
                    store_u8(q + 64 * (2 * m + k) + i, np.uint8((first & 15) | ((second & 15) << 4)))
                    upper |= ((first >> 4) << (2 * k)) | ((second >> 4) << (4 + 2 * k))
                store_u8(q + 256 + 64 * m + i, np.uint8(upper))


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        d = load_f16(w + 2 * lane)
        for c in range(256):
            column, q = c % 16, w + QUANTS + c // 32 * BLOCK32 + 4 * lane
            second = c // 16 % 2
            nibble = (np.int32(load_u8(q + column // 4 * 64 + column % 4)) >> (4 * second)) & 15
            field = 2 * (column // 4 % 2) + 4 * second
            upper = (np.int32(load_u8(q + 256 + column // 8 * 64 + column % 4)) >> field) & 3
            scale = np.float32(np.int8(load_u8(w + SCALES + c // 16 * 16 + lane)))
            store_f32(out + 4 * c, d * scale * np.float32((nibble | (upper << 4)) - 32))
        w += 2 * HALF
        out += 1024


layout_kernels("Q6_K", TILE, times, pack_block, unpack_row)
