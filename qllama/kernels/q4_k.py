"""Q4_K: w = d * scale * q - dmin * min, superblocks of 256 with a scale and a minimum per 32 columns.

Packed block: 32 d f16, 32 -dmin f16, then for each 32 columns 32 scales and 32 minima of a byte each (6 bits in the
file) and the nibbles, paired (nibbles.py).
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import NIBBLES, PAIRED, paired_nibble
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

HEAD, SCALES = 2 * 64, 2 * 32  # bytes of a block before its parts, of a part before its quants
PART = SCALES + 2 * NIBBLES
BLOCK = HEAD + 8 * PART
assert LAYOUTS["Q4_K"].nbytes == BLOCK
LOW = np.int32(0x0F0F0F0F)


@function
def scale_half(total, acc, d, dmin, scales, x, ld_x):
    """The float operations of 32 columns of one half panel: the scaled dot product, then the minimum times the sum."""
    total = tile_scale(total, acc, mul(load_i8x16_f32(scales), d), x, ld_x)
    return tile_fma(total, mul(load_i8x16_f32(scales + 32), dmin), x + 12, ld_x)


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        d_low, d_high = load_f16x16(w), load_f16x16(w + 32)
        dmin_low, dmin_high = load_f16x16(w + 64), load_f16x16(w + 96)
        w += HEAD
        for _ in range(8):
            ask_ahead(zero, w, PART)
            at = w + SCALES
            acc_low = tile_zero_i32(zero)
            acc_high = acc_low
            for j in range(4):
                in_order()
                q = x + 16 + 4 * j
                v = load_i8x64(at + PAIRED * j)
                u = load_i8x64(at + PAIRED * j + 64)
                acc_low = tile_dot_small(acc_low, low_nibbles(v), q, ld_x)
                acc_high = tile_dot_small(acc_high, low_nibbles(u), q, ld_x)
                acc_low = tile_dot_small(acc_low, high_nibbles(v), q + 16, ld_x)
                acc_high = tile_dot_small(acc_high, high_nibbles(u), q + 16, ld_x)
            low = scale_half(low, acc_low, d_low, dmin_low, w, x, ld_x)
            high = scale_half(high, acc_high, d_high, dmin_high, w + 16, x, ld_x)
            w += PART
            x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_scales(src, dst, r, part):
    """All but the quants of a block, for one of the 32 rows; `part` is the bytes of 32 columns."""
    store_u16(dst + 2 * r, load_u16(src))
    store_u16(dst + 64 + 2 * r, load_u16(src + 2) ^ np.uint16(0x8000))
    dst += HEAD + r
    for s in range(4):
        scale, least, both = load_u8(src + 4 + s), load_u8(src + 8 + s), load_u8(src + 12 + s)
        store_u8(dst + part * s, scale & 63)
        store_u8(dst + part * s + 32, least & 63)
        store_u8(dst + part * (s + 4), (both & 15) | ((scale >> 6) << 4))
        store_u8(dst + part * (s + 4) + 32, (both >> 4) | ((least >> 6) << 4))


@function
def pack_block(src, dst, r):
    pack_scales(src, dst, r, PART)
    for b in range(8):  # 32 bytes of the file have 32 columns low, and the next 32 high
        at, q = src + 16 + b // 2 * 32, dst + HEAD + b * PART + SCALES + 4 * r
        for j in range(4):
            first = (load_i32(at + 4 * j) >> (b % 2 * 4)) & LOW
            second = (load_i32(at + 16 + 4 * j) >> (b % 2 * 4)) & LOW
            store_i32(q + PAIRED * j, first | (second << 4))


@function
def unpack_scales(w, r, at):
    """d * scale and -dmin * min of row r of the block at w and its part at `at`."""
    d = load_f16(w + 2 * r) * np.float32(load_u8(at + r))
    return d, load_f16(w + 64 + 2 * r) * np.float32(load_u8(at + 32 + r))


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        for b in range(8):
            at = w + HEAD + b * PART
            d, least = unpack_scales(w, r, at)
            for c in range(32):
                store_f32(out + 4 * c, d * np.float32(paired_nibble(at + SCALES + 4 * r, c)) + least)
            out += 128
        w += BLOCK


layout_kernels("Q4_K", TILE, times, pack_block, unpack_row)
