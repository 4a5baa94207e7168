"""RMSNorm of rows, alone and fused with the quantization of its output, and of each head of a row."""

import math

import numpy as np

from qllama.jit import function, kernel
from qllama.kernels.quants import quantize_row
from qllama.kernels.rows import take
from qllama.simd import fma, load_f32, load_f32x16, mul, splat_f32, store_f32, store_f32x16, sum_lanes


@function
def _squares(x, n):
    """The sum of the squares of n float32, a multiple of 16."""
    total = splat_f32(np.float32(0))
    for i in range(0, n, 16):
        v = load_f32x16(x + 4 * i)
        total = fma(v, v, total)
    return sum_lanes(total)


@function
def _scale(squares, n, eps):
    """1 / sqrt(mean + eps)."""
    return np.float32(1) / np.float32(math.sqrt(squares / np.float32(n) + eps))


@function
def rms_row(x, weight, out, n, eps):
    """out = x * scale * weight; what pads x to whole vectors is zero."""
    scale = splat_f32(_scale(_squares(x, (n + 15) // 16 * 16), n, eps))
    for i in range(0, n, 16):
        store_f32x16(out + 4 * i, mul(mul(load_f32x16(x + 4 * i), scale), load_f32x16(weight + 4 * i)))


@kernel
def rms_f32(job, n_rows, x, weight, out, n, eps: float, ld_x, ld_out):
    t = take(job, n_rows, 1)
    while t < n_rows:
        rms_row(x + t * ld_x, weight, out + t * ld_out, n, eps)
        t = take(job, n_rows, 1)


@kernel
def rms_q8(job, n_rows, x, weight, scratch, out, n, eps: float, ld_x, ld_scratch, ld_out):
    """`scratch` keeps the float32 row, which is in the first-level cache when it is quantized."""
    t = take(job, n_rows, 1)
    while t < n_rows:
        rms_row(x + t * ld_x, weight, scratch + t * ld_scratch, n, eps)
        quantize_row(scratch + t * ld_scratch, out + t * ld_out, n)
        t = take(job, n_rows, 1)


@function
def _rms_head(x, weight, n, eps):
    """x = x * scale * weight for n float32, behind which another head may begin."""
    whole = n // 16 * 16
    squares = _squares(x, whole)
    for i in range(whole, n):
        squares += load_f32(x + 4 * i) * load_f32(x + 4 * i)
    scale = _scale(squares, n, eps)
    for i in range(0, whole, 16):
        store_f32x16(x + 4 * i, mul(mul(load_f32x16(x + 4 * i), splat_f32(scale)), load_f32x16(weight + 4 * i)))
    for i in range(whole, n):
        store_f32(x + 4 * i, load_f32(x + 4 * i) * scale * load_f32(weight + 4 * i))


@kernel
def rms_heads(job, n_rows, x, weight, n_head, head_dim, eps: float, ld_x):
    """RMSNorm of each head in place, all with the same weight."""
    item = take(job, n_rows * n_head, 8)
    while item < n_rows * n_head:
        for j in range(item, min(item + 8, n_rows * n_head)):
            _rms_head(x + j // n_head * ld_x + j % n_head * head_dim * 4, weight, head_dim, eps)
        item = take(job, n_rows * n_head, 8)
