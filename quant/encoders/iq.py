"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: vectors of a grid, a scale of 4 bits for each group, signs."""

from qllama.jit import function
from qllama.quant.encoders.blocks import (
    IMPORTANCE,
    ROW,
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
from qllama.quant.encoders.fits import fit_positive, number, sum_of_squares, weigh_by_importance, weigh_by_square
from qllama.quant.encoders.vectors import (
    CODES,
    DIGITS,
    ROOTS,
    SIGNS,
    finish_group,
    fit_vectors,
    make_positive,
    most_of,
    roots,
    whole_scales,
)
from qllama.simd import add, div, field_i32, load_f32x16, load_i32x16, mul, select_lt, store_f32x16

BIT = 1.401298464324817e-45  # the smallest float32


@function
def weigh(scratch, x, group, n, importance, variance, base):
    """The weights of the group at `x` and their roots; without importance x² + base."""
    if importance != 0:
        weigh_by_importance(x, scratch + IMPORTANCE + ROW * n * group, n, variance, scratch + W)
    else:
        weigh_by_square(x, n, scratch + W)
        for i in range(n):
            w = scratch + W + ROW * i
            store_f32x16(w, add(base, load_f32x16(w)))
    roots(scratch + W, n, scratch + ROOTS)


@function
def fit_group(scratch, group, n, width, levels, even, reach, step, again, empty, codes, neighbours, vectors):
    """All of a group: its signs, its codes, its scale at S. The range begins with the largest value."""
    x = scratch + X + ROW * n * group
    signs, codes_at = scratch + SIGNS + ROW * (n // 8 * group), scratch + CODES + ROW * (n // width * group)
    make_positive(x, scratch + W, n, even, signs)
    high = most_of(x, n)
    top, scale = high, div(high, number(2 * levels - 1))
    if again == 2:  # the range is that of a scale which is searched first
        scale = fit_positive(x, scratch + W, n, levels + 1, scratch + DIGITS)
        top = mul(scale, number(levels))
        high = select_lt(number(0), top, high, number(0))
    scale = fit_vectors(scratch, x, n, width, levels, top, scale, reach, step, again, codes_at, codes, neighbours,
                        vectors)  # fmt: skip
    finish_group(scratch, scale, high, empty, n // 8, signs, n // width, codes_at, scratch + S + ROW * group)


@function
def begin(src, kind, importance, n_row, block, n_blocks, scratch):
    """Take the blocks; returns the mean of the squares."""
    take(src, kind, block, n_blocks, 256, scratch)
    if importance != 0:
        take_importance(importance, block, n_row, 256, scratch)
    return div(sum_of_squares(scratch + X, 256), number(256))


@function
def code(scratch, k):
    return load_i32x16(scratch + CODES + ROW * k)


@function
def sign_bits(scratch, k):
    return load_i32x16(scratch + SIGNS + ROW * k)


@function
def whole_scale(scratch, group):
    return load_i32x16(scratch + S + ROW * group)


@function
def put_word_of_signs(scratch, at, group):
    """4 times 7 signs, and above them the scale, in 4 bytes."""
    word = field_i32(sign_bits(scratch, 4 * group), 0, 127)
    for k in range(1, 4):
        word = join(word, field_i32(sign_bits(scratch, 4 * group + k), 0, 127), 7 * k)
    word = join(word, whole_scale(scratch, group), 28)
    for i in range(4):
        put(scratch, at + i, field_i32(word, 8 * i, 255))


@function
def put_pairs_of_scales(scratch, at, n):
    for j in range(n):
        put(scratch, at + j, join(whole_scale(scratch, 2 * j), whole_scale(scratch, 2 * j + 1), 4))


@encoder
def iq2_xxs(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = begin(src, kind, importance, n_row, block, n_blocks, scratch)
        for j in range(8):
            weigh(scratch, scratch + X + ROW * 32 * j, j, 32, importance, variance, number(0))
            fit_group(scratch, j, 32, 8, 3, True, 6, 0.1, 2, 1e-15, codes, neighbours, vectors)
        put_half(scratch, 0, whole_scales(scratch + S, 8, 31, 15))
        for j in range(8):
            for k in range(4):
                put(scratch, 2 + 8 * j + k, code(scratch, 4 * j + k))
            put_word_of_signs(scratch, 6 + 8 * j, j)
        give(scratch, 66, out, block, n_blocks)


@encoder
def iq2_xs(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = begin(src, kind, importance, n_row, block, n_blocks, scratch)
        for j in range(16):
            weigh(scratch, scratch + X + ROW * 16 * j, j, 16, importance, variance, number(0))
            fit_group(scratch, j, 16, 8, 3, True, 9, 0.1, 1, 1e-15, codes, neighbours, vectors)
        put_half(scratch, 0, whole_scales(scratch + S, 16, 31, 15))
        for k in range(32):
            word = join(code(scratch, k), field_i32(sign_bits(scratch, k), 0, 127), 9)
            put(scratch, 2 + 2 * k, field_i32(word, 0, 255))
            put(scratch, 3 + 2 * k, field_i32(word, 8, 255))
        put_pairs_of_scales(scratch, 66, 8)
        give(scratch, 74, out, block, n_blocks)


@encoder
def iq2_s(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = mul(number(2), begin(src, kind, importance, n_row, block, n_blocks, scratch))
        for j in range(16):
            base = mul(number(0.25), variance)
            weigh(scratch, scratch + X + ROW * 16 * j, j, 16, importance, variance, base)
            fit_group(scratch, j, 16, 8, 3, False, 9, 0.1, 1, 1e-8, codes, neighbours, vectors)
        put_half(scratch, 0, mul(whole_scales(scratch + S, 16, 31, 15), number(0.9875)))
        for k in range(32):
            put(scratch, 2 + k, field_i32(code(scratch, k), 0, 255))
            put(scratch, 34 + k, sign_bits(scratch, k))
        for j in range(8):
            high = field_i32(code(scratch, 4 * j), 8, 3)
            for k in range(1, 4):
                high = join(high, field_i32(code(scratch, 4 * j + k), 8, 3), 2 * k)
            put(scratch, 66 + j, high)
        put_pairs_of_scales(scratch, 74, 8)
        give(scratch, 82, out, block, n_blocks)


@encoder
def iq3_xxs(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = mul(number(2), begin(src, kind, importance, n_row, block, n_blocks, scratch))
        for j in range(8):
            weigh(scratch, scratch + X + ROW * 32 * j, j, 32, importance, variance, number(0))
            fit_group(scratch, j, 32, 4, 8, True, 15, 0.2, 1, 1e-8, codes, neighbours, vectors)
        put_half(scratch, 0, mul(whole_scales(scratch + S, 8, 31, 15), number(1.0125)))
        for k in range(64):
            put(scratch, 2 + k, code(scratch, k))
        for j in range(8):
            put_word_of_signs(scratch, 66 + 4 * j, j)
        give(scratch, 98, out, block, n_blocks)


@encoder
def iq3_s(src, kind, importance, n_row, out, scratch, n_blocks, codes, neighbours, vectors):
    for block in range(0, n_blocks, 16):
        variance = mul(number(2), begin(src, kind, importance, n_row, block, n_blocks, scratch))
        for j in range(8):
            weigh(scratch, scratch + X + ROW * 32 * j, j, 32, importance, variance, number(0))
            fit_group(scratch, j, 32, 4, 8, False, 9, 0.2, 0, BIT, codes, neighbours, vectors)
        put_half(scratch, 0, mul(whole_scales(scratch + S, 8, 31, 15), number(1.033)))
        for k in range(64):
            put(scratch, 2 + k, field_i32(code(scratch, k), 0, 255))
        for j in range(8):
            high = field_i32(code(scratch, 8 * j), 8, 1)
            for k in range(1, 8):
                high = join(high, field_i32(code(scratch, 8 * j + k), 8, 1), k)
            put(scratch, 66 + j, high)
        for k in range(32):
            put(scratch, 74 + k, sign_bits(scratch, k))
        put_pairs_of_scales(scratch, 106, 4)
        give(scratch, 110, out, block, n_blocks)
