"""IQ1_S and IQ1_M: each value is -1, 0 or 1, a shift of 1/8 up or down, times a scale; 8 at a time are a vector.

The best two boundaries among the sorted values are found by trying all. Source of the method: llama.cpp,
ggml/src/ggml-quants.c.
"""

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
    take,
    take_importance,
)
from qllama.quant.encoders.fits import number, sum_of_squares, weigh_by_importance, weigh_by_square
from qllama.quant.encoders.vectors import whole_scales
from qllama.simd import (
    absolute,
    add,
    div,
    field_i32,
    half_bits,
    load_f32,
    load_f32x16,
    load_i32,
    load_i32x16,
    load_u8,
    maximum,
    mul,
    round_i32,
    select_lt,
    store_f32,
    store_f32x16,
    store_i32,
    store_i32x16,
    sub,
    to_f32,
)

f32 = np.float32
SHIFT = f32(0.125)

SORTED = W + 32 * ROW  # 32: the values in ascending order
ORDER = W + 64 * ROW  # 32: their places, int32
SORTED_W = W + 96 * ROW  # 32: their weights
SUM_X, SUM_W = W + 128 * ROW, W + 164 * ROW  # 33 each: the sums of w * x and of w up to a place
FIRST, SECOND, SIGN, SCALE = (W + (200 + i) * ROW for i in range(4))  # the boundaries, the shift, the scale found
CODES = Q  # 32: of the block's vectors, int32
SHIFTS = Q + 32 * ROW  # 16: of its groups


@function
def sort(scratch, x, n):
    """Stable, each lane for itself: the order of equal values counts for the rounding of sums."""
    for lane in range(16):
        for i in range(n):
            v, at = load_f32(x + ROW * i + 4 * lane), i
            while at > 0 and v < load_f32(scratch + SORTED + ROW * (at - 1) + 4 * lane):
                store_f32(scratch + SORTED + ROW * at + 4 * lane,
                          load_f32(scratch + SORTED + ROW * (at - 1) + 4 * lane))  # fmt: skip
                store_i32(scratch + ORDER + ROW * at + 4 * lane,
                          load_i32(scratch + ORDER + ROW * (at - 1) + 4 * lane))  # fmt: skip
                at -= 1
            store_f32(scratch + SORTED + ROW * at + 4 * lane, v)
            store_i32(scratch + ORDER + ROW * at + 4 * lane, np.int32(i))
        for i in range(n):
            place = np.int64(load_i32(scratch + ORDER + ROW * i + 4 * lane))
            store_f32(scratch + SORTED_W + ROW * i + 4 * lane, load_f32(scratch + W + ROW * place + 4 * lane))


@function
def begin_split(scratch, sign, scale):
    """What holds while no choice of boundaries was good; returns how good that is."""
    for row in (FIRST, SECOND):
        store_f32x16(scratch + row, number(0))
    store_f32x16(scratch + SIGN, number(sign))
    store_f32x16(scratch + SCALE, scale)
    return number(-3.4028234663852886e38)


@function
def keep_better(scratch, sum_qx, sum_q2, first, second, sign, best):
    """Note a choice of boundaries if it is better; returns how good the best is now."""
    squared = select_lt(number(0), sum_q2, mul(sum_qx, sum_qx), number(-np.inf))
    bar = mul(best, sum_q2)
    scale = div(sum_qx, sum_q2)
    store_f32x16(scratch + SCALE, select_lt(bar, squared, scale, load_f32x16(scratch + SCALE)))
    store_f32x16(scratch + FIRST, select_lt(bar, squared, number(first), load_f32x16(scratch + FIRST)))
    store_f32x16(scratch + SECOND, select_lt(bar, squared, number(second), load_f32x16(scratch + SECOND)))
    store_f32x16(scratch + SIGN, select_lt(bar, squared, number(sign), load_f32x16(scratch + SIGN)))
    return select_lt(bar, squared, mul(scale, sum_qx), best)


