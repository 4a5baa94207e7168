"""Searching for the vectors of a grid: a group of n values, all made positive, in vectors of 8 or 4 digits.

The arithmetic is done in 16 lanes; a vector that is not in the grid is replaced by one of its neighbours, lane by lane.
Source of the methods: llama.cpp, ggml/src/ggml-quants.c.
"""

import numpy as np

from qllama.jit import function
from qllama.quant.encoders.blocks import ROW, Q, W, join
from qllama.quant.encoders.fits import clamp, number
from qllama.simd import (
    absolute,
    add,
    div,
    load_f32,
    load_f32x16,
    load_i32,
    load_i32x16,
    load_u8,
    maximum,
    mul,
    nearest,
    negative,
    round_i32,
    select_lt,
    splat_f32,
    sqrt,
    store_f32,
    store_f32x16,
    store_i32,
    store_i32x16,
    sub,
    to_f32,
)

f32 = np.float32

# Rows behind the weights and the digits of a group, which have 32 each.
ROOTS = W + 32 * ROW  # 32: the roots of the weights
TRIED = W + 64 * ROW  # 32: digits being tried
POINTS = W + 96 * ROW  # 8: the places of the vectors in the table of codes, int32
ON_GRID = W + 104 * ROW  # 8: 1 where the vector was in the grid before it was moved
TRIED_ON_GRID = W + 112 * ROW  # 8
INVERSE = W + 120 * ROW  # 1: the scale, for one lane to load
DIGITS = Q  # 32: the digits chosen
CODES = Q + 64 * ROW  # 64: the codes of the block's vectors, int32
SIGNS = Q + 128 * ROW  # 32: 8 bits for each 8 values, int32


