"""Q2_K: w = d * scale * q - dmin * min, superblocks of 256 with a 4-bit scale and a 4-bit minimum per 16 columns.

Packed block: for each half of 16 rows, 16 d f16, 16 dmin f16, for each 16 columns 16 bytes of scale (low nibble) and
minimum (high), then for each 16 columns a vector: bits 2k and 2k+1 of byte 4r+i belong to column 4k+i of row r.
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE_16
from qllama.simd import (
    field,
    field_i32,
    load_f16,
    load_f16x16,
    load_i8x16_i32,
    load_i8x64,
    load_i32,
    load_u8,
    load_u16,
    mul,
    splat_f32,
    store_f32,
    store_i32,
    store_u8,
    store_u16,
    tile_add_dots,
    tile_add_product,
    tile_dot_16,
    tile_mad_short,
    tile_splat_i32,
    tile_sub_i32,
    tile_zero_i32,
)

DMIN, SCALES, QUANTS = 32, 64, 64 + 256
HALF = QUANTS + 16 * 64
assert LAYOUTS["Q2_K"].nbytes == 2 * HALF
EIGHTH = np.float32(0.125)  # minima are multiplied by -8 * sum


@function
def _half(total, zero, w, x, ld_x):
    """The 16 rows x 256 columns at w: integers for 32 columns, then floats; the block's scales come last."""
    sums, mins, none = zero, zero, tile_zero_i32(zero)
    scales, q = w + SCALES, w + QUANTS
    for b in range(8):
        ask_ahead(zero, w + HALF // 8 * b, HALF // 8)
        v, s = load_i8x64(q), load_i8x16_i32(scales)
        u, t = load_i8x64(q + 64), load_i8x16_i32(scales + 16)
        acc = tile_dot_16(none, none, field(v, 0, 3), field(v, 2, 3), field(v, 4, 3), field(v, 6, 3),
                          field_i32(s, 0, 15), x + 16, ld_x)  # fmt: skip
        acc = tile_dot_16(acc, none, field(u, 0, 3), field(u, 2, 3), field(u, 4, 3), field(u, 6, 3),
                          field_i32(t, 0, 15), x + 32, ld_x)  # fmt: skip
        sums = tile_add_dots(sums, acc, x, ld_x)
        first = tile_splat_i32(zero, x + 8, ld_x)
        second = tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first)
        acc = tile_mad_short(tile_mad_short(none, first, field_i32(s, 4, 15)), second, field_i32(t, 4, 15))
        mins = tile_add_dots(mins, acc, x, ld_x)
        scales += 32
        q += 128
        x += BLOCK_Q8
    total = tile_add_product(total, sums, load_f16x16(w))
    return tile_add_product(total, mins, mul(load_f16x16(w + DMIN), splat_f32(EIGHTH)))


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
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    store_u16(dst + 2 * lane, load_u16(src + 80))
    store_u16(dst + DMIN + 2 * lane, load_u16(src + 82))
    for s in range(16):
        store_u8(dst + SCALES + 16 * s + lane, load_u8(src + s))
        at = src + 16 + s // 8 * 32 + s % 2 * 16  # 16 bytes of the file have 16 columns in each of 4 fields
        word = np.int64(0)
        for k in range(4):
            word |= ((load_i32(at + 4 * k) >> (s % 8 // 2 * 2)) & 0x03030303) << (2 * k)
        store_i32(dst + QUANTS + 64 * s + 4 * lane, word)


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        d, dmin = load_f16(w + 2 * lane), load_f16(w + DMIN + 2 * lane)
        for s in range(16):
            both, q = np.int32(load_u8(w + SCALES + 16 * s + lane)), w + QUANTS + 64 * s + 4 * lane
            scale, least = d * np.float32(both & 15), dmin * np.float32(both >> 4)
            for c in range(16):
                byte = np.int32(load_u8(q + c % 4))
                store_f32(out + 4 * c, scale * np.float32((byte >> (c // 4 * 2)) & 3) - least)
            out += 64
        w += 2 * HALF


layout_kernels("Q2_K", TILE_16, times, pack_block, unpack_row)
