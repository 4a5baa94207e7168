"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32. The range decides the scale; with importance it is searched."""

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
    give,
    join,
    load_values,
    put,
    put_half,
    quants,
    take,
    take_importance,
)
from qllama.quant.encoders.fits import fit_affine, fit_symmetric, largest, number, weigh_by_importance
from qllama.simd import (
    absolute,
    add,
    cut_i32,
    div,
    field_i32,
    load_f32,
    load_f32x16,
    maximum,
    minimum,
    mul,
    nearest_away,
    negative,
    round_i32,
    select_lt,
    splat_f32,
    store_f32x16,
    sub,
    to_f32,
)

f32 = np.float32


@function
def mean_square(src, kind, n, scratch):
    """Of a whole row, added value by value."""
    total = f32(0)
    for i in range(0, n, 16):
        store_f32x16(scratch + S, load_values(src + i * (4 if kind == 0 else 2), kind))
        for k in range(16):
            v = load_f32(scratch + S + 4 * k)
            total += v * v
    return splat_f32(total / f32(n))


@function
def inverse_of(d):
    """1 / d, or 0."""
    return select_lt(number(0), absolute(d), div(number(1), d), number(0))


@function
def from_extreme(scratch, half):
    """The scale whose -half is the value of largest magnitude; the quants 0 .. 2 * half - 1."""
    d = div(largest(scratch + X, 32), number(-half))
    inverse = inverse_of(d)
    for i in range(32):
        k = to_f32(cut_i32(add(mul(load_f32x16(scratch + X + ROW * i), inverse), number(f32(half) + f32(0.5)))))
        store_f32x16(scratch + Q + ROW * i, minimum(k, number(2 * half - 1)))
    return d


@function
def from_range(scratch, most):
    """The scale and the minimum that cover all values; the quants 0 .. most."""
    low = high = load_f32x16(scratch + X)
    for i in range(1, 32):
        v = load_f32x16(scratch + X + ROW * i)
        low, high = minimum(v, low), maximum(v, high)
    d = div(sub(high, low), number(most))
    inverse = inverse_of(d)
    for i in range(32):
        k = to_f32(cut_i32(add(mul(sub(load_f32x16(scratch + X + ROW * i), low), inverse), number(0.5))))
        store_f32x16(scratch + Q + ROW * i, minimum(k, number(most)))
    return d, low


@function
def weigh(scratch, importance, variance, column, n_row):
    take_importance(importance, column, n_row, 32, scratch)
    weigh_by_importance(scratch + X, scratch + IMPORTANCE, 32, variance, scratch + W)


@function
def symmetric(scratch, importance, variance, block, n_row, half):
    """The scale; the quants at Q."""
    if importance == 0:
        return from_extreme(scratch, half)
    weigh(scratch, importance, variance, block, n_row)
    return fit_symmetric(scratch + X, scratch + W, 32, half, scratch + Q)


@function
def affine(scratch, importance, variance, block, n_row, most):
    """The scale and the minimum; the quants at Q."""
    if importance == 0:
        return from_range(scratch, most)
    weigh(scratch, importance, variance, block, n_row)
    fit_affine(scratch + X, scratch + W, 32, most, -0.9, 0.05, 36, False, scratch + Q, scratch + S, scratch + S + ROW)
    return load_f32x16(scratch + S), negative(load_f32x16(scratch + S + ROW))


@function
def put_nibbles(scratch, at):
    for i in range(16):
        low, high = field_i32(quants(scratch, i), 0, 15), field_i32(quants(scratch, i + 16), 0, 15)
        put(scratch, at + i, join(low, high, 4))


@function
def put_fifth_bits(scratch, at):
    for i in range(4):
        put(scratch, at + i, bits(scratch, 8 * i, 1, 8, 4))


@function
def last_block(block, importance, n_row, n_blocks):
    """Where the blocks end that are encoded together with this one: with importance, at the end of their row."""
    return n_blocks if importance == 0 else (block // n_row + 1) * n_row


@function
def spread(src, kind, importance, block, n_row, scratch, variance):
    """The mean square of the row that begins at `block`, or what it was."""
    if importance == 0 or block % n_row != 0:
        return variance
    return mean_square(src + block * 32 * (4 if kind == 0 else 2), kind, 32 * n_row, scratch)


@encoder
def q4_0(src, kind, importance, n_row, out, scratch, n_blocks):
    block, variance = 0, number(0)
    while block < n_blocks:
        end = last_block(block, importance, n_row, n_blocks)
        variance = spread(src, kind, importance, block, n_row, scratch, variance)
        take(src, kind, block, end, 32, scratch)
        put_half(scratch, 0, symmetric(scratch, importance, variance, block, n_row, 8))
        put_nibbles(scratch, 2)
        give(scratch, 18, out, block, end)
        block = min(block + 16, end)


@encoder
def q4_1(src, kind, importance, n_row, out, scratch, n_blocks):
    block, variance = 0, number(0)
    while block < n_blocks:
        end = last_block(block, importance, n_row, n_blocks)
        variance = spread(src, kind, importance, block, n_row, scratch, variance)
        take(src, kind, block, end, 32, scratch)
        d, low = affine(scratch, importance, variance, block, n_row, 15)
        put_half(scratch, 0, d)
        put_half(scratch, 2, low)
        put_nibbles(scratch, 4)
        give(scratch, 20, out, block, end)
        block = min(block + 16, end)


@encoder
def q5_0(src, kind, importance, n_row, out, scratch, n_blocks):
    block, variance = 0, number(0)
    while block < n_blocks:
        end = last_block(block, importance, n_row, n_blocks)
        variance = spread(src, kind, importance, block, n_row, scratch, variance)
        take(src, kind, block, end, 32, scratch)
        put_half(scratch, 0, symmetric(scratch, importance, variance, block, n_row, 16))
        put_fifth_bits(scratch, 2)
        put_nibbles(scratch, 6)
        give(scratch, 22, out, block, end)
        block = min(block + 16, end)


@encoder
def q5_1(src, kind, importance, n_row, out, scratch, n_blocks):
    block, variance = 0, number(0)
    while block < n_blocks:
        end = last_block(block, importance, n_row, n_blocks)
        variance = spread(src, kind, importance, block, n_row, scratch, variance)
        take(src, kind, block, end, 32, scratch)
        d, low = affine(scratch, importance, variance, block, n_row, 31)
        put_half(scratch, 0, d)
        put_half(scratch, 2, low)
        put_fifth_bits(scratch, 4)
        put_nibbles(scratch, 8)
        give(scratch, 24, out, block, end)
        block = min(block + 16, end)


@encoder
def q8_0(src, kind, importance, n_row, out, scratch, n_blocks):
    for block in range(0, n_blocks, 16):
        take(src, kind, block, n_blocks, 32, scratch)
        size = number(0)
        for i in range(32):
            v = absolute(load_f32x16(scratch + X + ROW * i))
            size = maximum(v, size)
        d = div(size, number(127))
        inverse = inverse_of(d)
        put_half(scratch, 0, d)
        for i in range(32):
            put(scratch, 2 + i, round_i32(nearest_away(mul(load_f32x16(scratch + X + ROW * i), inverse))))
        give(scratch, 34, out, block, n_blocks)
