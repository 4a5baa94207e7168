"""Where the 3-bit values of 32 columns are, for 16 rows. What they mean is their format's.

Byte 4r+i of vector j (of 3) has columns 8j+i and 8j+4+i of row r in bits 0-2 and 3-5. Bits 6-7 of vectors 0 and 1 are
the lower 2 bits of columns 24+i and 28+i, whose upper ones are bits 6 and 7 of vector 2. `q` is the first vector; for
one row, where its bytes are there.
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.matmul import function
from qllama.simd import field, load_i8x64, load_u8, or_i8, store_i32

THREES = 3 * 64  # bytes
ONES = 0x0101010101010101


@inlined
def first_threes(q):
    """Columns 0-15: four vectors."""
    t, u = load_i8x64(q), load_i8x64(q + 64)
    return field(t, 0, 7), field(t, 3, 7), field(u, 0, 7), field(u, 3, 7)


@inlined
def last_threes(q):
    """Columns 16-31: four vectors."""
    t, u, v = load_i8x64(q), load_i8x64(q + 64), load_i8x64(q + 128)
    return field(v, 0, 7), field(v, 3, 7), or_i8(field(t, 6, 3), field(v, 4, 4)), or_i8(field(u, 6, 3), field(v, 5, 4))


@function
def pack_threes(q, first, second, third, fourth):
    """One row: its columns by eights, in the bytes of int64."""
    low, high = fourth & (3 * ONES), (fourth >> 2) & ONES
    store_i32(q, np.int32(first | (first >> 29) | (low << 6)))
    store_i32(q + 64, np.int32(second | (second >> 29) | (low >> 26)))
    store_i32(q + 128, np.int32(third | (third >> 29) | (high << 6) | (high >> 25)))


@function
def three(q, c):
    """Column c of one row, int32."""
    j, k, q = c // 8, c % 8 // 4, q + c % 4
    if j < 3:
        return (np.int32(load_u8(q + 64 * j)) >> (3 * k)) & 7
    return (np.int32(load_u8(q + 64 * k)) >> 6) | (((np.int32(load_u8(q + 128)) >> (6 + k)) & 1) << 2)
