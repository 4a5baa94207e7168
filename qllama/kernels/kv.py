"""How keys and values lie in the cache, per type: storing them, and widening them to float32 for attention.

A block of the cache has POSITIONS positions of all layers. A key head is a row of chunks of CHUNK positions, in each of
which the positions lie side by side, so that a vector has one dimension of many positions. A value head is a row of
chunks of CHUNK channels, in each of which position follows position. CHUNK elements take CACHE_BYTES of their type.

q8_0: 32 values share a scale (float16), as in the file format. A key chunk has for each 32 dimensions the 32 scales and
then 32 x 32 bytes; a value chunk has for each position the scale and 32 bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qllama.jit import function, register
from qllama.kernels.layouts import CACHE_BYTES, CHUNK, LATENT, POSITIONS
from qllama.kernels.matmul import ask_ahead
from qllama.kernels.quants import quantize_block
from qllama.kernels.rows import take
from qllama.simd import (
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i8x16_f32,
    load_i64,
    load_u8,
    mul,
    splat_f32,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i64,
    store_u8,
    tile_fma,
    tokens_of,
)

Q8_BLOCK = CHUNK * CACHE_BYTES["q8_0"]  # 32 positions x 32 dimensions
assert Q8_BLOCK == CHUNK * (2 + CHUNK)


@dataclass(frozen=True)
class Kind:
    """The functions of one type.

    `add_keys(low, high, src, head_dim, x, ld_x)`: the tiles low and high plus the products of a chunk's positions with
    the rows of x, (low, high); `add_values` the same for n positions and a chunk's channels. `widen_keys(src, out,
    head_dim)`: a chunk to out[dimension][position]; `widen_values(src, out, n)`: n positions of a chunk to
    out[position][channel]; `store_key(x, to, lane, head_dim, scratch)`: a head to position `lane` of the chunk
    at `to`; `store_value(x, to, ld, head_dim, scratch)`: a head, a chunk of channels every `ld` bytes.
    `widen_latent(src, out)`: 32 dimensions of a chunk of keys to out[position][dimension].
    """

    add_keys: Any
    add_values: Any
    widen_keys: Any
    widen_values: Any
    widen_latent: Any
    store_key: Any
    store_value: Any


def _turned(load_one: Any) -> Any:
    """`widen_latent` where `load_one(src, dimension, position)` is one value of the chunk."""

    @function
    def widen_latent(src, out):
        for d in range(CHUNK):
            for i in range(CHUNK):
                store_f32(out + 4 * (CHUNK * i + d), load_one(src, d, i))

    return widen_latent


def _float_kind(size: int, load: Any, load_one: Any, store: Any, store_vector: Any) -> Kind:
    @function
    def one(src, d, i):
        return load_one(src + size * (CHUNK * d + i))

    @function
    def add_rows(low, high, src, n, x, ld_x):
        if tokens_of(low) == 1:
            ask_ahead(low, src, n * CHUNK * size)
        for _ in range(n):
            if tokens_of(low) > 1:
                ask_ahead(low, src, CHUNK * size)
            low = tile_fma(low, load(src), x, ld_x)
            high = tile_fma(high, load(src + 16 * size), x, ld_x)
            src += CHUNK * size
            x += 4
        return low, high

    @function
    def widen(src, out, n):
        """n rows of CHUNK elements."""
        for _ in range(n):
            store_f32x16(out, load(src))
            store_f32x16(out + 64, load(src + 16 * size))
            src += CHUNK * size
            out += CHUNK * 4

    @function
    def store_key(x, to, lane, head_dim, scratch):
        to += lane * size
        for d in range(head_dim):
            store(to + CHUNK * size * d, load_f32(x + 4 * d))

    @function
    def store_value(x, to, ld, head_dim, scratch):
        for d in range(0, head_dim, 16):
            store_vector(to + d // CHUNK * ld + d % CHUNK * size, load_f32x16(x + 4 * d))

    return Kind(add_rows, add_rows, widen, widen, _turned(one), store_key, store_value)


def _q8_kind() -> Kind:
    @function
    def add_keys(low, high, src, head_dim, x, ld_x):
        ask_ahead(low, src, head_dim // CHUNK * Q8_BLOCK)
        for _ in range(0, head_dim, CHUNK):
            d_low, d_high = load_f16x16(src), load_f16x16(src + 32)
            for d in range(CHUNK):
                at = src + 2 * CHUNK + CHUNK * d
                low = tile_fma(low, mul(load_i8x16_f32(at), d_low), x, ld_x)
                high = tile_fma(high, mul(load_i8x16_f32(at + 16), d_high), x, ld_x)
                x += 4
            src += Q8_BLOCK
        return low, high

    @function
    def add_values(low, high, src, n, x, ld_x):
        ask_ahead(low, src, n * (2 + CHUNK))
        for _ in range(n):
            d = splat_f32(load_f16(src))
            low = tile_fma(low, mul(load_i8x16_f32(src + 2), d), x, ld_x)
            high = tile_fma(high, mul(load_i8x16_f32(src + 18), d), x, ld_x)
            src += 2 + CHUNK
            x += 4
        return low, high

    @function
    def widen_keys(src, out, head_dim):
        for _ in range(0, head_dim, CHUNK):
            low, high = load_f16x16(src), load_f16x16(src + 32)
            for d in range(CHUNK):
                at = src + 2 * CHUNK + CHUNK * d
                store_f32x16(out, mul(load_i8x16_f32(at), low))
                store_f32x16(out + 64, mul(load_i8x16_f32(at + 16), high))
                out += CHUNK * 4
            src += Q8_BLOCK

    @function
    def widen_values(src, out, n):
        for _ in range(n):
            d = splat_f32(load_f16(src))
            store_f32x16(out, mul(load_i8x16_f32(src + 2), d))
            store_f32x16(out + 64, mul(load_i8x16_f32(src + 18), d))
            src += 2 + CHUNK
            out += CHUNK * 4

    @function
    def store_key(x, to, lane, head_dim, scratch):
        for i in range(0, head_dim, CHUNK):
            quantize_block(load_f32x16(x + 4 * i), load_f32x16(x + 4 * i + 64), scratch)
            store_f16(to + 2 * lane, load_f32(scratch))
            for d in range(CHUNK):
                store_u8(to + 2 * CHUNK + CHUNK * d + lane, load_u8(scratch + 16 + d))
            to += Q8_BLOCK

    @function
    def store_value(x, to, ld, head_dim, scratch):
        for i in range(0, head_dim, CHUNK):
            quantize_block(load_f32x16(x + 4 * i), load_f32x16(x + 4 * i + 64), scratch)
            store_f16(to, load_f32(scratch))
            for d in range(0, CHUNK, 8):
                store_i64(to + 2 + d, load_i64(scratch + 16 + d))
            to += ld

    @function
    def one(src, d, i):
        byte = np.int64(load_u8(src + 2 * CHUNK + CHUNK * d + i))
        return np.float32(byte - 256 if byte > 127 else byte) * load_f16(src + 2 * i)

    return Kind(add_keys, add_values, widen_keys, widen_values, _turned(one), store_key, store_value)


KINDS = {
    "f16": _float_kind(2, load_f16x16, load_f16, store_f16, store_f16x16),
    "f32": _float_kind(4, load_f32x16, load_f32, store_f32, store_f32x16),
    "q8_0": _q8_kind(),
}


def _store(kind_k: str, kind_v: str) -> Any:
    latent = kind_v == LATENT
    store_key, store_value = KINDS[kind_k].store_key, KINDS[kind_k if latent else kind_v].store_value
    key_bytes, value_bytes = CACHE_BYTES[kind_k], CACHE_BYTES[kind_v]

    def store(
        job, tid, n_rows, n_past, kv_blocks, k, v, scratch, ld_scratch, n_head_kv, head_dim, head_dim_v, width, k_at,
        v_at, ld_k, ld_v,
    ):  # fmt: skip
        """Keys and values of the step's tokens into the cache."""
        mine = scratch + tid * ld_scratch
        item = take(job, n_rows * n_head_kv, 4)
        while item < n_rows * n_head_kv:
            for j in range(item, min(item + 4, n_rows * n_head_kv)):
                t, h = j // n_head_kv, j % n_head_kv
                piece, position = (n_past + t) // POSITIONS, (n_past + t) % POSITIONS
                block = load_i64(kv_blocks + 8 * piece)
                keys = block + k_at + (h * (POSITIONS // CHUNK) + position // CHUNK) * head_dim * key_bytes
                store_key(k + t * ld_k + 4 * h * head_dim, keys, position % CHUNK, head_dim, mine)
                if not latent:
                    values = block + v_at + (h * (width // CHUNK) * POSITIONS + position) * value_bytes
                    store_value(v + t * ld_v + 4 * h * head_dim_v, values, POSITIONS * value_bytes, head_dim_v, mine)
            item = take(job, n_rows * n_head_kv, 4)

    return store


for _k in KINDS:
    for _v in (*KINDS, LATENT):
        register(f"kv.store_{_k}_{_v}", _store(_k, _v))
