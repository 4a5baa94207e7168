"""Runs primitives of the SIMD vocabulary on arrays: `simd_probe.py IN.npz OUT.npz`, for the ISA of QLLAMA_ISA.

A process of its own, for one process has one ISA. OPS names each primitive with the bytes that one call reads from each
of its inputs and the type and number of its results; test_simd.py has the inputs and what they have to give.
"""

import os
import sys
from typing import Any

import numpy as np

from qllama import jit

os.environ.update(jit._target_environment())  # before the first import of Numba

from qllama import simd
from qllama.jit import function
from qllama.kernels.exp import exp
from qllama.simd import (
    absolute,
    code_book,
    div,
    field,
    field_i32,
    fma,
    high_nibbles,
    in_order,
    lane_ids,
    load_bf16,
    load_bf16x16,
    load_e4m3,
    load_e4m3x16,
    load_e8m0,
    load_e8m0x16,
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i8x16_f32,
    load_i8x16_i32,
    load_i8x64,
    load_i32,
    load_i32x16,
    look_up,
    low_nibbles,
    max_lanes,
    maximum,
    mul,
    or_i8,
    round_i32,
    scale_pow2,
    select_below,
    select_lt,
    splat_f32,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i8x16,
    store_i8x64,
    store_i32x16,
    store_i64,
    sub,
    sum_bytes,
    sum_lanes,
    tile,
    tile_add_dots,
    tile_add_product,
    tile_add_to,
    tile_dot_8,
    tile_dot_16,
    tile_dot_small,
    tile_fma,
    tile_mad_short,
    tile_scale,
    tile_shl,
    tile_shr,
    tile_splat_i32,
    tile_store,
    tile_sub_i32,
    tile_zero_i32,
    to_f32,
)  # fmt: skip

OPS: dict[str, Any] = {}


def op(inputs: str, result: str):
    """`inputs`: dtype and number of values for each argument, as "f4*16 i4*1"; `result` the same."""

    def decorate(f):
        def shape(text: str) -> tuple[np.dtype, int]:
            kind, _, n = text.partition("*")
            return np.dtype(f"<{kind}"), int(n)

        OPS[f.__name__] = [shape(s) for s in inputs.split()], shape(result), function(f)
        return f

    return decorate


@op("f4*16 f4*16 f4*16", "f4*16")
def fma16(x, y, z, out):
    store_f32x16(out, fma(load_f32x16(x), load_f32x16(y), load_f32x16(z)))


@op("f4*16 f4*16", "f4*64")
def arithmetic(x, y, out):
    a, b = load_f32x16(x), load_f32x16(y)
    store_f32x16(out, sub(a, b))
    store_f32x16(out + 64, mul(a, b))
    store_f32x16(out + 128, div(a, b))
    store_f32x16(out + 192, maximum(absolute(a), b))


@op("f4*16 f4*16", "f4*16")
def where_less(x, y, out):
    a, b = load_f32x16(x), load_f32x16(y)
    store_f32x16(out, select_lt(a, b, b, a))


@op("f4*16 i4*1", "f4*16")
def below(x, n, out):
    store_f32x16(out, select_below(lane_ids(), load_i32(n), load_f32x16(x), splat_f32(-1)))


@op("f4*16", "f4*16")
def exp16(x, out):
    store_f32x16(out, exp(load_f32x16(x)))


@op("f4*16", "i4*16")
def rounded(x, out):
    store_i32x16(out, round_i32(load_f32x16(x)))


@op("f4*16 i4*16", "f4*16")
def scaled(x, n, out):
    store_f32x16(out, scale_pow2(load_f32x16(x), load_i32x16(n)))


@op("f4*16", "f4*2")
def across(x, out):
    store_f32(out, sum_lanes(load_f32x16(x)))
    store_f32(out + 4, max_lanes(load_f32x16(x)))


@op("i4*16", "i4*16")
def integers(x, out):
    store_f32x16(out, to_f32(load_i32x16(x)))


@op("i4*16 i4*16", "i4*2")
def byte_sums(x, y, out):
    store_i64(out, sum_bytes(load_i32x16(x), load_i32x16(y)))


@op("i4*16", "i1*16")
def low_bytes(x, out):
    store_i8x16(out, load_i32x16(x))


@op("i1*16", "f4*16")
def signed_bytes(x, out):
    store_f32x16(out, load_i8x16_f32(x))


@op("u2*16", "f4*32")
def from_half(h, out):
    store_f32x16(out, load_f16x16(h))
    for i in range(16):
        store_f32(out + 64 + 4 * i, load_f16(h + 2 * i))


@op("u2*16", "f4*32")
def from_bf16(h, out):
    store_f32x16(out, load_bf16x16(h))
    for i in range(16):
        store_f32(out + 64 + 4 * i, load_bf16(h + 2 * i))


@op("u1*16", "f4*32")
def from_e8m0(e, out):
    store_f32x16(out, load_e8m0x16(e))
    for i in range(16):
        store_f32(out + 64 + 4 * i, load_e8m0(e + i))


@op("u1*16", "f4*32")
def from_e4m3(e, out):
    store_f32x16(out, load_e4m3x16(e))
    for i in range(16):
        store_f32(out + 64 + 4 * i, load_e4m3(e + i))


