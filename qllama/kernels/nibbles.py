"""Where the 4-bit values of 32 columns are, for 16 rows. What they mean is their format's.

The vectors of 16 rows follow each other, or they take turns with those of a panel's other half (paired): what a matmul
reads then lies in the order in which it reads, and the hardware fetches it ahead.

Byte 4r+i of vector j (of 4) has columns 4j+i (low nibble) and 16+4j+i (high nibble) of row r: the bytes of a block
of 32 in the file, in their order. `q` is the first vector; for one row, where its bytes are there.
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.matmul import function
from qllama.simd import high_nibbles, load_i8x64, load_i32, load_u8, low_nibbles, store_i32

NIBBLES = 4 * 64  # bytes
PAIRED = 128  # from a vector to the next of the same half


@inlined
def _vectors(q):
    return load_i8x64(q), load_i8x64(q + 64), load_i8x64(q + 128), load_i8x64(q + 192)


@inlined
def first_nibbles(q):
    """Columns 0-15: four vectors."""
    t, u, v, w = _vectors(q)
    return low_nibbles(t), low_nibbles(u), low_nibbles(v), low_nibbles(w)


@inlined
def last_nibbles(q):
    """Columns 16-31: four vectors."""
    t, u, v, w = _vectors(q)
    return high_nibbles(t), high_nibbles(u), high_nibbles(v), high_nibbles(w)


@function
def pack_paired(src, q):
    """One row, from 16 bytes of the file, paired."""
    for j in range(4):
        store_i32(q + PAIRED * j, load_i32(src + 4 * j))


@function
def pack_codes(q, first, second, third, fourth):
    """One row: its columns by eights, in the bytes of int64."""
    for k, low, high in ((0, first, third), (1, second, fourth)):
        both = low | (high << 4)
        store_i32(q + 128 * k, np.int32(both))
        store_i32(q + 128 * k + 64, np.int32(both >> 32))


@function
def nibble(q, c):
    """Column c of one row, int32."""
    byte = np.int32(load_u8(q + c % 16 // 4 * 64 + c % 4))
    return (byte >> (c // 16 * 4)) & 15


@function
def paired_nibble(q, c):
    """The same where vectors are paired."""
    byte = np.int32(load_u8(q + c % 16 // 4 * PAIRED + c % 4))
    return (byte >> (c // 16 * 4)) & 15
