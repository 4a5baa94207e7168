"""IQ4_NL, IQ4_XS, MXFP4: w = scale * CODES[q], 4 bits that index a table of 16 integers.

Packed blocks have 32 scales and then the nibbles, paired (nibbles.py): IQ4_NL f16 scales, MXFP4 E8M0 bytes. IQ4_XS,
superblocks of 256: 32 d f16, then for each 32 columns 32 scales int8 (6 bits in the file) and the nibbles.
"""

import numpy as np

from qllama.jit import inlined
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.nibbles import NIBBLES, PAIRED, pack_paired, paired_nibble
from qllama.kernels.tiles import TILE
from qllama.simd import (
    BIAS8,
    code_book,
    high_nibbles,
    in_order,
    load_e8m0,
    load_e8m0x16,
    load_f16,
    load_f16x16,
    load_i8x16_f32,
    load_i8x64,
    load_u8,
    load_u16,
    low_nibbles,
    mul,
    store_f32,
    store_u8,
    store_u16,
    tile_dot_8,
    tile_dot_small,
    tile_scale,
    tile_shl,
    tile_splat_i32,
)

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the 4-bit floats; the scale is half

BLOCK_NL, BLOCK_MX = 64 + 2 * NIBBLES, 32 + 2 * NIBBLES
PART_XS = 32 + 2 * NIBBLES  # 32 columns
BLOCK_XS = 64 + 8 * PART_XS
assert LAYOUTS["IQ4_NL"].nbytes == BLOCK_NL
assert LAYOUTS["MXFP4"].nbytes == BLOCK_MX
assert LAYOUTS["IQ4_XS"].nbytes == BLOCK_XS

# IQ4's codes fill 8 bits and carry the target's bias; E2M1's are made positive and stay small.
iq4_codes = code_book([code + BIAS8 for code in IQ4])
IQ4_OFFSET = np.int32(4 if BIAS8 else 31)  # -8 * sum to -BIAS8 * sum; a shift by 31 of a multiple of 8 leaves zero
e2m1_codes = code_book([code + 16 for code in E2M1])
E2M1_OFFSET = np.int32(1)  # -8 * sum to -16 * sum


@inlined
def _dot_iq4(acc_low, acc_high, q, x, ld_x):
    """32 columns of both halves of a panel."""
    for j in range(4):
        in_order()
        v = load_i8x64(q + PAIRED * j)
        u = load_i8x64(q + PAIRED * j + 64)
        acc_low = tile_dot_8(acc_low, iq4_codes(low_nibbles(v)), x + 16 + 4 * j, ld_x)
        acc_high = tile_dot_8(acc_high, iq4_codes(low_nibbles(u)), x + 16 + 4 * j, ld_x)
        acc_low = tile_dot_8(acc_low, iq4_codes(high_nibbles(v)), x + 32 + 4 * j, ld_x)
        acc_high = tile_dot_8(acc_high, iq4_codes(high_nibbles(u)), x + 32 + 4 * j, ld_x)
    return acc_low, acc_high


# ---- IQ4_NL


@function
def times_nl(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK_NL)
        acc = tile_shl(tile_splat_i32(zero, x + 4, ld_x), IQ4_OFFSET)
        acc_low, acc_high = _dot_iq4(acc, acc, w + 64, x, ld_x)
        low = tile_scale(low, acc_low, load_f16x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_f16x16(w + 32), x, ld_x)
        w += BLOCK_NL
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_nl(src, dst, r):
    store_u16(dst + 2 * r, load_u16(src))
    pack_paired(src + 2, dst + 64 + 4 * r)


@function
def unpack_nl(w, r, out, n_block):
    for _ in range(n_block):
        d = load_f16(w + 2 * r)
        for c in range(32):
            store_f32(out + 4 * c, d * np.float32(IQ4[paired_nibble(w + 64 + 4 * r, c)]))
        w += BLOCK_NL
        out += 128


# ---- IQ4_XS


@function
def times_xs(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        d_low, d_high = load_f16x16(w), load_f16x16(w + 32)
        w += 64
        for _ in range(8):
            ask_ahead(zero, w, PART_XS)
            acc = tile_shl(tile_splat_i32(zero, x + 4, ld_x), IQ4_OFFSET)
            acc_low, acc_high = _dot_iq4(acc, acc, w + 32, x, ld_x)
            low = tile_scale(low, acc_low, mul(load_i8x16_f32(w), d_low), x, ld_x)
            high = tile_scale(high, acc_high, mul(load_i8x16_f32(w + 16), d_high), x, ld_x)
            w += PART_XS
            x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_xs(src, dst, r):
    store_u16(dst + 2 * r, load_u16(src))
    upper = np.int32(load_u16(src + 2))
    for b in range(8):
        lower = np.int32(load_u8(src + 4 + b // 2)) >> (b % 2 * 4)
        scale = (lower & 15) | (((upper >> (2 * b)) & 3) << 4)
        store_u8(dst + 64 + b * PART_XS + r, np.uint8(scale - 32))
        pack_paired(src + 8 + 16 * b, dst + 64 + b * PART_XS + 32 + 4 * r)


@function
def unpack_xs(w, r, out, n_block):
    for _ in range(n_block):
        d = load_f16(w + 2 * r)
        for c in range(256):
            part = w + 64 + c // 32 * PART_XS
            scale = np.float32(np.int8(load_u8(part + r)))
            code = IQ4[paired_nibble(part + 32 + 4 * r, c % 32)]
            store_f32(out + 4 * c, d * scale * np.float32(code))
        w += BLOCK_XS
        out += 1024


# ---- MXFP4


@function
def times_mx(zero, w, x, ld_x, out, ld_out, n_block, add):
    low, high = zero, zero
    for _ in range(n_block):
        ask_ahead(zero, w, BLOCK_MX)
        acc_low = tile_shl(tile_splat_i32(zero, x + 4, ld_x), E2M1_OFFSET)
        acc_high = acc_low
        for j in range(4):
            in_order()
            q = x + 16 + 4 * j
            v = load_i8x64(w + 32 + PAIRED * j)
            u = load_i8x64(w + 32 + PAIRED * j + 64)
            acc_low = tile_dot_small(acc_low, e2m1_codes(low_nibbles(v)), q, ld_x)
            acc_high = tile_dot_small(acc_high, e2m1_codes(low_nibbles(u)), q, ld_x)
            acc_low = tile_dot_small(acc_low, e2m1_codes(high_nibbles(v)), q + 16, ld_x)
            acc_high = tile_dot_small(acc_high, e2m1_codes(high_nibbles(u)), q + 16, ld_x)
        low = tile_scale(low, acc_low, load_e8m0x16(w), x, ld_x)
        high = tile_scale(high, acc_high, load_e8m0x16(w + 16), x, ld_x)
        w += BLOCK_MX
        x += BLOCK_Q8
    finish(low, high, out, ld_out, add)


@function
def pack_mx(src, dst, r):
    store_u8(dst + r, load_u8(src))
    pack_paired(src + 1, dst + 32 + 4 * r)


@function
def unpack_mx(w, r, out, n_block):
    for _ in range(n_block):
        d = load_e8m0(w + r)
        for c in range(32):
            store_f32(out + 4 * c, d * np.float32(E2M1[paired_nibble(w + 32 + 4 * r, c)]))
        w += BLOCK_MX
        out += 128


layout_kernels("IQ4_NL", TILE, times_nl, pack_nl, unpack_nl)
layout_kernels("IQ4_XS", TILE, times_xs, pack_xs, unpack_xs)
layout_kernels("MXFP4", TILE, times_mx, pack_mx, unpack_mx)
