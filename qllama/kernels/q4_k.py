"""Q4_K: w = d * scale * q - dmin * min, superblocks of 256 with a scale and a minimum per 32 columns.

Packed block: for each half of 16 rows, 16 d f16, 16 -dmin f16, then for each 32 columns 16 scales and 16 minima of a
byte each (6 bits in the file), then for each 32 columns 4 vectors of nibbles (as Q4_0's).
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE
from qllama.simd import (
    high_nibbles,
    in_order,
    load_f16,
    load_f16x16,
    load_i8x16_f32,
    load_i8x64,
    load_i32,
    load_u8,
    load_u16,
    low_nibbles,
    mul,
    store_f32,
    store_i32,
    store_u8,
    store_u16,
    tile_dot_small,
    tile_fma,
    tile_scale,
    tile_zero_i32,
)

SCALES, QUANTS, BLOCK32 = 64, 64 + 8 * 32, 4 * 64
HALF = QUANTS + 8 * BLOCK32
assert LAYOUTS["Q4_K"].nbytes == 2 * HALF
NIBBLES = np.int32(0x0F0F0F0F)


@function
def scale_half(total, acc, d, dmin, scales, x, ld_x):
    """The float operations of 32 columns of one half panel: the scaled dot product, then the minimum times the sum."""
    total = tile_scale(total, acc, mul(load_i8x16_f32(scales), d), x, ld_x)
    return tile_fma(total, mul(load_i8x16_f32(scales + 16), dmin), x + 12, ld_x)


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
            for j in range(4):
                in_order()
                q = x + 16 + 4 * j
                v = load_i8x64(at + 64 * j)
                u = load_i8x64(at + HALF + 64 * j)
                acc_low = tile_dot_small(acc_low, low_nibbles(v), q, ld_x)
                acc_high = tile_dot_small(acc_high, low_nibbles(u), q, ld_x)
                acc_low = tile_dot_small(acc_low, high_nibbles(v), q + 16, ld_x)
                acc_high = tile_dot_small(acc_high, high_nibbles(u), q + 16, ld_x)
            low = scale_half(low, acc_low, d_low, dmin_low, scales, x, ld_x)
            high = scale_half(high, acc_high, d_high, dmin_high, scales + HALF, x, ld_x)
            scales += 32
            at += BLOCK32
            x += BLOCK_Q8
        w += 2 * HALF
    finish(low, high, out, ld_out, add)


@function
def pack_scales(src, dst, lane):
    """All that precedes the quants of a block, for one of the 16 rows."""
    store_u16(dst + 2 * lane, load_u16(src))
    store_u16(dst + 32 + 2 * lane, load_u16(src + 2) ^ np.uint16(0x8000))
    dst += SCALES + lane
    for s in range(4):
        scale, least, both = load_u8(src + 4 + s), load_u8(src + 8 + s), load_u8(src + 12 + s)
        store_u8(dst + 32 * s, scale & 63)
        store_u8(dst + 32 * s + 16, least & 63)
        store_u8(dst + 32 * s + 128, (both & 15) | ((scale >> 6) << 4))
        store_u8(dst + 32 * s + 144, (both >> 4) | ((least >> 6) << 4))


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    pack_scales(src, dst, lane)
    for b in range(8):  # 32 bytes of the file have 32 columns low, and the next 32 high
        at, q = src + 16 + b // 2 * 32, dst + QUANTS + b * BLOCK32 + 4 * lane
        for j in range(4):
            first = (load_i32(at + 4 * j) >> (b % 2 * 4)) & NIBBLES
            second = (load_i32(at + 16 + 4 * j) >> (b % 2 * 4)) & NIBBLES
            store_i32(q + 64 * j, first | (second << 4))


@function
def unpack_scales(w, lane, b):
    """d * scale and -dmin * min of the 32 columns b."""
    scales = w + SCALES + 32 * b + lane
    d = load_f16(w + 2 * lane) * np.float32(load_u8(scales))
    return d, load_f16(w + 32 + 2 * lane) * np.float32(load_u8(scales + 16))


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        for b in range(8):
            d, least = unpack_scales(w, lane, b)
            q = w + QUANTS + b * BLOCK32 + 4 * lane
            for c in range(32):
                byte = np.int32(load_u8(q + c % 16 // 4 * 64 + c % 4))
                store_f32(out + 4 * c, d * np.float32((byte >> (c // 16 * 4)) & 15) + least)
            out += 128
        w += 2 * HALF


layout_kernels("Q4_K", TILE, times, pack_block, unpack_row)
