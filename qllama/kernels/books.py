"""The layouts of IQ1, IQ2 and IQ3, which iq.py packs: w = d * (2 * scale + 1) * book[code], of 8 or 16 integers.

Packed block of 256 columns: the book, 16 bytes four times over, with BIAS added to each; then for each half of 16 rows
16 d f32, 8 x 16 bytes with the scales of 16 columns in the low nibble and of the next 16 in the high one, and 8 times
the codes of 32 columns (threes.py or nibbles.py). A book with each block costs little and makes one kernel do for all.
"""

from typing import Any

import numpy as np

from qllama.jit import inlined
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, product_kernels
from qllama.kernels.nibbles import NIBBLES, first_nibbles, last_nibbles, nibble
from qllama.kernels.threes import THREES, first_threes, last_threes, three
from qllama.kernels.tiles import TILE_16
from qllama.simd import (
    add,
    field_i32,
    fma,
    in_order,
    load_f32,
    load_f32x16,
    load_i8x16_i32,
    load_i8x64,
    load_u8,
    look_up,
    store_f32,
    store_i64,
    tile_dot_small,
    tile_scale,
    tile_shl,
    tile_splat_i32,
    tile_sub_i32,
    to_f32,
)

BOOK, SCALES, CODES = 64, 64, 64 + 8 * 16
BIAS = 64  # makes codes of -63 .. 63 positive and keeps them below 128
OFFSET = np.int32(3)  # -8 * sum to -BIAS * sum


@inlined
def _dots(acc, book, vectors, x, ld_x):
    """16 columns."""
    v0, v1, v2, v3 = vectors
    acc = tile_dot_small(acc, look_up(book, v0), x, ld_x)
    in_order()
    acc = tile_dot_small(acc, look_up(book, v1), x + 4, ld_x)
    in_order()
    acc = tile_dot_small(acc, look_up(book, v2), x + 8, ld_x)
    in_order()
    return tile_dot_small(acc, look_up(book, v3), x + 12, ld_x)


def book_layout(name: str, nbytes: int, first_codes: Any, last_codes: Any, code: Any) -> None:
    """Register the kernels of the layout of `name`: its codes of 32 columns take `nbytes`, and how they are read."""
    half = CODES + 8 * nbytes
    assert LAYOUTS[name].nbytes == BOOK + 2 * half

    @function
    def times_half(total, zero, book, w, x, ld_x):
        """The 16 rows x 256 columns at w. The scales are exact: d has 11 bits and 2 * scale + 1 has 5."""
        d, scales, q = load_f32x16(w), w + SCALES, w + CODES
        twice = add(d, d)
        for _ in range(8):
            ask_ahead(zero, q, nbytes)
            both = load_i8x16_i32(scales)
            first = tile_splat_i32(zero, x + 8, ld_x)
            acc = _dots(tile_shl(first, OFFSET), book, first_codes(q), x + 16, ld_x)
            total = tile_scale(total, acc, fma(to_f32(field_i32(both, 0, 15)), twice, d), x, ld_x)
            last = tile_sub_i32(tile_splat_i32(zero, x + 4, ld_x), first)
            acc = _dots(tile_shl(last, OFFSET), book, last_codes(q), x + 32, ld_x)
            total = tile_scale(total, acc, fma(to_f32(field_i32(both, 4, 15)), twice, d), x, ld_x)
            scales += 16
            q += nbytes
            x += BLOCK_Q8
        return total

    @function
    def times(zero, w, x, ld_x, out, ld_out, n_block, add):
        low, high = zero, zero
        for _ in range(n_block):
            book = load_i8x64(w)
            w += BOOK
            for side in range(2):
                ask_ahead(zero, w + side * half, CODES)
            low = times_half(low, zero, book, w, x, ld_x)
            high = times_half(high, zero, book, w + half, x, ld_x)
            w += 2 * half
            x += 8 * BLOCK_Q8
        finish(low, high, out, ld_out, add)

    @function
    def unpack_row(w, r, out, n_block):
        row, lane = BOOK + r // 16 * half, r % 16
        for _ in range(n_block):
            at = w + row
            d = load_f32(at + 4 * lane)
            for c in range(256):
                scale = (np.int32(load_u8(at + SCALES + c // 32 * 16 + lane)) >> (c % 32 // 16 * 4)) & 15
                value = np.int32(load_u8(w + code(at + CODES + c // 32 * nbytes + 4 * lane, c % 32))) - BIAS
                store_f32(out + 4 * c, d * np.float32(2 * scale + 1) * np.float32(value))
            w += BOOK + 2 * half
            out += 1024

    product_kernels(name, TILE_16, times, unpack_row)


book_layout("IQ2_XXS", THREES, first_threes, last_threes, three)  # and IQ2_XS, IQ2_S, IQ1_S, IQ1_M
book_layout("IQ3_XXS", NIBBLES, first_nibbles, last_nibbles, nibble)  # and IQ3_S


@function
def begin(dst, r, d, book, nbytes):
    """Store row r's d, and with the first row the book, 8 int64; returns where the row's scales and codes go.

    `nbytes`: of the codes of 32 columns.
    """
    if r == 0:
        for k in range(8):
            store_i64(dst + 8 * k, book[k])
    at, lane = dst + BOOK + r // 16 * (CODES + 8 * nbytes), r % 16
    store_f32(at + 4 * lane, d)
    return at + SCALES + lane, at + CODES + 4 * lane
