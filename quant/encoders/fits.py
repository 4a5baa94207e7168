"""Searching for the scale of a group of values: 16 groups at once, a value is a row of 16 lanes.

What is minimized is the sum of w * (x - what the quants stand for)². Source of the methods, and of each constant and
order of operations: llama.cpp, ggml/src/ggml-quants.c.
"""

import numpy as np

from qllama.jit import function
from qllama.quant.encoders.blocks import ROW
from qllama.simd import (
    absolute,
    add,
    div,
    load_f32x16,
    maximum,
    minimum,
    mul,
    nearest,
    nearest_wrapped,
    negative,
    select_lt,
    splat_f32,
    sqrt,
    store_f32x16,
    sub,
)

f32 = np.float32
TINY = f32(1e-15)  # the magnitude below which a group counts as zero


@function
def number(x):
    return splat_f32(f32(x))


@function
def clamp(x, low, high):
    """Between the two, in any case: of NaN, which lanes without a value may hold, it makes `high`."""
    return maximum(minimum(x, high), low)


@function
def sum_of_squares(x, n):
    total = number(0)
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        total = add(total, mul(v, v))
    return total


@function
def weigh_by_importance(x, importance, n, variance, w):
    """w = importance * sqrt(variance + x²); returns the sum of the weights."""
    total = number(0)
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        u = mul(load_f32x16(importance + ROW * i), sqrt(add(variance, mul(v, v))))
        store_f32x16(w + ROW * i, u)
        total = add(total, u)
    return total


@function
def weigh_by_square(x, n, w):
    """w = x²."""
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        store_f32x16(w + ROW * i, mul(v, v))


@function
def quant(x, low, inverse, most):
    """The quant 0 .. most of x in steps of 1 / inverse from `low` on."""
    return clamp(nearest(mul(inverse, sub(x, low))), number(0), most)


@function
def error(scale, q, low, x, linear):
    """The distance, or its square, of x and the value of its quant."""
    d = sub(add(mul(scale, q), low), x)
    return absolute(d) if linear else mul(d, d)


@function
def fit_affine(x, w, n, most, first, step, n_steps, linear, q, scale_out, min_out):
    """x = scale * q - minimum for n values, q from 0 to `most`: stores q, the scale and the minimum, which is >= 0.

    The largest value is tried as `most` + first, ... in steps, from the best minimum so far on; for the quants that
    this gives, the best scale and minimum solve two linear equations.
    """
    zero, top, last = number(0), number(f32(most)), f32(most)
    low, high, sum_w = load_f32x16(x), load_f32x16(x), load_f32x16(w)
    sum_x = mul(sum_w, low)
    for i in range(1, n):
        v, u = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i)
        low, high = minimum(v, low), maximum(v, high)
        sum_w, sum_x = add(sum_w, u), add(sum_x, mul(u, v))
    low = select_lt(zero, low, zero, low)
    width = sub(high, low)
    inverse = div(top, width)
    scale, least, kept, kept_low = div(number(1), inverse), zero, inverse, low
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        least = add(least, mul(load_f32x16(w + ROW * i), error(scale, quant(v, low, inverse, top), low, v, linear)))
    for s in range(n_steps + 1):
        inverse = div(splat_f32(f32(first) + f32(step) * f32(s) + last), sub(high, low))
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(n):
            v = load_f32x16(x + ROW * i)
            k = quant(v, low, inverse, top)
            store_f32x16(q + ROW * i, k)
            wl = mul(load_f32x16(w + ROW * i), k)
            sum_l, sum_l2, sum_xl = add(sum_l, wl), add(sum_l2, mul(wl, k)), add(sum_xl, mul(wl, v))
        det = sub(mul(sum_w, sum_l2), mul(sum_l, sum_l))
        a = div(sub(mul(sum_w, sum_xl), mul(sum_x, sum_l)), det)
        b = div(sub(mul(sum_l2, sum_x), mul(sum_l, sum_xl)), det)
        a = select_lt(zero, b, div(sum_xl, sum_l2), a)
        b = select_lt(zero, b, zero, b)
        total = zero
        for i in range(n):
            v = load_f32x16(x + ROW * i)
            total = add(total, mul(load_f32x16(w + ROW * i), error(a, load_f32x16(q + ROW * i), b, v, linear)))
        total = select_lt(zero, det, total, number(np.inf))
        scale = select_lt(total, least, a, scale)
        kept, kept_low = select_lt(total, least, inverse, kept), select_lt(total, least, low, kept_low)
        low = select_lt(total, least, b, low)
        least = select_lt(total, least, total, least)
    kept = select_lt(zero, width, kept, zero)  # without a width, the minimum is all there is
    for i in range(n):
        store_f32x16(q + ROW * i, quant(load_f32x16(x + ROW * i), kept_low, kept, top))
    store_f32x16(scale_out, select_lt(zero, width, scale, zero))
    store_f32x16(min_out, negative(low))


@function
def largest(x, n):
    """The first value of largest magnitude."""
    size, value = number(0), number(0)
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        value = select_lt(size, absolute(v), v, value)
        size = select_lt(size, absolute(v), absolute(v), size)
    return value


