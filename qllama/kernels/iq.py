"""Packing IQ1, IQ2 and IQ3 into the layouts of books.py: what a code of the file stands for, value by value.

A value has 3 bits in IQ1 and IQ2, 4 in IQ3: the lower are the level, a digit of a format's grid (grids.py), the highest
is the sign, or in IQ1 the shift.
"""

import numpy as np

from qllama import grids
from qllama.kernels.books import BIAS, begin
from qllama.kernels.fives import spread
from qllama.kernels.matmul import function, pack_kernel
from qllama.kernels.nibbles import NIBBLES, pack_codes
from qllama.kernels.threes import THREES, pack_threes
from qllama.simd import load_f16, load_i32, load_u8, load_u16, store_u8, store_u16


def _book(positive, negative, sign):
    """64 bytes, as 8 int64: the integer of each code, BIAS added, four times over; `sign` is the code's highest bit."""
    book = np.full(16, BIAS, np.int8)
    book[: len(positive)] += positive
    book[sign : sign + len(negative)] += negative
    return np.tile(book, 4).view(np.int64)


def _vectors(grid):
    """(n_codes,) int64: the levels of 8 columns, or in the lower half of 4, a byte each."""
    levels = np.zeros((len(grid.digits), 8), np.uint8)
    levels[:, : grid.digits.shape[1]] = grid.digits
    return levels.view("<i8")[:, 0].astype(np.int64)


BOOK_1 = _book(8 * grids.IQ1_S.levels + 1, 8 * grids.IQ1_S.levels - 1, 4)  # in eighths
BOOK_2 = _book(grids.IQ2_S.levels, -grids.IQ2_S.levels, 4)
BOOK_3_XXS = _book(grids.IQ3_XXS.levels, -grids.IQ3_XXS.levels, 8)
BOOK_3_S = _book(grids.IQ3_S.levels, -grids.IQ3_S.levels, 8)
IQ1, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S = map(
    _vectors, (grids.IQ1_S, grids.IQ2_XXS, grids.IQ2_XS, grids.IQ2_S, grids.IQ3_XXS, grids.IQ3_S)
)
EIGHTH, QUARTER = np.float32(0.125), np.float32(0.25)
SHIFTED = 0x0404040404040404


@function
def _byte(at):
    return np.int64(load_u8(at))


@function
def _word(at):
    return np.int64(load_i32(at)) & 0xFFFFFFFF


@function
def _even(seven):
    """8 signs from 7: the last makes the number of minuses even. Each in a byte of an int64."""
    odd = seven ^ (seven >> 4)
    odd ^= odd >> 2
    odd ^= odd >> 1
    return spread(seven | ((odd & 1) << 7))


# ---- IQ2


@function
def _iq2_xxs(at, k):
    """Columns 8k .. 8k+7 of 32; at is where the file has them."""
    return IQ2_XXS[_byte(at + k)] | (_even((_word(at + 4) >> (7 * k)) & 127) << 2)


@function
def pack_iq2_xxs(src, dst, r):
    scales, q = begin(dst, r, load_f16(src) * EIGHTH, BOOK_2, THREES)
    for b in range(8):
        at = src + 2 + 8 * b
        store_u8(scales + 16 * b, np.uint8((_word(at + 4) >> 28) * 17))  # the same for both 16 columns
        pack_threes(q + b * THREES, _iq2_xxs(at, 0), _iq2_xxs(at, 1), _iq2_xxs(at, 2), _iq2_xxs(at, 3))


@function
def _iq2_xs(at):
    word = np.int64(load_u16(at))
    return IQ2_XS[word & 511] | (_even(word >> 9) << 2)


@function
def pack_iq2_xs(src, dst, r):
    scales, q = begin(dst, r, load_f16(src) * EIGHTH, BOOK_2, THREES)
    for b in range(8):
        at = src + 2 + 8 * b
        store_u8(scales + 16 * b, load_u8(src + 66 + b))
        pack_threes(q + b * THREES, _iq2_xs(at), _iq2_xs(at + 2), _iq2_xs(at + 4), _iq2_xs(at + 6))


@function
def _iq2_s(src, b, k):
    """Columns 8k .. 8k+7 of the 32 columns b."""
    code = _byte(src + 2 + 4 * b + k) | (((_byte(src + 66 + b) >> (2 * k)) & 3) << 8)
    return IQ2_S[code] | (spread(_byte(src + 34 + 4 * b + k)) << 2)


