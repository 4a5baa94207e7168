"""Where the 5-bit values of 32 columns are, for 16 rows. What they mean is their format's.

The vectors of the two halves of a panel take turns (see nibbles.py).

Byte 4r+i of vector j (of 4) has column 4j+i of row r in bits 0-4 and the upper 3 bits of column 16+4j+i in bits 5-7;
the lower 2 are bits 2j and 2j+1 of the fifth vector. `q` is the first vector; for one row, where its bytes are there.
"""

import numpy as np

from qllama.kernels.matmul import function
from qllama.kernels.nibbles import PAIRED
from qllama.simd import field, load_i8x64, load_i32, load_i64, load_u8, or_i8, store_i32

FIVES = 5 * 64  # bytes
FIFTH = 4 * PAIRED
ONES = 0x0101010101010101


@function
def low_fives(q, j):
    """Columns 4j .. 4j+3."""
    return field(load_i8x64(q + PAIRED * j), 0, 31)


@function
def high_fives(q, j):
    """Columns 16+4j .. 16+4j+3."""
    return or_i8(field(load_i8x64(q + PAIRED * j), 3, 28), field(load_i8x64(q + FIFTH), 2 * j, 3))


@function
def pack_fives(q, first, second, third, fourth):
    """One row: its columns by eights, in the bytes of int64."""
    for k, low, high in ((0, first, third), (1, second, fourth)):
        both = low | (((high >> 2) & (7 * ONES)) << 5)
        store_i32(q + 2 * PAIRED * k, np.int32(both))
        store_i32(q + 2 * PAIRED * k + PAIRED, np.int32(both >> 32))
    rest = (third & (3 * ONES)) | ((fourth & (3 * ONES)) << 4)
    store_i32(q + FIFTH, np.int32(rest | (rest >> 30)))


@function
def spread(bits):
    """8 bits, each the lowest of a byte of an int64."""
    bits = (bits | (bits << 28)) & 0x0000000F0000000F
    bits = (bits | (bits << 14)) & 0x0003000300030003
    return (bits | (bits << 7)) & ONES


@function
def _join(nibbles, fifths):
    """The low nibbles of 8 bytes with the low 8 bits of `fifths`, which are spread to bit 4 of each byte."""
    return (nibbles & (15 * ONES)) | (spread(fifths & 255) << 4)


@function
def pack_block_of_32(src, q):
    """One row, from 4 bytes of the file with all fifth bits and 16 bytes of nibbles."""
    fifths, low, high = np.int64(load_i32(src)), load_i64(src + 4), load_i64(src + 12)
    first, second = _join(low, fifths), _join(high, fifths >> 8)
    pack_fives(q, first, second, _join(low >> 4, fifths >> 16), _join(high >> 4, fifths >> 24))


@function
def five(q, c):
    """Column c of one row, int32."""
    j, i = c % 16 // 4, c % 4
    byte, rest = np.int32(load_u8(q + PAIRED * j + i)), np.int32(load_u8(q + FIFTH + i))
    return byte & 31 if c < 16 else (byte >> 5 << 2) | ((rest >> (2 * j)) & 3)
