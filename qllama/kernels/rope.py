"""Rotary position embedding: the table of a step's cosines and sines, and the rotation of heads."""

import numpy as np

from qllama.jit import function, kernel
from qllama.kernels.rows import take
from qllama.simd import load_f32, load_f64, store_f32

# pi/2 in three parts; the first two have 33 bits, so their products with quadrant counts below 2**20 are exact.
PIO2_1, PIO2_2, PIO2_3 = 1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21
TWO_OVER_PI = 0.63661977236758134308


@function
def sincos(angle):
    """(sin, cos) of angle >= 0 in float64: reduced to |r| <= pi/4, then Taylor's series (error below 1e-13).

    Only additions and multiplications, which give the same bits on every machine.
    """
    quadrant = np.int64(angle * TWO_OVER_PI + 0.5)
    k = np.float64(quadrant)
    r = ((angle - k * PIO2_1) - k * PIO2_2) - k * PIO2_3
    z = r * r
    s = r * (1 - z / 6 * (1 - z / 20 * (1 - z / 42 * (1 - z / 72 * (1 - z / 110 * (1 - z / 156))))))
    c = 1 - z / 2 * (1 - z / 12 * (1 - z / 30 * (1 - z / 56 * (1 - z / 90 * (1 - z / 132 * (1 - z / 182))))))
    q = quadrant & 3
    if q == 0:
        return s, c
    if q == 1:
        return c, -s
    if q == 2:
        return -s, -c
    return -c, s


@kernel
def table(job, n_rows, n_past, inv_freq, mscale: float, out, n_pair, ld_out):
    """out[t] = (cos, sin) * mscale of (n_past + t) * inv_freq[i], i < n_pair; inv_freq is float64."""
    t = take(job, n_rows, 1)
    while t < n_rows:
        position = np.float64(n_past + t)
        for i in range(n_pair):
            s, c = sincos(position * load_f64(inv_freq + 8 * i))
            store_f32(out + t * ld_out + 8 * i, np.float32(c) * mscale)
            store_f32(out + t * ld_out + 8 * i + 4, np.float32(s) * mscale)
        t = take(job, n_rows, 1)


@kernel
def interleaved(job, n_rows, x, angles, n_head, head_dim, n_pair, ld_x, ld_angles):
    """Rotate the first n_pair pairs (x[2i], x[2i+1]) of each head in place."""
    item = take(job, n_rows * n_head, 8)
    while item < n_rows * n_head:
        for j in range(item, min(item + 8, n_rows * n_head)):
            head = x + j // n_head * ld_x + j % n_head * head_dim * 4
            angle = angles + j // n_head * ld_angles
            for i in range(n_pair):
                c, s = load_f32(angle + 8 * i), load_f32(angle + 8 * i + 4)
                even, odd = load_f32(head + 8 * i), load_f32(head + 8 * i + 4)
                store_f32(head + 8 * i, even * c - odd * s)
                store_f32(head + 8 * i + 4, even * s + odd * c)
        item = take(job, n_rows * n_head, 8)


@kernel
def neox(job, n_rows, x, angles, n_head, head_dim, n_pair, ld_x, ld_angles):
    """Rotate the pairs (x[i], x[i + n_pair]), i < n_pair, of each head in place."""
    item = take(job, n_rows * n_head, 8)
    while item < n_rows * n_head:
        for j in range(item, min(item + 8, n_rows * n_head)):
            head = x + j // n_head * ld_x + j % n_head * head_dim * 4
            angle, other = angles + j // n_head * ld_angles, head + 4 * n_pair
            for i in range(n_pair):
                c, s = load_f32(angle + 8 * i), load_f32(angle + 8 * i + 4)
                first, second = load_f32(head + 4 * i), load_f32(other + 4 * i)
                store_f32(head + 4 * i, first * c - second * s)
                store_f32(other + 4 * i, first * s + second * c)
        item = take(job, n_rows * n_head, 8)
