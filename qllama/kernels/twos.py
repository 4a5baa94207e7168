"""Q1_0, Q2_0, TQ1_0, TQ2_0: w = d * (q - 1), 2 bits; blocks of 64, of which one of the file may be several.

Packed block: 32 scales f16, then for each half of 16 rows 4 vectors, one for each 16 columns: bits 2k and 2k+1 of byte
4r+i belong to column 4k+i of row r.
"""

import numpy as np

from qllama.kernels.fives import spread
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels, pack_kernel
from qllama.kernels.tiles import TILE
from qllama.simd import (
    field,
    in_order,
    load_f16,
    load_f16x16,
    load_i8x64,
    load_i32,
    load_u8,
    load_u16,
    store_f32,
    store_i32,
    store_u16,
    tile_dot_small,
    tile_scale,
    tile_shr,
    tile_splat_i32,
)

QUANTS, HALF = 2 * 32, 4 * 64
BLOCK = QUANTS + 2 * HALF
assert all(LAYOUTS[name].nbytes == BLOCK for name in ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0"))
OFFSET = np.int32(3)  # -8 * sum shifted right by 3 is -sum
PAIRS = 0x03030303


@function
def times(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK)
        at = w + QUANTS
        for _ in range(2):
            acc_low = tile_shr(tile_splat_i32(zero, x + 4, ld_x), OFFSET)
            acc_high = acc_low
            for s in range(2):
                in_order()
                v, u = load_i8x64(at + 64 * s), load_i8x64(at + HALF + 64 * s)
                for k in range(4):
                    q = x + 16 + 16 * s + 4 * k
                    acc_low = tile_dot_small(acc_low, field(v, 2 * k, 3), q, ld_x)
                    acc_high = tile_dot_small(acc_high, field(u, 2 * k, 3), q, ld_x)
            low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
            high = tile_scale(high, acc_high, load_f16x16(w + 32), x, ld_x)
            at += 128
            x += BLOCK_Q8
        w += BLOCK
    finish(low, high, out, ld_out, add)


@function
def unpack_row(w, r, out, n_block):
    for _ in range(n_block):
        d, q = load_f16(w + 2 * r), w + QUANTS + r // 16 * HALF + r % 16 * 4
        for c in range(64):
            byte = np.int32(load_u8(q + c // 16 * 64 + c % 4))
            store_f32(out + 4 * c, d * np.float32(((byte >> (c % 16 // 4 * 2)) & 3) - 1))
        w += BLOCK
        out += 256


# ---- packing: the scale to each packed block, and a word for each 16 columns


@function
def _store_scale(src, dst, r, n_block):
    for b in range(n_block):
        store_u16(dst + b * BLOCK + 2 * r, load_u16(src))


@function
def _store_16(dst, r, s, word):
    """Columns 16s .. 16s+15 of the file's block."""
    store_i32(dst + s // 4 * BLOCK + QUANTS + r // 16 * HALF + s % 4 * 64 + r % 16 * 4, np.int32(word))


@function
def _swap(word, mask, n):
    """Exchange the bits in `mask` with those n above."""
    t = ((word >> n) ^ word) & mask
    return word ^ t ^ (t << n)


@function
def pack_q2_0(src, dst, r):
    """4 neighbours share a byte of the file: the 4 x 4 pairs of bits of 16 columns are transposed."""
    _store_scale(src, dst, r, 1)
    for s in range(4):
        word = np.int64(load_i32(src + 2 + 4 * s)) & 0xFFFFFFFF
        _store_16(dst, r, s, _swap(_swap(word, 0x00CC00CC, 6), 0x0000F0F0, 12))


@function
def pack_q1_0(src, dst, r):
    """A set bit is 1, that is 2 of the packed codes; one that is not is -1, 0."""
    _store_scale(src, dst, r, 2)
    for s in range(8):
        low, high = spread(np.int64(load_u8(src + 2 + 2 * s))), spread(np.int64(load_u8(src + 3 + 2 * s)))
        _store_16(dst, r, s, (low << 1) | (low >> 29) | (high << 5) | (high >> 25))


@function
def pack_tq2_0(src, dst, r):
    _store_scale(src + 64, dst, r, 4)
    for s in range(16):
        at = src + s // 8 * 32 + s % 2 * 16  # 16 bytes of the file have 16 columns in each of 4 pairs of bits
        word = np.int64(0)
        for k in range(4):
            word |= ((np.int64(load_i32(at + 4 * k)) >> (s % 8 // 2 * 2)) & PAIRS) << (2 * k)
        _store_16(dst, r, s, word)


@function
def _digits(at, power):
    """The base-3 digits of the 4 bytes at `at` that a multiplication by `power` brings to the top; each in its byte."""
    word = np.int64(0)
    for i in range(4):
        left = (np.int64(load_u8(at + i)) * power) & 255
        word |= ((left * 3) >> 8) << (8 * i)
    return word


@function
def pack_tq1_0(src, dst, r):
    """Bytes 0-31 of the file have 5 runs of 32 columns, bytes 32-47 5 runs of 16, bytes 48-51 4 runs of 4."""
    _store_scale(src + 52, dst, r, 4)
    power = np.int64(1)
    for n in range(5):
        for run in range(3):
            at, s = (src + 16 * run, 2 * n + run) if run < 2 else (src + 32, 10 + n)
            word = np.int64(0)
            for k in range(4):
                word |= _digits(at + 4 * k, power) << (2 * k)
            _store_16(dst, r, s, word)
        power *= 3
    rest = np.int64(0)
    power = np.int64(1)
    for k in range(4):
        rest |= _digits(src + 48, power) << (2 * k)
        power *= 3
    _store_16(dst, r, 15, rest)


layout_kernels("TQ2_0", TILE, times, pack_tq2_0, unpack_row)
pack_kernel("TQ1_0", pack_tq1_0)
pack_kernel("Q2_0", pack_q2_0)
pack_kernel("Q1_0", pack_q1_0)