@op("f4*16", "u2*32")
def to_half(x, out):
    store_f16x16(out, load_f32x16(x))
    for i in range(16):
        store_f16(out + 32 + 2 * i, load_f32(x + 4 * i))


@op("u1*64 u1*64", "u1*192")
def bits(x, y, out):
    v = load_i8x64(x)
    store_i8x64(out, low_nibbles(v))
    store_i8x64(out + 64, high_nibbles(v))
    store_i8x64(out + 128, or_i8(v, load_i8x64(y)))


@op("u1*64", "u1*256")
def fields(x, out):
    v = load_i8x64(x)
    store_i8x64(out, field(v, 0, 31))
    store_i8x64(out + 64, field(v, 3, 28))
    in_order()
    store_i8x64(out + 128, field(v, 6, 3))
    store_i8x64(out + 192, field(v, 1, 127))


known = code_book([*range(-128, 128, 17)])


@op("u1*64", "i1*64")
def codes(index, out):
    store_i8x64(out, known(load_i8x64(index)))


@op("u1*64 i1*64", "i1*64")
def codes_of_a_book(index, book, out):
    store_i8x64(out, look_up(load_i8x64(book), load_i8x64(index)))


# Tiles of four tokens: token t's scalars are at t times the stride. A float tile is stored as it is, an integer one
# after a multiplication by 1.


@op("i4*4 u1*64 i1*16 f4*16", "f4*64")
def dot_small4(acc, w, x, one, out):
    zero = tile(4)
    total = tile_dot_small(tile_splat_i32(zero, acc, 4), load_i8x64(w), x, 4)
    tile_store(tile_scale(zero, total, load_f32x16(one), one, 0), out, 64)


@op("i4*4 u1*64 i1*16 f4*16", "f4*64")
def dot_8_4(acc, w, x, one, out):
    zero = tile(4)
    total = tile_dot_8(tile_splat_i32(zero, acc, 4), load_i8x64(w), x, 4)
    tile_store(tile_scale(zero, total, load_f32x16(one), one, 0), out, 64)


@op("i4*4 i4*4 f4*16", "f4*128")
def integer_tiles(x, y, one, out):
    zero = tile(4)
    n = tile_splat_i32(zero, x, 4)
    total = tile_shl(tile_sub_i32(n, tile_splat_i32(zero, y, 4)), 2)
    tile_store(tile_scale(zero, total, load_f32x16(one), one, 0), out, 64)
    negative = tile_sub_i32(tile_zero_i32(zero), n)
    tile_store(tile_scale(zero, negative, load_f32x16(one), one, 0), out + 256, 64)


@op("i4*4 i4*4 u1*256 i1*16 i1*64 f4*1", "f4*64")
def dot_16_4(acc, start, w, scale, x, one, out):
    zero = tile(4)
    vectors = load_i8x64(w), load_i8x64(w + 64), load_i8x64(w + 128), load_i8x64(w + 192)
    n = tile_dot_16(
        tile_splat_i32(zero, acc, 4), tile_splat_i32(zero, start, 4), *vectors, load_i8x16_i32(scale), x, 16
    )
    tile_store(tile_add_dots(zero, n, one, 0), out, 64)


@op("i4*4 i4*4 i1*16 f4*4 f4*16", "f4*128")
def scaled_tiles(acc, x, scale, d, v, out):
    zero = tile(4)
    half, minima = tile_shr(tile_splat_i32(zero, x, 4), 1), field_i32(load_i8x16_i32(scale), 4, 15)
    total = tile_add_dots(zero, tile_mad_short(tile_splat_i32(zero, acc, 4), half, minima), d, 4)
    tile_store(total, out, 64)
    tile_store(tile_add_product(total, total, load_f32x16(v)), out + 256, 64)


@op("f4*16 f4*4 i4*4 f4*16", "f4*64")
def float_tiles(v, x, n, d, out):
    """v * x, then n * (d * x) added to what is stored: the FMA of floats, and the one of a block."""
    total = tile_fma(tile(4), load_f32x16(v), x, 4)
    tile_store(total, out, 64)
    tile_add_to(tile_scale(tile(4), tile_splat_i32(tile(4), n, 4), load_f32x16(d), x, 4), out, 64)


def probe(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    inputs, (kind, n), f = OPS[name]
    calls = len(arrays[0]) // inputs[0][1]
    out = np.zeros(calls * n, kind)
    rows = [np.ascontiguousarray(a, k) for a, (k, _) in zip(arrays, inputs, strict=True)]
    strides = [k.itemsize * m for k, m in inputs]
    for a, (_, m) in zip(rows, inputs, strict=True):
        assert a.size == calls * m, name
    for i in range(calls):
        f(*(a.ctypes.data + i * s for a, s in zip(rows, strides, strict=True)), out.ctypes.data + i * n * kind.itemsize)
    return out


def main(source: str, result: str) -> None:
    given = dict(np.load(source))
    given["dot_8_4/1"] += simd.BIAS8  # as they are stored when they are packed
    names = sorted({key.partition("/")[0] for key in given})
    assert set(names) == set(OPS)
    out = {}
    for name in names:
        out[name] = probe(name, [given[f"{name}/{i}"] for i in range(len(OPS[name][0]))])
    np.savez(result, **out, BIAS8=simd.BIAS8)


if __name__ == "__main__":
    main(*sys.argv[1:])