@function
def make_positive(x, w, n, even, signs):
    """|x|, and signs as bits; `even` makes their number even by moving the least important value to the other side."""
    zero, one, half = number(0), number(1), number(0.5)
    for k in range(n // 8):
        minuses, least, place = zero, number(np.inf), zero
        for i in range(8):
            v = load_f32x16(x + ROW * (8 * k + i))
            minuses = add(minuses, select_lt(v, zero, one, zero))
            cost = mul(mul(load_f32x16(w + ROW * (8 * k + i)), v), v)
            place = select_lt(cost, least, number(i), place)
            least = select_lt(cost, least, cost, least)
        moved = zero
        if even:
            moved = sub(minuses, mul(number(2), nearest(sub(mul(minuses, half), number(0.25)))))  # 1 if odd
        bits = zero
        for i in range(8):
            v = load_f32x16(x + ROW * (8 * k + i))
            minus = select_lt(v, zero, one, zero)
            move = select_lt(absolute(sub(place, number(i))), half, moved, zero)
            v = select_lt(v, zero, negative(v), v)
            store_f32x16(x + ROW * (8 * k + i), select_lt(half, move, negative(v), v))
            bit = absolute(sub(minus, move))
            bits = add(bits, mul(bit, number(1 << i)))
        store_i32x16(signs + ROW * k, round_i32(bits))


@function
def digits_of(x, n, inverse, most, out):
    """x = scale * (2 * digit + 1), digit 0 .. most."""
    for i in range(n):
        v = sub(mul(inverse, load_f32x16(x + ROW * i)), number(1))
        store_f32x16(out + ROW * i, clamp(nearest(mul(number(0.5), v)), number(0), number(most)))


@function
def nearest_neighbour(near, x, w, width, scale, vectors):
    """The code in the list at `near` whose vector is the nearest to one lane's x."""
    least, best = f32(np.inf), -1
    for j in range(1, load_i32(near) + 1):
        code = np.int64(load_i32(near + 4 * j))
        total = f32(0)
        for i in range(width):
            d = scale * f32(2 * np.int64(load_u8(vectors + code * width + i)) + 1) - load_f32(x + ROW * i)
            total += load_f32(w + ROW * i) * d * d
        if total < least or best < 0:
            least, best = total, code
    return best


@function
def move_to_grid(scratch, x, n, width, digits, scale, codes_at, on_grid, codes, neighbours, vectors):
    """Replace digits that are not in the grid; stores the codes, and where that was not needed."""
    bits = 2 if width == 8 else 3
    store_f32x16(scratch + INVERSE, scale)
    for k in range(n // width):
        point = round_i32(load_f32x16(digits + ROW * width * k))
        for i in range(1, width):
            point = join(point, round_i32(load_f32x16(digits + ROW * (width * k + i))), bits * i)
        store_i32x16(scratch + POINTS + ROW * k, point)
        store_f32x16(on_grid + ROW * k, number(1))
    for k in range(n // width):
        for lane in range(16):
            code = np.int64(load_i32(codes + 4 * np.int64(load_i32(scratch + POINTS + ROW * k + 4 * lane))))
            if code < 0:
                column = ROW * width * k + 4 * lane
                near = neighbours + 4 * (-1 - code)
                one_scale = load_f32(scratch + INVERSE + 4 * lane)
                code = nearest_neighbour(near, x + column, scratch + ROOTS + column, width, one_scale, vectors)
                for i in range(width):
                    store_f32(digits + column + ROW * i, f32(load_u8(vectors + code * width + i)))
                store_f32(on_grid + ROW * k + 4 * lane, f32(0))
            store_i32(codes_at + ROW * k + 4 * lane, np.int32(code))


@function
def products(x, w, n, digits):
    """The sums of w * x * q and of w * q², where q = 2 * digit + 1."""
    sum_qx, sum_q2 = number(0), number(0)
    for i in range(n):
        v, u = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i)
        q = add(mul(number(2), load_f32x16(digits + ROW * i)), number(1))
        sum_qx = add(sum_qx, mul(mul(u, v), q))
        sum_q2 = add(sum_q2, mul(mul(u, q), q))
    return sum_qx, sum_q2


@function
def fit_vectors(scratch, x, n, width, levels, top, scale, reach, step, again, codes_at, codes, neighbours, vectors):
    """The scale and the codes of the group; `scale` is what it is if nothing is better.

    `top` is tried as the largest digit, and 2 * reach times a little more or less. Then the vectors are chosen for the
    best scale once more: all if `again` is 2, those that had to be moved if 1, all if one had to be moved if 0.
    """
    zero, half, w = number(0), number(0.5), scratch + W
    best = zero
    for i in range(n):
        store_f32x16(scratch + DIGITS + ROW * i, zero)  # for weights that are all 0
    for k in range(n // width):
        store_f32x16(scratch + ON_GRID + ROW * k, number(1) if again == 1 else zero)
    for s in range(-reach, reach + 1):
        inverse = div(splat_f32(f32(2 * levels - 1) + f32(s) * f32(step)), top)
        digits_of(x, n, inverse, levels - 1, scratch + TRIED)
        move_to_grid(scratch, x, n, width, scratch + TRIED, div(number(1), inverse), codes_at, scratch + TRIED_ON_GRID,
                     codes, neighbours, vectors)  # fmt: skip
        sum_qx, sum_q2 = products(x, w, n, scratch + TRIED)
        squared = select_lt(zero, sum_q2, mul(sum_qx, sum_qx), number(-np.inf))
        bar, a = mul(best, sum_q2), div(sum_qx, sum_q2)
        for i in range(n):
            tried, old = load_f32x16(scratch + TRIED + ROW * i), load_f32x16(scratch + DIGITS + ROW * i)
            store_f32x16(scratch + DIGITS + ROW * i, select_lt(bar, squared, tried, old))
        for k in range(n // width):
            tried, old = load_f32x16(scratch + TRIED_ON_GRID + ROW * k), load_f32x16(scratch + ON_GRID + ROW * k)
            store_f32x16(scratch + ON_GRID + ROW * k, select_lt(bar, squared, tried, old))
        scale = select_lt(bar, squared, a, scale)
        best = select_lt(bar, squared, mul(a, sum_qx), best)
    moved = number(1) if again == 2 else zero
    for k in range(n // width):
        moved = maximum(moved, sub(number(1), load_f32x16(scratch + ON_GRID + ROW * k)))
    moved = select_lt(zero, scale, moved, zero)
    digits_of(x, n, div(number(1), scale), levels - 1, scratch + TRIED)
    for i in range(n):
        redo = moved
        if again == 1:
            redo = select_lt(half, load_f32x16(scratch + ON_GRID + ROW * (i // width)), zero, moved)
        tried, old = load_f32x16(scratch + TRIED + ROW * i), load_f32x16(scratch + DIGITS + ROW * i)
        store_f32x16(scratch + DIGITS + ROW * i, select_lt(half, redo, tried, old))
    move_to_grid(scratch, x, n, width, scratch + DIGITS, scale, codes_at, scratch + TRIED_ON_GRID, codes, neighbours,
                 vectors)  # fmt: skip
    sum_qx, sum_q2 = products(x, w, n, scratch + DIGITS)
    better = select_lt(zero, sum_q2, div(sum_qx, sum_q2), scale)
    return select_lt(half, moved, better, scale)


@function
def roots(w, n, out):
    for i in range(n):
        store_f32x16(out + ROW * i, sqrt(load_f32x16(w + ROW * i)))


@function
def most_of(x, n):
    high = load_f32x16(x)
    for i in range(1, n):
        v = load_f32x16(x + ROW * i)
        high = select_lt(v, high, high, v)
    return high


@function
def number_at(address):
    """16 int32 as float32."""
    return to_f32(load_i32x16(address))


@function
def finish_group(scratch, scale, high, empty, n_signs, signs, n_codes, codes_at, scale_at):
    """Make the scale positive; a group whose largest value is below `empty` becomes zeros."""
    zero, tiny = number(0), splat_f32(f32(empty))
    flipped = select_lt(scale, zero, number(255), zero)
    for k in range(n_signs):
        bits = absolute(sub(flipped, number_at(signs + ROW * k)))
        store_i32x16(signs + ROW * k, round_i32(select_lt(high, tiny, zero, bits)))
    for k in range(n_codes):
        store_i32x16(codes_at + ROW * k, round_i32(select_lt(high, tiny, zero, number_at(codes_at + ROW * k))))
    store_f32x16(scale_at, select_lt(high, tiny, zero, absolute(scale)))


@function
def whole_scales(scales, n, steps, most):
    """The n scales as 0 .. most, each standing for 2 * scale + 1 steps of the largest / steps, which is returned."""
    zero, high = number(0), number(0)
    for j in range(n):
        high = maximum(load_f32x16(scales + ROW * j), high)
    d = div(high, number(steps))
    inverse = select_lt(zero, high, div(number(1), d), zero)
    for j in range(n):
        v = mul(number(0.5), sub(mul(inverse, load_f32x16(scales + ROW * j)), number(1)))
        store_i32x16(scales + ROW * j, round_i32(clamp(nearest(v), zero, number(most))))
    return d