@function
def three(a, b, c, q0, q1, q2):
    return add(add(mul(a, number(q0)), mul(b, number(q1))), mul(c, number(q2)))


@function
def split_in_three(scratch, n, high):
    """IQ1_S: the boundaries, the sign of the shift and the scale of the group of n sorted values.

    Returns `high`, or 0 where the weights leave no choice.
    """
    sum_x, sum_w = number(0), number(0)
    store_f32x16(scratch + SUM_X, sum_x)
    store_f32x16(scratch + SUM_W, sum_w)
    for i in range(n):
        u = load_f32x16(scratch + SORTED_W + ROW * i)
        sum_x, sum_w = add(sum_x, mul(u, load_f32x16(scratch + SORTED + ROW * i))), add(sum_w, u)
        store_f32x16(scratch + SUM_X + ROW * (i + 1), sum_x)
        store_f32x16(scratch + SUM_W + ROW * (i + 1), sum_w)
    best = begin_split(scratch, 1, high)
    one = f32(1)
    for first in range(n + 1):
        x1, w1 = load_f32x16(scratch + SUM_X + ROW * first), load_f32x16(scratch + SUM_W + ROW * first)
        for second in range(first, n + 1):
            x2, w2 = load_f32x16(scratch + SUM_X + ROW * second), load_f32x16(scratch + SUM_W + ROW * second)
            bx, bw, cx, cw = sub(x2, x1), sub(w2, w1), sub(sum_x, x2), sub(sum_w, w2)
            for sign in range(1, -2, -2):
                shift = SHIFT * f32(sign)
                q0, q1, q2 = shift - one, shift, shift + one
                sum_q2 = add(add(mul(mul(w1, number(q0)), number(q0)), mul(mul(bw, number(q1)), number(q1))),
                             mul(mul(cw, number(q2)), number(q2)))  # fmt: skip
                best = keep_better(scratch, three(x1, bx, cx, q0, q1, q2), sum_q2, first, second, sign, best)
    return select_lt(best, number(0), number(0), high)


@function
def digits_of_lane(scratch, lane, n):
    """0, 1 or 2 for each of the n values, by the boundaries, at SORTED; turned over where the scale is negative."""
    first, second = load_f32(scratch + FIRST + 4 * lane), load_f32(scratch + SECOND + 4 * lane)
    turned = load_f32(scratch + SCALE + 4 * lane) < f32(0)
    for j in range(n):
        place = np.int64(load_i32(scratch + ORDER + ROW * j + 4 * lane))
        digit = 0 if j < first else 1 if j < second else 2
        store_f32(scratch + SORTED + ROW * place + 4 * lane, f32(2 - digit if turned else digit))


@function
def level(digit, shift):
    return f32(digit) - f32(1) + shift


@function
def nearest_neighbour(near, x, w, scale, shift, vectors):
    """The code in the list at `near` whose vector is the nearest to one lane's x."""
    least, best = f32(np.inf), -1
    for j in range(1, load_i32(near) + 1):
        code = np.int64(load_i32(near + 4 * j))
        total = f32(0)
        for i in range(8):
            d = scale * level(load_u8(vectors + code * 8 + i), shift) - load_f32(x + ROW * i)
            total += load_f32(w + ROW * i) * d * d
        if total < least or best < 0:
            least, best = total, code
    return best


@function
def shift_of(sign, k):
    """That of vector k of a group; `sign` is 1 or -1, or for IQ1_M 2 to 5: ++, +-, -+, --."""
    if sign < f32(1.5):
        return SHIFT * sign
    choice = np.int64(sign) - 2
    down = choice >= 2 if k == 0 else choice % 2 == 1
    return -SHIFT if down else SHIFT


