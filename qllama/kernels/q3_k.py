"""Q3_K: w = d * scale * (q - 4), superblocks of 256 with a 6-bit signed scale per 16 columns.

Packed block: for each half of 16 rows, 16 d f16, 16 x 16 scales int8, then 8 times the 3 bits of 32 columns
(threes.py).
"""

import numpy as np

from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.threes import ONES, THREES, first_threes, last_threes, pack_threes, three
from qllama.kernels.tiles import TILE_16
from qllama.simd import (
    load_f16,
    load_f16x16,
    load_i8x16_i32,
    load_i64,
    load_u8,
    load_u16,
    store_f32,
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

SCALES, QUANTS = 32, 32 + 256
HALF = QUANTS + 8 * THREES
assert LAYOUTS["Q3_K"].nbytes == 2 * HALF
OFFSET = np.int32(1)  # -8 * sum shifted right by 1 is -4 * sum


@function
def _half(total, zero, w, x, ld_x):
    """The 16 rows x 256 columns at w: integers for 32 columns, then floats; the block's scale comes last."""
    sums = zero
    scales, q = w + SCALES, w + QUANTS
    for b in range(8):
        ask_ahead(zero, w + HALF // 8 * b, HALF // 8)
        first = tile_splat_i32(zero, x + 8, ld_x)
        second = tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first)
        t, u, v, s = first_threes(q)
        acc = tile_dot_16(
            tile_zero_i32(zero), tile_shr(first, OFFSET), t, u, v, s, load_i8x16_i32(scales), x + 16, ld_x
        )
        t, u, v, s = last_threes(q)
        acc = tile_dot_16(acc, tile_shr(second, OFFSET), t, u, v, s, load_i8x16_i32(scales + 16), x + 32, ld_x)
        sums = tile_add_dots(sums, acc, x, ld_x)
        scales += 32
        q += THREES
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
def _quants(src, b, k):
    """Columns 8k .. 8k+7 of the 32 columns b, 0 .. 7, in the bytes of an int64; src is a block of the file."""
    low = load_i64(src + 32 + b // 4 * 32 + 8 * k) >> (b % 4 * 2)
    high = load_i64(src + 8 * k) >> b
    return (low & (3 * ONES)) | ((high & ONES) << 2)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    store_u16(dst + 2 * lane, load_u16(src + 108))
    for s in range(16):
        store_u8(dst + SCALES + 16 * s + lane, np.uint8(_scale(src, s)))
    for b in range(8):
        q = dst + QUANTS + b * THREES + 4 * lane
        pack_threes(q, _quants(src, b, 0), _quants(src, b, 1), _quants(src, b, 2), _quants(src, b, 3))


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        d = load_f16(w + 2 * lane)
        for s in range(16):
            scale = d * np.float32(np.int8(load_u8(w + SCALES + 16 * s + lane)))
            q = w + QUANTS + s // 2 * THREES + 4 * lane
            for c in range(16):
                store_f32(out + 4 * c, scale * np.float32(three(q, s % 2 * 16 + c) - 4))
            out += 64
        w += 2 * HALF


layout_kernels("Q3_K", TILE_16, times, pack_block, unpack_row)
