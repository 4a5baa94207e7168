"""Feed-forward activations and the small row operations around them."""

import numpy as np

from qllama.jit import function, kernel
from qllama.kernels.exp import exp
from qllama.kernels.layouts import BLOCK_Q8
from qllama.kernels.quants import quantize_block, quantize_row
from qllama.kernels.rows import take
from qllama.simd import add, div, load_f32x16, mul, splat_f32, store_f32x16, sub

SEGMENT = 512  # columns that a thread takes at a time


@function
def _swiglu(gate, up):
    """silu(gate) * up for 16 values, silu(x) = x / (1 + exp(-x))."""
    g = load_f32x16(gate)
    one = splat_f32(np.float32(1))
    return mul(div(g, add(one, exp(sub(splat_f32(np.float32(0)), g)))), load_f32x16(up))


@kernel
def swiglu_f32(job, n_rows, gate, up, out, n, ld_in, ld_out):
    segments = (n + SEGMENT - 1) // SEGMENT
    s = take(job, n_rows * segments, 1)
    while s < n_rows * segments:
        t, first = s // segments, s % segments * SEGMENT
        for i in range(first, min(first + SEGMENT, n), 16):
            at = t * ld_in + 4 * i
            store_f32x16(out + t * ld_out + 4 * i, _swiglu(gate + at, up + at))
        s = take(job, n_rows * segments, 1)


@kernel
def swiglu_q8(job, n_rows, gate, up, out, n, ld_in, ld_out):
    segments = (n + SEGMENT - 1) // SEGMENT
    s = take(job, n_rows * segments, 1)
    while s < n_rows * segments:
        t, first = s // segments, s % segments * SEGMENT
        for i in range(first, min(first + SEGMENT, n), 32):
            at = t * ld_in + 4 * i
            low, high = _swiglu(gate + at, up + at), _swiglu(gate + at + 64, up + at + 64)
            quantize_block(low, high, out + t * ld_out + i // 32 * BLOCK_Q8)
        s = take(job, n_rows * segments, 1)


@kernel
def quantize(job, n_rows, x, out, n, ld_x, ld_out):
    t = take(job, n_rows, 1)
    while t < n_rows:
        quantize_row(x + t * ld_x, out + t * ld_out, n)
        t = take(job, n_rows, 1)


@kernel
def add_bias(job, n_rows, x, bias, n, ld_x):
    t = take(job, n_rows, 1)
    while t < n_rows:
        for i in range(0, n, 16):
            at = x + t * ld_x + 4 * i
            store_f32x16(at, add(load_f32x16(at), load_f32x16(bias + 4 * i)))
        t = take(job, n_rows, 1)


@kernel
def scaled(job, n_rows, x, out, scale: float, n, ld_x, ld_out, onto):
    """out = scale * x, or out += scale * x."""
    t = take(job, n_rows, 1)
    while t < n_rows:
        for i in range(0, n, 16):
            to = out + t * ld_out + 4 * i
            v = mul(load_f32x16(x + t * ld_x + 4 * i), splat_f32(scale))
            store_f32x16(to, add(load_f32x16(to), v) if onto else v)
        t = take(job, n_rows, 1)


@kernel
def last_rows(job, n_rows, n_tokens, x, out, n, ld):
    """The last n_rows of n_tokens rows, to the front of `out`."""
    t = take(job, n_rows, 1)
    while t < n_rows:
        src = x + (n_tokens - n_rows + t) * ld
        for i in range(0, n, 16):
            store_f32x16(out + t * ld + 4 * i, load_f32x16(src + 4 * i))
        t = take(job, n_rows, 1)