@function
def move_to_grid(scratch, x, lane, n, codes_at, codes, neighbours, vectors):
    """The codes of a lane's digits or of their neighbours; for these a new scale is found."""
    scale, sign = load_f32(scratch + SCALE + 4 * lane), load_f32(scratch + SIGN + 4 * lane)
    moved = False
    for k in range(n // 8):
        point, column = 0, ROW * 8 * k + 4 * lane
        for i in range(8):
            point |= np.int64(load_f32(scratch + SORTED + column + ROW * i)) << 2 * i
        code = np.int64(load_i32(codes + 4 * point))
        if code < 0:
            near, moved = neighbours + 4 * (-1 - code), True
            code = nearest_neighbour(near, x + column, scratch + W + column, scale, shift_of(sign, k), vectors)
        store_i32(codes_at + ROW * k + 4 * lane, np.int32(code))
    if not moved:
        return
    sum_qx, sum_q2 = f32(0), f32(0)
    for k in range(n // 8):
        code, shift = np.int64(load_i32(codes_at + ROW * k + 4 * lane)), shift_of(sign, k)
        for i in range(8):
            at = ROW * (8 * k + i) + 4 * lane
            w, q = load_f32(scratch + W + at), level(load_u8(vectors + code * 8 + i), shift)
            sum_qx += w * q * load_f32(x + at)
            sum_q2 += w * q * q
    if sum_qx > f32(0) and sum_q2 > f32(0):
        store_f32(scratch + SCALE + 4 * lane, sum_qx / sum_q2)


@function
def largest_size(x, n):
    size = number(0)
    for i in range(n):
        size = maximum(absolute(load_f32x16(x + ROW * i)), size)
    return size


@function
def finish_group(scratch, x, n, high, empty, group, codes, neighbours, vectors):
    """From the boundaries to codes, shift and scale; a group whose largest magnitude is below `empty` becomes zeros."""
    codes_at = scratch + CODES + ROW * (n // 8 * group)
    for lane in range(16):
        digits_of_lane(scratch, lane, n)
    sign, scale = load_f32x16(scratch + SIGN), load_f32x16(scratch + SCALE)
    other = sub(number(7), sign) if n == 16 else sub(number(0), sign)
    store_f32x16(scratch + SIGN, select_lt(scale, number(0), other, sign))
    store_f32x16(scratch + SCALE, absolute(scale))
    for lane in range(16):
        move_to_grid(scratch, x, lane, n, codes_at, codes, neighbours, vectors)
    zero, tiny, up = number(0), number(empty), number(2 if n == 16 else 1)
    for k in range(n // 8):
        code = to_f32(load_i32x16(codes_at + ROW * k))
        store_i32x16(codes_at + ROW * k, round_i32(select_lt(high, tiny, zero, code)))
    store_f32x16(scratch + SHIFTS + ROW * group, select_lt(high, tiny, up, load_f32x16(scratch + SIGN)))
    store_f32x16(scratch + S + ROW * group, select_lt(high, tiny, zero, load_f32x16(scratch + SCALE)))


@function
def begin(src, kind, importance, n_row, block, n_blocks, scratch):
    """Take the blocks; returns twice the mean of the squares."""
    take(src, kind, block, n_blocks, 256, scratch)
    if importance != 0:
        take_importance(importance, block, n_row, 256, scratch)
    return div(mul(number(2), sum_of_squares(scratch + X, 256)), number(256))


@encoder
def iq1_s(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = begin(src, kind, importance, n_row, block, n_blocks, scratch)
        for j in range(8):
            x = scratch + X + ROW * 32 * j
            weigh_by_importance(x, scratch + IMPORTANCE + ROW * 32 * j, 32, variance, scratch + W)
            high = largest_size(x, 32)
            sort(scratch, x, 32)
            high = split_in_three(scratch, 32, high)
            finish_group(scratch, x, 32, high, 1e-12, j, codes, neighbours, vectors)
        put_half(scratch, 0, mul(whole_scales(scratch + S, 8, 15, 7), number(1.125)))
        for k in range(32):
            put(scratch, 2 + k, field_i32(load_i32x16(scratch + CODES + ROW * k), 0, 255))
        for j in range(8):
            word = field_i32(load_i32x16(scratch + CODES + ROW * 4 * j), 8, 7)
            for k in range(1, 4):
                word = join(word, field_i32(load_i32x16(scratch + CODES + ROW * (4 * j + k)), 8, 7), 3 * k)
            down = round_i32(select_lt(load_f32x16(scratch + SHIFTS + ROW * j), number(0), number(1), number(0)))
            word = join(join(word, load_i32x16(scratch + S + ROW * j), 12), down, 15)
            put(scratch, 34 + 2 * j, field_i32(word, 0, 255))
            put(scratch, 35 + 2 * j, field_i32(word, 8, 255))
        give(scratch, 50, out, block, n_blocks)


SUMS_OF_HALF = 17 * ROW  # bytes: at SUM_X and SUM_W for each half of a group of 16
BASE, MIDDLE = (W + (208 + i) * ROW for i in range(2))  # a float for each lane


@function
def sum_halves(scratch):
    """The sums of w * x and of w up to each place of the sorted values, for either half of the group alone."""
    middle = number(7.5)
    x0 = w0 = x1 = w1 = number(0)
    for j in range(17):
        store_f32x16(scratch + SUM_X + ROW * j, x0)
        store_f32x16(scratch + SUM_W + ROW * j, w0)
        store_f32x16(scratch + SUM_X + SUMS_OF_HALF + ROW * j, x1)
        store_f32x16(scratch + SUM_W + SUMS_OF_HALF + ROW * j, w1)
        if j < 16:
            w = load_f32x16(scratch + SORTED_W + ROW * j)
            x = mul(w, load_f32x16(scratch + SORTED + ROW * j))
            place = to_f32(load_i32x16(scratch + ORDER + ROW * j))
            x0, x1 = select_lt(place, middle, add(x0, x), x0), select_lt(place, middle, x1, add(x1, x))
            w0, w1 = select_lt(place, middle, add(w0, w), w0), select_lt(place, middle, w1, add(w1, w))


@function
def sums_of_half(scratch, half, first, second, shift):
    """The sums of w * x * q and of w * q² of one half: all as its upper level, less what lies below the boundaries."""
    x, w = scratch + SUM_X + SUMS_OF_HALF * half, scratch + SUM_W + SUMS_OF_HALF * half
    low, middle, high = level(0, shift), level(1, shift), level(2, shift)
    below = add(load_f32x16(x + ROW * first), load_f32x16(x + ROW * second))
    sum_qx = sub(mul(load_f32x16(x + ROW * 16), number(high)), below)
    sum_q2 = mul(mul(load_f32x16(w + ROW * 16), number(high)), number(high))
    sum_q2 = add(sum_q2, mul(load_f32x16(w + ROW * first), number(low * low - middle * middle)))
    sum_q2 = add(sum_q2, mul(load_f32x16(w + ROW * second), number(middle * middle - high * high)))
    return sum_qx, sum_q2


@function
def split_two_halves(scratch, high):
    """IQ1_M: the boundaries, the signs of both shifts (see shift_of) and the scale of the 16 sorted values.

    Returns `high`, or 0 where the weights leave no choice.
    """
    sum_halves(scratch)
    best = begin_split(scratch, 2, high)
    for first in range(17):
        for second in range(first, 17):
            up_x0, up_w0 = sums_of_half(scratch, 0, first, second, SHIFT)
            up_x1, up_w1 = sums_of_half(scratch, 1, first, second, SHIFT)
            down_x0, down_w0 = sums_of_half(scratch, 0, first, second, -SHIFT)
            down_x1, down_w1 = sums_of_half(scratch, 1, first, second, -SHIFT)
            best = keep_better(scratch, add(up_x0, up_x1), add(up_w0, up_w1), first, second, 2, best)
            best = keep_better(scratch, add(up_x0, down_x1), add(up_w0, down_w1), first, second, 3, best)
            best = keep_better(scratch, add(down_x0, up_x1), add(down_w0, up_w1), first, second, 4, best)
            best = keep_better(scratch, add(down_x0, down_x1), add(down_w0, down_w1), first, second, 5, best)
    return select_lt(best, number(0), number(0), high)


@function
def weigh(scratch, x, group, importance, variance):
    if importance != 0:
        weigh_by_importance(x, scratch + IMPORTANCE + ROW * 16 * group, 16, variance, scratch + W)
    else:
        weigh_by_square(x, 16, scratch + W)


@function
def best_scale(scratch, importance, variance, vectors):
    """The scale of the block, for its codes and the whole scales of its groups."""
    for lane in range(16):
        store_f32(scratch + BASE + 4 * lane, f32(0))
        store_f32(scratch + MIDDLE + 4 * lane, f32(0))
    for j in range(16):
        x = scratch + X + ROW * 16 * j
        weigh(scratch, x, j, importance, variance)
        for lane in range(16):
            sum_qx, sum_q2 = load_f32(scratch + BASE + 4 * lane), load_f32(scratch + MIDDLE + 4 * lane)
            steps = f32(2 * load_i32(scratch + S + ROW * j + 4 * lane) + 1)
            for k in range(2):
                code = np.int64(load_i32(scratch + CODES + ROW * (2 * j + k) + 4 * lane))
                shift = shift_of(load_f32(scratch + SHIFTS + ROW * j + 4 * lane), k)
                for i in range(8):
                    at = ROW * (8 * k + i) + 4 * lane
                    w = load_f32(scratch + W + at)
                    q = level(load_u8(vectors + code * 8 + i), shift) * steps
                    sum_qx += w * q * load_f32(x + at)
                    sum_q2 += w * q * q
            store_f32(scratch + BASE + 4 * lane, sum_qx)
            store_f32(scratch + MIDDLE + 4 * lane, sum_q2)
    return div(load_f32x16(scratch + BASE), load_f32x16(scratch + MIDDLE))


@encoder
def iq1_m(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = begin(src, kind, importance, n_row, block, n_blocks, scratch)
        for j in range(16):
            x = scratch + X + ROW * 16 * j
            weigh(scratch, x, j, importance, variance)
            high = largest_size(x, 16)
            sort(scratch, x, 16)
            high = split_two_halves(scratch, high)
            finish_group(scratch, x, 16, high, 1e-7, j, codes, neighbours, vectors)
        d = whole_scales(scratch + S, 16, 15, 7)
        best = best_scale(scratch, importance, variance, vectors)
        best = select_lt(number(0), load_f32x16(scratch + MIDDLE), best, d)
        scale = half_bits(select_lt(number(0), d, mul(best, number(1.1125)), number(0)))
        for k in range(32):
            put(scratch, k, field_i32(load_i32x16(scratch + CODES + ROW * k), 0, 255))
        for j in range(16):
            choice = round_i32(sub(load_f32x16(scratch + SHIFTS + ROW * j), number(2)))
            low = join(field_i32(load_i32x16(scratch + CODES + ROW * 2 * j), 8, 7), field_i32(choice, 1, 1), 3)
            high_bits = field_i32(load_i32x16(scratch + CODES + ROW * (2 * j + 1)), 8, 7)
            put(scratch, 32 + j, join(low, join(high_bits, field_i32(choice, 0, 1), 3), 4))
        for j in range(4):
            word = load_i32x16(scratch + S + ROW * 4 * j)
            for k in range(1, 4):
                word = join(word, load_i32x16(scratch + S + ROW * (4 * j + k)), 3 * k)
            word = join(word, field_i32(scale, 4 * j, 15), 12)
            put(scratch, 48 + 2 * j, field_i32(word, 0, 255))
            put(scratch, 49 + 2 * j, field_i32(word, 8, 255))
        give(scratch, 56, out, block, n_blocks)
