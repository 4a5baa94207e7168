"""The layout of IQ1, IQ2 and IQ3, which iq.py packs: w = d * scale * book[code], 4 bits that index 16 integers.

Packed block of 256 columns: the book, 16 bytes four times over, with BIAS added to each; then for each half of 16 rows
16 d f32, 16 x 16 scales int8, and 8 times the nibbles of 32 columns (nibbles.py). A book with each block costs little
and makes one kernel do for all.
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, product_kernels
from qllama.kernels.nibbles import NIBBLES, nibble
from qllama.kernels.tiles import TILE
from qllama.simd import (
    high_nibbles,
    in_order,
    load_f32,
    load_f32x16,
    load_i8x16_f32,
    load_i8x64,
    load_u8,
    look_up,
    low_nibbles,
    mul,
    store_f32,
    store_i64,
    tile_dot_small,
    tile_scale,
    tile_shl,
    tile_splat_i32,
    tile_sub_i32,
)

BOOK, SCALES, QUANTS = 64, 64, 64 + 16 * 16
HALF = QUANTS + 8 * NIBBLES
BLOCK = BOOK + 2 * HALF
assert all(layout.nbytes == BLOCK for layout in LAYOUTS.values() if layout.kernels == "books")
BIAS = 64  # makes codes of -63 .. 63 positive and keeps them below 128
OFFSET = np.int32(3)  # -8 * sum to -BIAS * sum


@inlined
def _dots(acc_low, acc_high, book, at, x, ld_x, second):
    """16 of 32 columns of both half panels."""
    for j in range(4):
        in_order()
        v, u = load_i8x64(at + 64 * j), load_i8x64(at + HALF + 64 * j)
        v, u = (high_nibbles(v), high_nibbles(u)) if second else (low_nibbles(v), low_nibbles(u))
        acc_low = tile_dot_small(acc_low, look_up(book, v), x + 16 + 16 * second + 4 * j, ld_x)
        acc_high = tile_dot_small(acc_high, look_up(book, u), x + 16 + 16 * second + 4 * j, ld_x)
    return acc_low, acc_high


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(w, BOOK + QUANTS)
        ask_ahead(w + BOOK + HALF, QUANTS)
        book = load_i8x64(w)
        w += BOOK
        d_low, d_high = load_f32x16(w), load_f32x16(w + HALF)
        scale, at = w + SCALES, w + QUANTS
        for _ in range(8):
            ask_ahead(at, NIBBLES)
            ask_ahead(at + HALF, NIBBLES)
            first = tile_splat_i32(zero, x + 8, ld_x)
            start = tile_shl(first, OFFSET)
            sum_low, sum_high = _dots(start, start, book, at, x, ld_x, 0)
            low = tile_scale(low, sum_low, mul(load_i8x16_f32(scale), d_low), x, ld_x)
            high = tile_scale(high, sum_high, mul(load_i8x16_f32(scale + HALF), d_high), x, ld_x)
            start = tile_shl(tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first), OFFSET)
            sum_low, sum_high = _dots(start, start, book, at, x, ld_x, 1)
            low = tile_scale(low, sum_low, mul(load_i8x16_f32(scale + 16), d_low), x, ld_x)
            high = tile_scale(high, sum_high, mul(load_i8x16_f32(scale + HALF + 16), d_high), x, ld_x)
            scale += 32
            at += NIBBLES
            x += BLOCK_Q8
        w += 2 * HALF
    finish(low, high, out, ld_out, add)


@function
def unpack_row(w, r, out, n_block):
    row, lane = BOOK + r // 16 * HALF, r % 16
    for _ in range(n_block):
        at = w + row
        d = load_f32(at + 4 * lane)
        for c in range(256):
            scale = np.float32(np.int8(load_u8(at + SCALES + c // 16 * 16 + lane)))
            code = load_u8(w + nibble(at + QUANTS + c // 32 * NIBBLES + 4 * lane, c % 32))
            store_f32(out + 4 * c, d * scale * np.float32(np.int32(code) - BIAS))
        w += BLOCK
        out += 1024


@function
def begin(dst, r, d, book):
    """Store row r's d, and with the first row the book, 8 int64; returns where the row's scales and nibbles go."""
    if r == 0:
        for k in range(8):
            store_i64(dst + 8 * k, book[k])
    at, lane = dst + BOOK + r // 16 * HALF, r % 16
    store_f32(at + 4 * lane, d)
    return at + SCALES + lane, at + QUANTS + 4 * lane


product_kernels("IQ2_XXS", TILE, times, unpack_row)  # or any other of the types
