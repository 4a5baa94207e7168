"""Q3_K and Q6_K: groups of 16 with a signed scale, quantized in turn."""

import numpy as np

from qllama.jit import function
from qllama.quant.encoders.blocks import (
    IMPORTANCE,
    ROW,
    Q,
    S,
    W,
    X,
    bits,
    encoder,
    four_quants,
    give,
    join,
    put,
    put_half,
    quants,
    take,
    take_importance,
)
from qllama.quant.encoders.fits import (
    TINY,
    clamp,
    fit_symmetric,
    fit_three_bits,
    largest,
    number,
    sum_of_squares,
    weigh_by_importance,
    weigh_by_square,
)
from qllama.simd import (
    absolute,
    add,
    div,
    field_i32,
    half_value,
    load_f32x16,
    minimum,
    mul,
    nearest,
    round_i32,
    select_lt,
    splat_f32,
    store_f32x16,
)

f32 = np.float32
SCALE, SUM_W, FITTED = (S + 16 * ROW * i for i in range(3))  # a float of each of the 16 groups


@function
def requantize(x, scale, half, q):
    """The quants of 16 values for the scale as it is stored; where it is 0, those that were are kept."""
    zero, low, high = number(0), number(-half), number(half - 1)
    for i in range(16):
        k = add(clamp(nearest(div(load_f32x16(x + ROW * i), scale)), low, high), number(half))
        store_f32x16(q + ROW * i, select_lt(zero, absolute(scale), k, load_f32x16(q + ROW * i)))


@function
def fit_groups(scratch, importance, half):
    """The scale of each group, signed."""
    for j in range(16):
        x, q = scratch + X + ROW * 16 * j, scratch + Q + ROW * 16 * j
        if importance != 0:
            w = scratch + IMPORTANCE + ROW * 16 * j
        else:
            w = scratch + W
            weigh_by_square(x, 16, w)
        store_f32x16(scratch + SCALE + ROW * j, fit_symmetric(x, w, 16, half, q))


@encoder
def q6_k(src, kind, importance, n_row, out, scratch, n_blocks):
    zero, empty = number(0), splat_f32(TINY)
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 256, scratch)
        if importance != 0:
            take_importance(importance, block, n_row, 256, scratch)
        fit_groups(scratch, importance, 32)
        extreme = largest(scratch + SCALE, 16)
        size = absolute(extreme)
        inverse = select_lt(size, empty, zero, div(number(-128), extreme))
        d = half_value(put_half(scratch, 208, select_lt(size, empty, zero, div(number(1), inverse))))
        for j in range(16):
            scale = minimum(nearest(mul(inverse, load_f32x16(scratch + SCALE + ROW * j))), number(127))
            put(scratch, 192 + j, round_i32(scale))
            requantize(scratch + X + ROW * 16 * j, mul(d, scale), 32, scratch + Q + ROW * 16 * j)
        for i in range(256):
            q = load_f32x16(scratch + Q + ROW * i)
            store_f32x16(scratch + Q + ROW * i, select_lt(size, empty, zero, q))
        for i in range(128):
            at = i // 64 * 128 + i % 64
            low, high = field_i32(quants(scratch, at), 0, 15), field_i32(quants(scratch, at + 64), 0, 15)
            put(scratch, i, join(low, high, 4))
        for i in range(64):
            at = i // 32 * 128 + i % 32
            a, b = field_i32(quants(scratch, at), 4, 3), field_i32(quants(scratch, at + 32), 4, 3)
            c, e = field_i32(quants(scratch, at + 64), 4, 3), field_i32(quants(scratch, at + 96), 4, 3)
            put(scratch, 128 + i, join(join(a, b, 2), join(c, e, 2), 4))
        give(scratch, 210, out, block, n_blocks)


@function
def fit_groups_of_three_bits(scratch, importance):
    """The scale of each group, and the scales as 0 .. 63 at FITTED; returns the float that one step stands for."""
    if importance != 0:
        variance = div(mul(number(2), sum_of_squares(scratch + X, 256)), number(256))
        for j in range(16):
            x, q, group = scratch + X + ROW * 16 * j, scratch + Q + ROW * 16 * j, scratch + ROW * j
            total = weigh_by_importance(x, scratch + IMPORTANCE + ROW * 16 * j, 16, variance, scratch + W)
            store_f32x16(group + SUM_W, total)
            store_f32x16(group + SCALE, fit_symmetric(x, scratch + W, 16, 4, q))
        return fit_symmetric(scratch + SCALE, scratch + SUM_W, 16, 32, scratch + FITTED)
    for j in range(16):
        x, q = scratch + X + ROW * 16 * j, scratch + Q + ROW * 16 * j
        weigh_by_square(x, 16, scratch + W)
        store_f32x16(scratch + SCALE + ROW * j, fit_three_bits(x, scratch + W, 16, q))
    zero, extreme = number(0), largest(scratch + SCALE, 16)
    size, inverse = absolute(extreme), div(number(-32), extreme)
    for j in range(16):
        k = clamp(nearest(mul(inverse, load_f32x16(scratch + SCALE + ROW * j))), number(-32), number(31))
        store_f32x16(scratch + FITTED + ROW * j, select_lt(zero, size, add(k, number(32)), zero))
    return select_lt(zero, size, div(number(1), inverse), zero)


@function
def whole_scale(scratch, j):
    return round_i32(load_f32x16(scratch + FITTED + ROW * j))


@function
def put_scales(scratch, at):
    """16 scales of 6 bits, in 12 bytes: 8 of two low halves, 4 of the upper 2 bits of four."""
    for j in range(8):
        low, high = field_i32(whole_scale(scratch, j), 0, 15), field_i32(whole_scale(scratch, j + 8), 0, 15)
        put(scratch, at + j, join(low, high, 4))
    for j in range(4):
        a, b = field_i32(whole_scale(scratch, j), 4, 3), field_i32(whole_scale(scratch, j + 4), 4, 3)
        c, d = field_i32(whole_scale(scratch, j + 8), 4, 3), field_i32(whole_scale(scratch, j + 12), 4, 3)
        put(scratch, at + 8 + j, join(join(a, b, 2), join(c, d, 2), 4))


@encoder
def q3_k(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 256, scratch)
        if importance != 0:
            take_importance(importance, block, n_row, 256, scratch)
        d = half_value(put_half(scratch, 108, fit_groups_of_three_bits(scratch, importance)))
        put_scales(scratch, 96)
        for j in range(16):
            scale = add(load_f32x16(scratch + FITTED + ROW * j), number(-32))
            requantize(scratch + X + ROW * 16 * j, mul(d, scale), 4, scratch + Q + ROW * 16 * j)
        for i in range(32):
            put(scratch, i, bits(scratch, i, 32, 8, 2))
        for i in range(64):
            put(scratch, 32 + i, four_quants(scratch, i // 32 * 128 + i % 32))
        give(scratch, 110, out, block, n_blocks)
