"""Q2_K, Q4_K and Q5_K: groups with a scale and a minimum, both quantized in turn."""

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
from qllama.quant.encoders.fits import clamp, fit_affine, fit_positive, number, sum_of_squares, weigh_by_importance
from qllama.simd import (
    absolute,
    add,
    div,
    field_i32,
    half_value,
    load_f32x16,
    load_i32x16,
    min_i32,
    mul,
    nearest,
    round_i32,
    select_lt,
    sqrt,
    store_f32x16,
    store_i32x16,
    to_f32,
)

f32 = np.float32
GROUPS = 16 * ROW  # bytes: a value of each group
SCALE, MIN, SUM_W, FITTED, LS, LM = (S + GROUPS * i for i in range(6))


@function
def weigh_by_size(x, n, mean, w):
    """w = |x|, plus the root of the mean square if `mean`."""
    base = sqrt(div(sum_of_squares(x, n), number(n))) if mean else number(0)
    for i in range(n):
        store_f32x16(w + ROW * i, add(base, absolute(load_f32x16(x + ROW * i))))


@function
def fit_groups(scratch, n, most, importance, variance, first, n_steps, linear):
    """The best scale, minimum and quants of each group of n values, and the sum of its weights."""
    for j in range(256 // n):
        x, q, group = scratch + X + ROW * n * j, scratch + Q + ROW * n * j, scratch + ROW * j
        if importance != 0:
            total = weigh_by_importance(x, scratch + IMPORTANCE + ROW * n * j, n, variance, scratch + W)
            store_f32x16(group + SUM_W, total)
            fit_affine(x, scratch + W, n, most, -0.9, 0.05, 36, False, q, group + SCALE, group + MIN)
        else:
            weigh_by_size(x, n, not linear, scratch + W)
            fit_affine(x, scratch + W, n, most, first, 0.1, n_steps, linear, q, group + SCALE, group + MIN)


@function
def whole_scales(values, n, most, sum_w, fitted, out):
    """The n scales or minimums of a block as integers 0 .. most at `out`; returns the float that one stands for."""
    if sum_w != 0:
        d = fit_positive(values, sum_w, n, most, fitted)
        for j in range(n):
            store_i32x16(out + ROW * j, round_i32(load_f32x16(fitted + ROW * j)))
        return d
    zero, high = number(0), number(0)
    for j in range(n):
        v = load_f32x16(values + ROW * j)
        high = select_lt(high, v, v, high)
    inverse = select_lt(zero, high, div(number(f32(most)), high), zero)
    for j in range(n):
        store_i32x16(out + ROW * j, field_i32(round_i32(mul(inverse, load_f32x16(values + ROW * j))), 0, 255))
    return select_lt(zero, high, div(high, number(f32(most))), zero)


@function
def requantize(x, n, scale, minimum, most, q):
    """The quants for the scale and minimum as they are stored; where the scale is 0, those that were are kept."""
    zero, top = number(0), number(f32(most))
    for i in range(n):
        k = clamp(nearest(div(add(load_f32x16(x + ROW * i), minimum), scale)), zero, top)
        store_f32x16(q + ROW * i, select_lt(zero, absolute(scale), k, load_f32x16(q + ROW * i)))


@encoder
def q2_k(src, kind, importance, n_row, out, scratch, n_blocks):
    sum_w = scratch + SUM_W if importance != 0 else 0
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 256, scratch)
        variance = number(0)
        if importance != 0:
            take_importance(importance, block, n_row, 256, scratch)
            variance = div(sum_of_squares(scratch + X, 256), number(256))
        fit_groups(scratch, 16, 3, importance, variance, -0.5, 15, True)
        scale = whole_scales(scratch + SCALE, 16, 15, sum_w, scratch + FITTED, scratch + LS)
        minimum = whole_scales(scratch + MIN, 16, 15, sum_w, scratch + FITTED, scratch + LM)
        d, dmin = half_value(put_half(scratch, 80, scale)), half_value(put_half(scratch, 82, minimum))
        for j in range(16):
            packed = join(load_i32x16(scratch + LS + ROW * j), load_i32x16(scratch + LM + ROW * j), 4)
            put(scratch, j, packed)
            step, floor = mul(d, to_f32(field_i32(packed, 0, 15))), mul(dmin, to_f32(field_i32(packed, 4, 15)))
            requantize(scratch + X + ROW * 16 * j, 16, step, floor, 3, scratch + Q + ROW * 16 * j)
        for i in range(64):
            put(scratch, 16 + i, four_quants(scratch, i // 32 * 128 + i % 32))
        give(scratch, 84, out, block, n_blocks)


@function
def put_scales(scratch, at):
    """8 scales and 8 minimums of 6 bits, in 12 bytes: the last 4 of each lie in halves and on top of the others."""
    for j in range(4):
        first, last = load_i32x16(scratch + LS + ROW * j), load_i32x16(scratch + LS + ROW * (j + 4))
        first_min, last_min = load_i32x16(scratch + LM + ROW * j), load_i32x16(scratch + LM + ROW * (j + 4))
        put(scratch, at + j, join(first, field_i32(last, 4, 15), 6))
        put(scratch, at + 4 + j, join(first_min, field_i32(last_min, 4, 15), 6))
        put(scratch, at + 8 + j, join(field_i32(last, 0, 15), field_i32(last_min, 0, 15), 4))


@function
def encode_groups_of_32(src, kind, importance, n_row, scratch, n_blocks, block, most, first, n_steps):
    """What Q4_K and Q5_K share: all but how the quants are packed. The first 16 bytes of the block are put."""
    take(src, kind, block, n_blocks, 256, scratch)
    variance, sum_w = number(0), 0
    if importance != 0:
        take_importance(importance, block, n_row, 256, scratch)
        variance, sum_w = div(mul(number(2), sum_of_squares(scratch + X, 256)), number(256)), scratch + SUM_W
    fit_groups(scratch, 32, most, importance, variance, first, n_steps, False)
    scale = whole_scales(scratch + SCALE, 8, 63, sum_w, scratch + FITTED, scratch + LS)
    minimum = whole_scales(scratch + MIN, 8, 63, sum_w, scratch + FITTED, scratch + LM)
    d, dmin = half_value(put_half(scratch, 0, scale)), half_value(put_half(scratch, 2, minimum))
    for j in range(8):
        ls, lm = min_i32(load_i32x16(scratch + LS + ROW * j), 63), min_i32(load_i32x16(scratch + LM + ROW * j), 63)
        store_i32x16(scratch + LS + ROW * j, ls)
        store_i32x16(scratch + LM + ROW * j, lm)
        step, floor = mul(d, to_f32(ls)), mul(dmin, to_f32(lm))
        requantize(scratch + X + ROW * 32 * j, 32, step, floor, most, scratch + Q + ROW * 32 * j)
    put_scales(scratch, 4)


@encoder
def q4_k(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        encode_groups_of_32(src, kind, importance, n_row, scratch, n_blocks, block, 15, -1.0, 20)
        for i in range(128):
            at = i // 32 * 64 + i % 32
            put(scratch, 16 + i, join(quants(scratch, at), quants(scratch, at + 32), 4))
        give(scratch, 144, out, block, n_blocks)


@encoder
def q5_k(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        encode_groups_of_32(src, kind, importance, n_row, scratch, n_blocks, block, 31, -0.5, 15)
        for i in range(32):
            put(scratch, 16 + i, bits(scratch, i, 32, 8, 4))
        for i in range(128):
            at = i // 32 * 64 + i % 32
            low, high = field_i32(quants(scratch, at), 0, 15), field_i32(quants(scratch, at + 32), 0, 15)
            put(scratch, 48 + i, join(low, high, 4))
        give(scratch, 176, out, block, n_blocks)
