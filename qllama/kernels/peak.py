"""The yardsticks of `qllama bench`: what this machine reads and computes at most, and the clock between operations.

The arithmetic peaks are reached with the instructions of the matmuls, on 4 KiB that stay in the first cache.
"""

import numpy as np

from qllama import cpu
from qllama.jit import kernel
from qllama.kernels.rows import take, take_share
from qllama.simd import (
    add,
    load_f32x16,
    load_i8x64,
    monotonic_ns,
    splat_f32,
    store_f32x16,
    store_i64,
    tile,
    tile_dot_small,
    tile_fma,
    tile_scale,
    tile_splat_i32,
    tile_store,
)

# Sums side by side, so that no instruction waits for the one before; no more than the registers hold. A unit of work
# writes the number of operations it did (int64), and, so that they are done, the sums from byte 64 on.
CHAINS = 12 if cpu.isa().name == "avx512" else 4
VECTORS = 64  # of 64 bytes: the data


@kernel
def int8(job, data, out, n_unit, n_round, ld_out):
    """Units of int8 dot products; `data` is 4 KiB of bytes 0..127."""
    u = take(job, n_unit, 1)
    while u < n_unit:
        acc = tile_splat_i32(tile(CHAINS), data, 0)
        for _ in range(n_round):
            for v in range(VECTORS):
                acc = tile_dot_small(acc, load_i8x64(data + 64 * v), data, 4)
        at = out + u * ld_out
        store_i64(at, n_round * VECTORS * CHAINS * 128)
        tile_store(tile_scale(tile(CHAINS), acc, load_f32x16(data), data, 0), at + 64, 64)
        u = take(job, n_unit, 1)


@kernel
def f32(job, data, out, n_unit, n_round, ld_out):
    """Units of float32 fma; `data` is 4 KiB of float32."""
    u = take(job, n_unit, 1)
    while u < n_unit:
        total = tile(CHAINS)
        for _ in range(n_round):
            for v in range(VECTORS):
                total = tile_fma(total, load_f32x16(data + 64 * v), data, 4)
        at = out + u * ld_out
        store_i64(at, n_round * VECTORS * CHAINS * 32)
        tile_store(total, at + 64, 64)
        u = take(job, n_unit, 1)


@kernel
def read(job, src, out, n_row, row):
    """Read n_row rows of `row` bytes (a multiple of 512), in the shares of a matrix x vector; `out`: 64 bytes a row."""
    first, last = take_share(job, n_row)
    while first < n_row:
        a = splat_f32(np.float32(0))
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for at in range(src + first * row, src + last * row, 512):
            a = add(a, load_f32x16(at))
            b = add(b, load_f32x16(at + 64))
            c = add(c, load_f32x16(at + 128))
            d = add(d, load_f32x16(at + 192))
            e = add(e, load_f32x16(at + 256))
            f = add(f, load_f32x16(at + 320))
            g = add(g, load_f32x16(at + 384))
            h = add(h, load_f32x16(at + 448))
        total = add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h)))
        store_f32x16(out + 64 * first, total)
        first, last = take_share(job, n_row)


@kernel
def stamp(job, out):
    """The monotonic clock in ns, to `out`; 16 bytes after it are overwritten."""
    if take(job, 1, 1) == 0:
        store_i64(out, monotonic_ns(out + 8))
