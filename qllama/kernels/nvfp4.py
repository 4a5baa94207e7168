"""NVFP4: w = d * E2M1[q], blocks of 64 with a scale of 8 bits (half of an E4M3) per 16 columns.

Packed block: for each half of 16 rows, 4 x 16 scales, then 2 times the nibbles of 32 columns (nibbles.py).
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.iq4 import E2M1, E2M1_OFFSET, e2m1_codes
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import NIBBLES, nibble, pack_codes
from qllama.kernels.tiles import TILE
from qllama.simd import (
    high_nibbles,
    in_order,
    load_e4m3,
    load_e4m3x16,
    load_i8x64,
    load_i64,
    load_u8,
    low_nibbles,
    store_f32,
    store_u8,
    tile_dot_small,
    tile_scale,
    tile_shl,
    tile_splat_i32,
    tile_sub_i32,
)

QUANTS = 4 * 16
HALF = QUANTS + 2 * NIBBLES
assert LAYOUTS["NVFP4"].nbytes == 2 * HALF
LOW = 0x0F0F0F0F0F0F0F0F


@inlined
def _dots(acc_low, acc_high, at, x, ld_x, second):
    """16 of 32 columns of both half panels."""
    for j in range(4):
        in_order()
        v, u = load_i8x64(at + 64 * j), load_i8x64(at + HALF + 64 * j)
        v, u = (high_nibbles(v), high_nibbles(u)) if second else (low_nibbles(v), low_nibbles(u))
        acc_low = tile_dot_small(acc_low, e2m1_codes(v), x + 16 + 16 * second + 4 * j, ld_x)
        acc_high = tile_dot_small(acc_high, e2m1_codes(u), x + 16 + 16 * second + 4 * j, ld_x)
    return acc_low, acc_high


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, 2 * HALF)
        scale, at = w, w + QUANTS
        for _ in range(2):
            first = tile_splat_i32(zero, x + 8, ld_x)
            start = tile_shl(first, E2M1_OFFSET)
            sum_low, sum_high = _dots(start, start, at, x, ld_x, 0)
            low = tile_scale(low, sum_low, load_e4m3x16(scale), x, ld_x)
            high = tile_scale(high, sum_high, load_e4m3x16(scale + HALF), x, ld_x)
            start = tile_shl(tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first), E2M1_OFFSET)
            sum_low, sum_high = _dots(start, start, at, x, ld_x, 1)
            low = tile_scale(low, sum_low, load_e4m3x16(scale + 16), x, ld_x)
            high = tile_scale(high, sum_high, load_e4m3x16(scale + HALF + 16), x, ld_x)
            scale += 32
            at += NIBBLES
            x += BLOCK_Q8
        w += 2 * HALF
    finish(low, high, out, ld_out, add)


@function
def pack_block(src, dst, r):
    dst += r // 16 * HALF
    lane = r % 16
    for s in range(4):
        e = load_u8(src + s)
        store_u8(dst + 16 * s + lane, np.uint8(0 if e == 0x7F else e & 0x7F))  # 0x7F is no number: zero
    for b in range(2):
        one, two = load_i64(src + 4 + 16 * b), load_i64(src + 12 + 16 * b)  # 16 columns each, 0-7 in the low nibbles
        pack_codes(dst + QUANTS + b * NIBBLES + 4 * lane, one & LOW, (one >> 4) & LOW, two & LOW, (two >> 4) & LOW)


@function
def unpack_row(w, r, out, n_block):
    w += r // 16 * HALF
    lane = r % 16
    for _ in range(n_block):
        for c in range(64):
            d = load_e4m3(w + c // 16 * 16 + lane)
            code = E2M1[nibble(w + QUANTS + c // 32 * NIBBLES + 4 * lane, c % 32)]
            store_f32(out + 4 * c, d * np.float32(code))
        w += 2 * HALF
        out += 256


layout_kernels("NVFP4", TILE, times, pack_block, unpack_row)
