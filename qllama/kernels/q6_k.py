"""Q6_K: w = d * scale * (q - 32), superblocks of 256 with an int8 scale per 16 columns.

Packed block: 32 d f16, then for each 32 columns 2 x 32 scales int8 and 6 vectors, paired (nibbles.py). Byte 4r+i of
vector j < 4 has column 4j+i of row r in bits 0-5 and the upper 2 bits of column 16+4j+i in bits 6-7; the lower 4 are in
vectors 4 (j = 0 low, 1 high) and 5 (j = 2 low, 3 high).
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import PAIRED
from qllama.kernels.tiles import BY_HALVES, TILE
from qllama.simd import (
    field,
    in_order,
    load_f16,
    load_f16x16,
    load_i8x16_f32,
    load_i8x64,
    load_i64,
    load_u8,
    load_u16,
    mul,
    or_i8,
    store_f32,
    store_i32,
    store_u8,
    store_u16,
    tile_dot_small,
    tile_scale_pair,
    tile_shl,
    tile_splat_i32,
    tile_sub_i32,
)

HEAD, SCALES, REST = 64, 2 * 32, 4 * PAIRED  # REST: from the first vector to the fifth
PART = SCALES + 6 * PAIRED
BLOCK = HEAD + 8 * PART
assert LAYOUTS["Q6_K"].nbytes == BLOCK
ONES = 0x0101010101010101
OFFSET = np.int32(2)  # -8 * sum shifted by 2 is -32 * sum


@(inlined if BY_HALVES else function)  # inlined, both halves do not fit the registers of x86
def _dots(acc_low, acc_high, at, x, ld_x, second):
    """16 of 32 columns of both half panels."""
    for j in range(4):
        in_order()
        v, u = load_i8x64(at + PAIRED * j), load_i8x64(at + PAIRED * j + 64)
        if second:
            k = REST + PAIRED * (j // 2)
            v = or_i8(field(v, 2, 48), field(load_i8x64(at + k), 4 * (j % 2), 15))
            u = or_i8(field(u, 2, 48), field(load_i8x64(at + k + 64), 4 * (j % 2), 15))
        else:
            v, u = field(v, 0, 63), field(u, 0, 63)
        q = x + 16 + 16 * second + 4 * j
        acc_low, acc_high = tile_dot_small(acc_low, v, q, ld_x), tile_dot_small(acc_high, u, q, ld_x)
    return acc_low, acc_high


@function
def _scale(total, acc_0, acc_1, d, scale, x, ld_x):
    s_0, s_1 = mul(load_i8x16_f32(scale), d), mul(load_i8x16_f32(scale + 32), d)
    return tile_scale_pair(total, acc_0, s_0, acc_1, s_1, x, ld_x)


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        d_low, d_high = load_f16x16(w), load_f16x16(w + 32)
        w += HEAD
        for _ in range(8):
            ask_ahead(zero, w, PART)
            at = w + SCALES
            first = tile_splat_i32(zero, x + 8, ld_x)
            start = tile_shl(first, OFFSET)
            low_0, high_0 = _dots(start, start, at, x, ld_x, 0)
            start = tile_shl(tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first), OFFSET)
            low_1, high_1 = _dots(start, start, at, x, ld_x, 1)
            low = _scale(low, low_0, low_1, d_low, w, x, ld_x)
            high = _scale(high, high_0, high_1, d_high, w + 16, x, ld_x)
            w += PART
            x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def _quants(src, b, k):
    """Columns 8k .. 8k+7 of the 32 columns b, in the bytes of an int64; src is a block of the file."""
    nibbles = load_i64(src + b // 4 * 64 + b % 2 * 32 + 8 * k) >> (b % 4 // 2 * 4)
    upper = load_i64(src + 128 + b // 4 * 32 + 8 * k) >> (b % 4 * 2)
    return (nibbles & (15 * ONES)) | ((upper & (3 * ONES)) << 4)


@function
def pack_block(src, dst, r):
    store_u16(dst + 2 * r, load_u16(src + 208))
    for s in range(16):
        store_u8(dst + HEAD + s // 2 * PART + s % 2 * 32 + r, load_u8(src + 192 + s))
    for b in range(8):
        q = dst + HEAD + b * PART + SCALES + 4 * r
        for k in range(2):  # two vectors at a time
            first, second = _quants(src, b, k), _quants(src, b, k + 2)
            both, rest = first | (((second >> 4) & (3 * ONES)) << 6), second & (15 * ONES)
            store_i32(q + 2 * PAIRED * k, np.int32(both))
            store_i32(q + 2 * PAIRED * k + PAIRED, np.int32(both >> 32))
            store_i32(q + REST + PAIRED * k, np.int32(rest | (rest >> 28)))


@function
def _quant(q, c):
    """Column c of 32; q is where the row's bytes are in the first vector."""
    j, i = c % 16 // 4, c % 4
    byte, rest = np.int32(load_u8(q + PAIRED * j + i)), np.int32(load_u8(q + REST + PAIRED * (j // 2) + i))
    return byte & 63 if c < 16 else (byte >> 6 << 4) | ((rest >> (j % 2 * 4)) & 15)


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        d = load_f16(w + 2 * r)
        for s in range(16):
            part = w + HEAD + s // 2 * PART
            scale = d * np.float32(np.int8(load_u8(part + s % 2 * 32 + r)))
            q = part + SCALES + 4 * r
            for c in range(16):
                store_f32(out + 4 * c, scale * np.float32(_quant(q, s % 2 * 16 + c) - 32))
            out += 64
        w += BLOCK


layout_kernels("Q6_K", TILE, times, pack_block, unpack_row)
