"""RMSNorm, alone and fused with the quantization of its output."""

import math

import numpy as np

from qllama.jit import function, kernel
from qllama.kernels.quants import quantize_row
from qllama.kernels.rows import take
from qllama.simd import fma, load_f32x16, mul, splat_f32, store_f32x16, sum_lanes


@function
def _scale(x, n, eps):
    """1 / sqrt(mean(x^2) + eps) over n float32; what pads x to whole vectors is zero."""
    total = splat_f32(np.float32(0))
    for i in range(0, n, 16):
        v = load_f32x16(x + 4 * i)
        total = fma(v, v, total)
    mean = sum_lanes(total) / np.float32(n)
    return np.float32(1) / np.float32(math.sqrt(mean + eps))


@function
def rms_row(x, weight, out, n, eps):
    """out = x * scale * weight."""
    scale = splat_f32(_scale(x, n, eps))
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