@function
def pack_iq2_s(src, dst, r):
    scales, q = begin(dst, r, load_f16(src) * EIGHTH, BOOK_2, THREES)
    for b in range(8):
        store_u8(scales + 16 * b, load_u8(src + 74 + b))
        pack_threes(q + b * THREES, _iq2_s(src, b, 0), _iq2_s(src, b, 1), _iq2_s(src, b, 2), _iq2_s(src, b, 3))


# ---- IQ3


@function
def _iq3_xxs(src, b, k):
    at = src + 2 + 8 * b + 2 * k
    signs = (_word(src + 66 + 4 * b) >> (7 * k)) & 127
    return IQ3_XXS[_byte(at)] | (IQ3_XXS[_byte(at + 1)] << 32) | (_even(signs) << 3)


@function
def pack_iq3_xxs(src, dst, r):
    scales, q = begin(dst, r, load_f16(src) * QUARTER, BOOK_3_XXS, NIBBLES)
    for b in range(8):
        store_u8(scales + 16 * b, np.uint8((_word(src + 66 + 4 * b) >> 28) * 17))
        pack_codes(q + b * NIBBLES, _iq3_xxs(src, b, 0), _iq3_xxs(src, b, 1), _iq3_xxs(src, b, 2), _iq3_xxs(src, b, 3))


@function
def _iq3_s(src, b, k):
    at, high = src + 2 + 8 * b + 2 * k, _byte(src + 66 + b) >> (2 * k)
    first, second = _byte(at) | ((high & 1) << 8), _byte(at + 1) | ((high & 2) << 7)
    return IQ3_S[first] | (IQ3_S[second] << 32) | (spread(_byte(src + 74 + 4 * b + k)) << 3)


@function
def pack_iq3_s(src, dst, r):
    scales, q = begin(dst, r, load_f16(src), BOOK_3_S, NIBBLES)
    for b in range(8):
        store_u8(scales + 16 * b, np.uint8(((_byte(src + 106 + b // 2) >> (b % 2 * 4)) & 15) * 17))
        pack_codes(q + b * NIBBLES, _iq3_s(src, b, 0), _iq3_s(src, b, 1), _iq3_s(src, b, 2), _iq3_s(src, b, 3))


# ---- IQ1


@function
def _iq1_s(src, b, k):
    high = np.int64(load_u16(src + 34 + 2 * b))
    shift = SHIFTED if high & 0x8000 else 0
    return IQ1[_byte(src + 2 + 4 * b + k) | (((high >> (3 * k)) & 7) << 8)] | shift


@function
def pack_iq1_s(src, dst, r):
    scales, q = begin(dst, r, load_f16(src) * EIGHTH, BOOK_1, THREES)
    for b in range(8):
        store_u8(scales + 16 * b, np.uint8(((np.int64(load_u16(src + 34 + 2 * b)) >> 12) & 7) * 17))
        pack_threes(q + b * THREES, _iq1_s(src, b, 0), _iq1_s(src, b, 1), _iq1_s(src, b, 2), _iq1_s(src, b, 3))


@function
def _iq1_m(src, b, k):
    high = _byte(src + 32 + 2 * b + k // 2) >> (k % 2 * 4)
    shift = SHIFTED if high & 8 else 0
    return IQ1[_byte(src + 4 * b + k) | ((high & 7) << 8)] | shift


@function
def pack_iq1_m(src, dst, r):
    half = np.int64(0)
    for k in range(4):  # the scale's nibbles are the highest of four words
        half |= (np.int64(load_u16(src + 48 + 2 * k)) >> 12) << (4 * k)
    scales, q = begin(dst, r, np.float32(0), BOOK_1, THREES)
    store_u16(q, np.uint16(half))  # where the first codes will be, to be read as a float
    begin(dst, r, load_f16(q) * EIGHTH, BOOK_1, THREES)
    for b in range(8):
        both = np.int64(load_u16(src + 48 + b // 2 * 2)) >> (b % 2 * 6)
        store_u8(scales + 16 * b, np.uint8((both & 7) | ((both & 56) << 1)))
        pack_threes(q + b * THREES, _iq1_m(src, b, 0), _iq1_m(src, b, 1), _iq1_m(src, b, 2), _iq1_m(src, b, 3))


pack_kernel("IQ2_XXS", pack_iq2_xxs)
pack_kernel("IQ2_XS", pack_iq2_xs)
pack_kernel("IQ2_S", pack_iq2_s)
pack_kernel("IQ3_XXS", pack_iq3_xxs)
pack_kernel("IQ3_S", pack_iq3_s)
pack_kernel("IQ1_S", pack_iq1_s)
pack_kernel("IQ1_M", pack_iq1_m)