@function
def fit_symmetric(x, w, n, half, q):
    """x = scale * (q - half) for n values, q from 0 to 2 * half - 1: stores q, returns the scale.

    The value of largest magnitude is tried as -half, and a little more and less.
    """
    zero, low, high = number(0), number(-f32(half)), number(f32(half) - f32(1))
    extreme = largest(x, n)
    scale, best, kept = zero, zero, zero
    for trial in range(-10, 10):  # -10: the one in the middle is the first
        if trial == 0:
            continue
        away = f32(0) if trial == -10 else f32(0.1) * f32(trial)
        inverse = div(splat_f32(-(f32(half) + away)), extreme)
        sum_xl, sum_l2 = zero, zero
        for i in range(n):
            v = load_f32x16(x + ROW * i)
            k = clamp(nearest(mul(inverse, v)), low, high)
            u = load_f32x16(w + ROW * i)
            sum_xl = add(sum_xl, mul(mul(u, v), k))
            sum_l2 = add(sum_l2, mul(mul(u, k), k))
        a = select_lt(zero, sum_l2, div(sum_xl, sum_l2), zero)
        if trial == -10:
            scale, best, kept = a, mul(a, sum_xl), inverse
            continue
        squared = select_lt(zero, sum_l2, mul(sum_xl, sum_xl), number(-np.inf))
        bar = mul(best, sum_l2)
        scale = select_lt(bar, squared, a, scale)
        kept = select_lt(bar, squared, inverse, kept)
        best = select_lt(bar, squared, mul(a, sum_xl), best)
    size = absolute(extreme)
    for i in range(n):
        k = add(clamp(nearest(mul(kept, load_f32x16(x + ROW * i))), low, high), number(half))
        store_f32x16(q + ROW * i, select_lt(size, splat_f32(TINY), zero, k))
    return select_lt(size, splat_f32(TINY), zero, scale)


@function
def byte(k):
    """An integer as llama.cpp keeps it in a byte: should one be negative, 256 more."""
    return select_lt(k, number(0), add(k, number(256)), k)


@function
def change_one_by_one(x, w, n, low, high, positive, q, sum_xl, sum_l2):
    """Change single quants, low .. high, while that makes the error smaller, 5 times around; returns the scale.

    `sum_xl` is the sum of w * x * k, `sum_l2` that of w * k². `positive`: see byte.
    """
    zero, never = number(0), number(np.inf)
    for _ in range(5):
        for i in range(n):
            v, u, k = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i), load_f32x16(q + ROW * i)
            xl, l2 = sub(sum_xl, mul(mul(u, v), k)), sub(sum_l2, mul(mul(u, k), k))
            new = clamp(nearest_wrapped(div(mul(v, l2), xl)), low, high)
            new_xl, new_l2 = add(xl, mul(mul(u, v), new)), add(l2, mul(mul(u, new), new))
            gain = mul(mul(new_xl, new_xl), sum_l2)
            bar = select_lt(zero, xl, mul(mul(sum_xl, sum_xl), new_l2), never)
            bar = select_lt(zero, l2 if positive else new_l2, bar, never)
            bar = select_lt(zero, absolute(sub(new, k)), bar, never)
            store_f32x16(q + ROW * i, select_lt(bar, gain, byte(new) if positive else new, k))
            sum_xl, sum_l2 = select_lt(bar, gain, new_xl, sum_xl), select_lt(bar, gain, new_l2, sum_l2)
    return select_lt(zero, sum_l2, div(sum_xl, sum_l2), zero)


@function
def fit_three_bits(x, w, n, q):
    """x = scale * (q - 4), q from 0 to 7, w = x²: as fit_symmetric, but the one choice is then changed one by one."""
    zero, low, high = number(0), number(-4), number(3)
    extreme = largest(x, n)
    inverse, sum_xl, sum_l2 = div(low, extreme), zero, zero
    for i in range(n):
        v, u = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i)
        k = clamp(nearest(mul(inverse, v)), low, high)
        store_f32x16(q + ROW * i, k)
        sum_xl, sum_l2 = add(sum_xl, mul(mul(u, v), k)), add(sum_l2, mul(mul(u, k), k))
    scale = change_one_by_one(x, w, n, low, high, False, q, sum_xl, sum_l2)
    empty, size = splat_f32(TINY), absolute(extreme)
    for i in range(n):
        store_f32x16(q + ROW * i, select_lt(size, empty, zero, sub(load_f32x16(q + ROW * i), low)))
    return select_lt(size, empty, zero, scale)


@function
def fit_positive(x, w, n, most, q):
    """x = scale * q for n values that are not negative, q from 0 to `most`: stores q, returns the scale.

    After a choice of the scale, quants are changed one by one while that makes the error smaller.
    """
    zero, top = number(0), number(f32(most))
    high = zero
    for i in range(n):
        v = load_f32x16(x + ROW * i)
        high = select_lt(v, high, high, v)
    kept = div(top, high)
    least = zero
    for trial in range(-5, 5):  # -5: the one in the middle is the first, and is not held below the most
        if trial == 0:
            continue
        inverse = kept if trial == -5 else div(splat_f32(f32(0.1) * f32(trial) + f32(most)), high)
        scale, total = div(number(1), inverse), zero
        for i in range(n):
            v = load_f32x16(x + ROW * i)
            k = nearest(mul(inverse, v))
            d = sub(v, mul(scale, byte(k) if trial == -5 else minimum(k, top)))
            total = add(total, mul(mul(load_f32x16(w + ROW * i), d), d))
        if trial == -5:
            least = total
        else:
            kept = select_lt(total, least, inverse, kept)
            least = select_lt(total, least, total, least)
    sum_xl, sum_l2 = zero, zero
    for i in range(n):
        v, u = load_f32x16(x + ROW * i), load_f32x16(w + ROW * i)
        k = minimum(nearest(mul(kept, v)), top)
        store_f32x16(q + ROW * i, byte(k))
        sum_xl, sum_l2 = add(sum_xl, mul(mul(u, v), k)), add(sum_l2, mul(mul(u, k), k))
    scale = change_one_by_one(x, w, n, number(-np.inf), top, True, q, sum_xl, sum_l2)
    empty = splat_f32(TINY)
    for i in range(n):
        store_f32x16(q + ROW * i, select_lt(high, empty, zero, load_f32x16(q + ROW * i)))
    return select_lt(high, empty, zero, scale)
