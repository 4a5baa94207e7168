"""IQ4_NL and IQ4_XS: each value is one of 16 levels times the scale of its group of 32."""

import numpy as np

from qllama.jit import function
from qllama.quant.encoders.blocks import (
    IMPORTANCE,
    ROW,
    Q,
    S,
    W,
    X,
    encoder,
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
    largest,
    number,
    sum_of_squares,
    weigh_by_importance,
    weigh_by_square,
)
from qllama.quant.encoders.plain import inverse_of
from qllama.simd import (
    absolute,
    add,
    div,
    field_i32,
    load_f32x16,
    mul,
    nearest,
    negative,
    round_i32,
    select_lt,
    splat_f32,
    store_f32x16,
)

f32 = np.float32
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@function
def level(x):
    """The level nearest to x; the upper one in the middle of two."""
    value = number(LEVELS[0])
    for k in range(1, 16):
        middle = f32(LEVELS[k - 1] + LEVELS[k]) * f32(0.5)
        value = select_lt(x, splat_f32(middle), value, number(LEVELS[k]))
    return value


@function
def level_index(x):
    index = number(0)
    for k in range(1, 16):
        middle = f32(LEVELS[k - 1] + LEVELS[k]) * f32(0.5)
        index = select_lt(x, splat_f32(middle), index, number(k))
    return index


@function
def fit_levels(x, w):
    """The scale of 32 values: the one of largest magnitude is tried as the lowest level, and a little more and less."""
    zero, extreme = number(0), largest(x, 32)
    scale, best = zero, zero
    for trial in range(-8, 8):  # -8: the level itself is the first
        inverse = div(number(LEVELS[0] + trial), extreme)
        if trial == -8:
            inverse = div(number(1), div(negative(extreme), number(LEVELS[0])))
        sum_qx, sum_q2 = zero, zero
        for i in range(32):
            v, u = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i)
            q = level(mul(inverse, v))
            uq = mul(u, q)
            sum_qx, sum_q2 = add(sum_qx, mul(uq, v)), add(sum_q2, mul(uq, q))
        a = div(sum_qx, sum_q2)
        if trial == -8:
            scale = select_lt(zero, sum_q2, a, zero)
            best = mul(scale, sum_qx)
            continue
        squared = select_lt(zero, sum_q2, mul(sum_qx, sum_qx), number(-np.inf))
        bar = mul(best, sum_q2)
        scale = select_lt(bar, squared, a, scale)
        best = select_lt(bar, squared, mul(a, sum_qx), best)
    return select_lt(absolute(extreme), splat_f32(TINY), zero, scale)


@function
def weigh(scratch, group, importance, variance):
    """The weights of a group of 32: its importance times a root, or the squares."""
    x = scratch + X + ROW * 32 * group
    if importance != 0:
        weigh_by_importance(x, scratch + IMPORTANCE + ROW * 32 * group, 32, variance, scratch + W)
    else:
        weigh_by_square(x, 32, scratch + W)


@function
def choose_levels(scratch, group, inverse):
    for i in range(32 * group, 32 * group + 32):
        store_f32x16(scratch + Q + ROW * i, level_index(mul(inverse, load_f32x16(scratch + X + ROW * i))))


@function
def put_levels(scratch, at, group):
    for i in range(16):
        put(scratch, at + i, join(quants(scratch, 32 * group + i), quants(scratch, 32 * group + i + 16), 4))


@encoder
def iq4_nl(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 32, scratch)
        if importance != 0:
            take_importance(importance, block, n_row, 32, scratch)
        weigh(scratch, 0, importance, mul(sum_of_squares(scratch + X, 32), number(2 / 32)))
        scale = fit_levels(scratch + X, scratch + W)
        put_half(scratch, 0, scale)
        choose_levels(scratch, 0, inverse_of(scale))
        put_levels(scratch, 2, 0)
        give(scratch, 18, out, block, n_blocks)


@encoder
def iq4_xs(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 256, scratch)
        if importance != 0:
            take_importance(importance, block, n_row, 256, scratch)
        variance = mul(sum_of_squares(scratch + X, 256), number(2 / 256))
        for j in range(8):
            weigh(scratch, j, importance, variance)
            store_f32x16(scratch + S + ROW * j, fit_levels(scratch + X + ROW * 32 * j, scratch + W))
        d = div(negative(largest(scratch + S, 8)), number(32))
        put_half(scratch, 0, d)
        inverse = inverse_of(d)
        high = round_i32(number(0))
        for j in range(8):
            scale = clamp(nearest(mul(inverse, load_f32x16(scratch + S + ROW * j))), number(-32), number(31))
            choose_levels(scratch, j, inverse_of(mul(d, scale)))
            put_levels(scratch, 8 + 16 * j, j)
            scale = add(scale, number(32))
            store_f32x16(scratch + S + ROW * j, scale)
            high = join(high, field_i32(round_i32(scale), 4, 3), 2 * j)
        put(scratch, 2, field_i32(high, 0, 255))
        put(scratch, 3, field_i32(high, 8, 255))
        for j in range(4):
            even, odd = (
                round_i32(load_f32x16(scratch + S + ROW * 2 * j)),
                round_i32(load_f32x16(scratch + S + ROW * (2 * j + 1))),
            )
            put(scratch, 4 + j, join(field_i32(even, 0, 15), field_i32(odd, 0, 15), 4))
        give(scratch, 136, out, block, n_blocks)
