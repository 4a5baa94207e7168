"""Q3_K: w = d * scale * (q - 4), superblocks of 256 with a 6-bit signed scale per 16 columns.

Packed block: for each half of 16 rows, 16 d f16, 16 x 16 scales int8, then 3 vectors for each 32 columns. Byte 4r+i of
vector j has columns 8j+i and 8j+4+i of row r in bits 0-2 and 3-5. Bits 6-7 of vectors 0 and 1 are the lower 2 bits of
columns 24+i and 28+i, whose upper ones are bits 6 and 7 of vector 2.
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE_16
from qllama.simd import (
    field,
    load_f16,
    load_f16x16,
    load_i8x16_i32,
    load_i8x64,
    load_i32,
    load_u8,
    load_u16,
    or_i8,
    store_f32,
    store_i32,
    store_u8,
    store_u16,
    tile_add_dots,
    tile_add_product,
    tile_dot_16,
    tile_shr,
    tile_splat_i32,
    tile_sub_i32,
    tile_zero_i32,
)

SCALES, QUANTS, BLOCK32 = 32, 32 + 256, 3 * 64
HALF = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q3_K"].nbytes == 2 * HALF
ONES = 0x01010101
OFFSET = np.int32(1)  # -8 * sum shifted right by 1 is -4 * sum


@function
def _half(total, zero, w, x, ld_x):
    """The 16 rows x 256 columns at w: integers for 32 columns, then floats; the block's scale comes last."""
    sums = zero
    scales, q = w + SCALES, w + QUANTS
    for b in range(8):
        ask_ahead(w + HALF // 8 * b, HALF // 8)
        t, u, v = load_i8x64(q), load_i8x64(q + 64), load_i8x64(q + 128)
        first = tile_splat_i32(zero, x + 8, ld_x)
        second = tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first)
        acc = tile_dot_16(tile_zero_i32(zero), tile_shr(first, OFFSET), field(t, 0, 7), field(t, 3, 7), field(u, 0, 7),
                          field(u, 3, 7), load_i8x16_i32(scales), x + 16, ld_x)  # fmt: skip
        t, u = or_i8(field(t, 6, 3), field(v, 4, 4)), or_i8(field(u, 6, 3), field(v, 5, 4))
        acc = tile_dot_16(acc, tile_shr(second, OFFSET), field(v, 0, 7), field(v, 3, 7), t, u,
                          load_i8x16_i32(scales + 16), x + 32, ld_x)  # fmt: skip
        sums = tile_add_dots(sums, acc, x, ld_x)
        scales += 32
        q += BLOCK32
        x += BLOCK_Q8
    return tile_add_product(total, sums, load_f16x16(w))


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        low = _half(low, zero, w, x, ld_x)
        high = _half(high, zero, w + HALF, x, ld_x)
        w += 2 * HALF
        x += 8 * BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def _scale(src, s):
    """Scale s of a block of the file, -32 .. 31."""
    low = load_u8(src + 96 + s % 8) >> (s // 8 * 4)
    high = load_u8(src + 104 + s % 4) >> (s // 4 * 2)
    return ((low & 15) | ((high & 3) << 4)) - 32


@function
def _quants(src, b, c):
    """Columns 4c .. 4c+3 of the 32 columns b, 0 .. 7, in the bytes of an integer; src is a block of the file."""
    low = load_i32(src + 32 + b // 4 * 32 + 4 * c) >> (b % 4 * 2)
    high = load_i32(src + 4 * c) >> b
    return (low & (3 * ONES)) | ((high & ONES) << 2)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    store_u16(dst + 2 * lane, load_u16(src + 108))
    for s in range(16):
        store_u8(dst + SCALES + 16 * s + lane, np.uint8(_scale(src, s)))
    for b in range(8):
        q = dst + QUANTS + b * BLOCK32 + 4 * lane
        t, u = _quants(src, b, 6), _quants(src, b, 7)
        rest = (t & (3 * ONES), u & (3 * ONES), ((t >> 2) & ONES) | (((u >> 2) & ONES) << 1))
        for j in range(3):
            store_i32(q + 64 * j, _quants(src, b, 2 * j) | (_quants(src, b, 2 * j + 1) << 3) | (rest[j] << 6))


@function
def _quant(q, c):
    """Column c of 32; q is where the row's bytes are in the first vector."""
    j, k, q = c // 8, c % 8 // 4, q + c % 4
    if j < 3:
        return (np.int32(load_u8(q + 64 * j)) >> (3 * k)) & 7
    return (np.int32(load_u8(q + 64 * k)) >> 6) | (((np.int32(load_u8(q + 128)) >> (6 + k)) & 1) << 2)


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        d = load_f16(w + 2 * lane)
        for s in range(16):
            scale = d * np.float32(np.int8(load_u8(w + SCALES + 16 * s + lane)))
            q = w + QUANTS + s // 2 * BLOCK32 + 4 * lane
            for c in range(16):
                store_f32(out + 4 * c, scale * np.float32(_quant(q, s % 2 * 16 + c) - 4))
            out += 64
        w += 2 * HALF


layout_kernels("Q3_K", TILE_16, times, pack_block, unpack_row)
