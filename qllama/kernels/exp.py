"""exp of 16 float32, the same bits on every machine."""

import numpy as np

from qllama.jit import function
from qllama.simd import fma, maximum, mul, round_i32, scale_pow2, select_lt, splat_f32, to_f32

LOW, HIGH = np.float32(-87.0), np.float32(88.0)
LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has few enough bits that n times it is exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# 1 + r + r^2/2! + ... + r^7/7! for |r| <= ln(2)/2: the truncation error is below 3e-9 relative
C2, C3, C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
C5, C6, C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@function
def exp(x):
    """e**x: zero below -87, held at e**88 above 88."""
    held = select_lt(x, splat_f32(HIGH), x, splat_f32(HIGH))
    held = maximum(held, splat_f32(LOW))
    n = round_i32(mul(held, splat_f32(LOG2_E)))
    r = fma(to_f32(n), splat_f32(-LN2_HIGH), held)
    r = fma(to_f32(n), splat_f32(-LN2_LOW), r)
    p = fma(r, splat_f32(C7), splat_f32(C6))
    p = fma(p, r, splat_f32(C5))
    p = fma(p, r, splat_f32(C4))
    p = fma(p, r, splat_f32(C3))
    p = fma(p, r, splat_f32(C2))
    p = fma(p, r, splat_f32(np.float32(1)))
    p = fma(p, r, splat_f32(np.float32(1)))
    return select_lt(x, splat_f32(LOW), splat_f32(np.float32(0)), scale_pow2(p, n))
