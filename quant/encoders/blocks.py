"""Blocks to lanes and back: 16 blocks of the source become 16 columns, 16 columns of bytes become blocks.

`scratch` is the memory of one call. A value of a block is a row of 16 lanes (64 bytes) there.
"""

from collections.abc import Callable
from typing import Any

from qllama.jit import function, register
from qllama.quant.native import SCRATCH
from qllama.simd import (
    field_i32,
    half_bits,
    largest_bits,
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i32x16,
    load_u8,
    or_i32,
    round_i32,
    shl_i32,
    store_f32x16,
    store_i8x16,
    store_i32x16,
    store_u8,
    transpose,
)

ROW = 64  # bytes: a value of each of the 16 blocks

# Offsets in the scratch memory.
SEEN = 0  # the bits of the largest magnitudes, for the caller
TILE = ROW  # 16 rows on their way
X = TILE + 16 * ROW  # 256 rows: the values
Q = X + 256 * ROW  # 256 rows: the quants
BYTES = Q + 256 * ROW  # 256 rows: a byte of the block each
IMPORTANCE = BYTES + 256 * ROW  # 256 rows
W = IMPORTANCE + 256 * ROW  # 256 rows: the weights of the squared errors
S = W + 256 * ROW  # 8 times 16 rows: scales, minimums, ...
assert S + 8 * 16 * ROW <= SCRATCH


def encoder(f: Callable[..., Any]) -> Callable[..., Any]:
    """Declare `f(src, kind, importance, n_row, out, scratch, n_blocks)`, which encodes whole rows.

    `src` has `n_blocks` blocks of values of `kind` (see load_values), `n_row` in a row, `importance` a float32 for
    each value of a row or is 0; `out` takes the blocks, `scratch` is SCRATCH bytes.
    """
    register(f"encode.{f.__name__}", f)
    return f


@function
def load_values(src, kind):
    """16 values of kind 0 (float32), 1 (float16) or 2 (bfloat16) as float32."""
    if kind == 0:
        return load_f32x16(src)
    if kind == 1:
        return load_f16x16(src)
    return load_bf16x16(src)


@function
def take(src, kind, first, n_blocks, length, scratch):
    """The blocks from `first` on to X, one per lane; behind the last block it is repeated."""
    size = 4 if kind == 0 else 2
    seen = load_i32x16(scratch + SEEN)
    for i in range(0, length, 16):
        for lane in range(16):
            block = min(first + lane, n_blocks - 1)
            v = load_values(src + (block * length + i) * size, kind)
            seen = largest_bits(seen, v)
            store_f32x16(scratch + TILE + ROW * lane, v)
        transpose(scratch + TILE, ROW, scratch + X + ROW * i, ROW)
    store_i32x16(scratch + SEEN, seen)


@function
def take_importance(importance, first, n_row, length, scratch):
    """The importance of those blocks' columns, likewise to IMPORTANCE."""
    for i in range(0, length, 16):
        for lane in range(16):
            v = load_f32x16(importance + ((first + lane) % n_row * length + i) * 4)
            store_f32x16(scratch + TILE + ROW * lane, v)
        transpose(scratch + TILE, ROW, scratch + IMPORTANCE + ROW * i, ROW)


@function
def give(scratch, n_bytes, out, first, n_blocks):
    """The `n_bytes` rows at BYTES to the blocks from `first` on."""
    for i in range(0, n_bytes, 16):
        transpose(scratch + BYTES + ROW * i, ROW, scratch + TILE, ROW)
        for lane in range(min(16, n_blocks - first)):
            to = out + (first + lane) * n_bytes + i
            bytes_ = load_i32x16(scratch + TILE + ROW * lane)
            if i + 16 <= n_bytes:
                store_i8x16(to, bytes_)
            else:
                for k in range(n_bytes - i):
                    store_u8(to + k, load_u8(scratch + TILE + ROW * lane + 4 * k))


@function
def put_half(scratch, at, x):
    """float16 to bytes `at` and `at + 1`; returns its bits."""
    bits = half_bits(x)
    store_i32x16(scratch + BYTES + ROW * at, field_i32(bits, 0, 255))
    store_i32x16(scratch + BYTES + ROW * (at + 1), field_i32(bits, 8, 255))
    return bits


@function
def put(scratch, at, byte):
    """A byte of each block, as int32."""
    store_i32x16(scratch + BYTES + ROW * at, byte)


@function
def join(low, high, n):
    """low | high << n."""
    return or_i32(low, shl_i32(high, n))


@function
def quants(scratch, i):
    """Quant i of the blocks as int32."""
    return round_i32(load_f32x16(scratch + Q + ROW * i))


@function
def four_quants(scratch, i):
    """A byte of the lowest 2 bits of quants i, i + 32, i + 64 and i + 96."""
    a, b = field_i32(quants(scratch, i), 0, 3), field_i32(quants(scratch, i + 32), 0, 3)
    c, d = field_i32(quants(scratch, i + 64), 0, 3), field_i32(quants(scratch, i + 96), 0, 3)
    return join(join(a, b, 2), join(c, d, 2), 4)


@function
def bits(scratch, i, step, n, position):
    """A number of n bits, 1 <= n <= 32: that at `position` of the quants i, i + step, ..."""
    out = field_i32(quants(scratch, i), position, 1)
    for j in range(1, n):
        out = join(out, field_i32(quants(scratch, i + step * j), position, 1), j)
    return out
