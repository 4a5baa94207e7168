"""Attention over the block-wise KV cache, and storing into it.

A cache block has POSITIONS positions of all layers. In it, each key head is [position // 16][head_dim][16 positions],
each value head [position][value width], the width padded to 32. So keys and values are both read like packed weights:
one vector, many rows of queries.

A block is also the piece of the online softmax: its partial result (maximum, sum, weighted values) never depends on the
other blocks, and partial results are merged in order. So neither threads nor batches change a bit.
"""

from typing import Any

import numpy as np

from qllama.jit import function, register
from qllama.kernels.exp import exp
from qllama.kernels.layouts import ATTENTION_ROWS, POSITIONS
from qllama.kernels.rows import take
from qllama.kernels.tiles import TILE, TILE_F32
from qllama.simd import (
    add,
    add_i32,
    fma,
    lane_ids,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    max_lanes,
    maximum,
    mul,
    select_below,
    splat_f32,
    splat_i32,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    sub,
    sum_lanes,
    tile,
    tile_fma,
    tile_store,
)

SCORES = POSITIONS * 4  # bytes of one row of scores
NEG_INF = np.float32(-np.inf)


@function
def softmax_piece(scores, n):
    """scores[i] -> exp(scores[i] - max) for i < n, zero for the rest of the piece; returns (max, sum)."""
    top = splat_f32(NEG_INF)
    for i in range(0, n, 16):
        lanes = add_i32(lane_ids(), splat_i32(np.int32(i)))
        top = maximum(top, select_below(lanes, np.int32(n), load_f32x16(scores + 4 * i), splat_f32(NEG_INF)))
    m = max_lanes(top)
    zero = splat_f32(np.float32(0))
    total = zero
    for i in range(0, POSITIONS, 16):
        p = zero
        if i < n:
            lanes = add_i32(lane_ids(), splat_i32(np.int32(i)))
            p = exp(sub(load_f32x16(scores + 4 * i), splat_f32(m)))
            p = select_below(lanes, np.int32(n), p, zero)
        store_f32x16(scores + 4 * i, p)
        total = add(total, p)
    return m, sum_lanes(total)


@function
def exp1(x):
    """exp of one float32."""
    return max_lanes(exp(splat_f32(x)))


@function
def merge_piece(state, m, total, values, out, width):
    """Merge a piece's (m, total, values) into the running (max, sum) at `state` and the weighted values at `out`."""
    old_m, old_total = load_f32(state), load_f32(state + 4)
    new_m = max(old_m, m)
    old, new = exp1(old_m - new_m), exp1(m - new_m)
    store_f32(state, new_m)
    store_f32(state + 4, old_total * old + total * new)
    for i in range(0, width, 16):
        kept = mul(load_f32x16(out + 4 * i), splat_f32(old))
        store_f32x16(out + 4 * i, fma(load_f32x16(values + 4 * i), splat_f32(new), kept))


def attention_kernels(name: str, size: int, load: Any, store: Any, store_vector: Any) -> None:
    """Register `attention.NAME` and `attention.store_NAME` for a cache of elements of `size` bytes."""

    @function
    def score(like, rows, k, q, out, head_dim, n_row, n):
        """out[row][position] = q[row] . k[position] for the n positions of a piece, `rows` rows (a tile) at a time."""
        for r in range(0, n_row, rows):
            for i in range(0, n, 32):
                low, high = like, like
                at, query = k + i * size * head_dim, q + 4 * r * head_dim
                for _ in range(head_dim):
                    low = tile_fma(low, load(at), query, 4 * head_dim)
                    high = tile_fma(high, load(at + 16 * size * head_dim), query, 4 * head_dim)
                    at += 16 * size
                    query += 4
                tile_store(low, out + r * SCORES + 4 * i, SCORES)
                tile_store(high, out + r * SCORES + 4 * i + 64, SCORES)

    @function
    def weigh(like, rows, v, p, out, width, n_row, n):
        """out[row] = sum of p[row][position] * v[position]."""
        for r in range(0, n_row, rows):
            for i in range(0, width, 32):
                low, high = like, like
                at, weight = v + i * size, p + r * SCORES
                for _ in range(n):
                    low = tile_fma(low, load(at), weight, SCORES)
                    high = tile_fma(high, load(at + 16 * size), weight, SCORES)
                    at += width * size
                    weight += 4
                tile_store(low, out + 4 * (r * width + i), 4 * width)
                tile_store(high, out + 4 * (r * width + i) + 64, 4 * width)

    @function
    def gather_queries(q, ld_q, to, first, n_row, group, head_dim, scale):
        """The scaled queries of n_row (token, head) rows, one after the other; row r is token r // group."""
        for r in range(n_row):
            src = q + (first + r // group) * ld_q + r % group * head_dim * 4
            for d in range(head_dim):
                store_f32(to + 4 * (r * head_dim + d), load_f32(src + 4 * d) * scale)

    @function
    def one_head(kv_blocks, k_at, v_at, position, q, out, scratch, n_row, n_tile_row, group, head_dim, width):
        """All rows of one key-value head; row r sees positions up to position + r // group."""
        scores = scratch
        part = scores + n_tile_row * SCORES
        state = part + n_tile_row * width * 4
        for r in range(n_tile_row):
            store_f32(state + 8 * r, NEG_INF)
            store_f32(state + 8 * r + 4, np.float32(0))
            for i in range(0, width, 16):
                store_f32x16(out + 4 * (r * width + i), splat_f32(np.float32(0)))
        last = position + (n_row - 1) // group
        for piece in range(last // POSITIONS + 1):
            block = load_i64(kv_blocks + 8 * piece)
            n = min(last + 1 - piece * POSITIONS, POSITIONS)
            if n_tile_row >= TILE_F32:
                score(tile(TILE_F32), TILE_F32, block + k_at, q, scores, head_dim, n_tile_row, n)
            else:
                score(tile(TILE), TILE, block + k_at, q, scores, head_dim, n_tile_row, n)
            for r in range(n_row):
                visible = min(position + r // group + 1 - piece * POSITIONS, POSITIONS)
                m, total = softmax_piece(scores + r * SCORES, max(visible, 0))
                store_f32(state + 8 * (n_tile_row + r), m)
                store_f32(state + 8 * (n_tile_row + r) + 4, total)
            if n_tile_row >= TILE_F32:
                weigh(tile(TILE_F32), TILE_F32, block + v_at, scores, part, width, n_tile_row, n)
            else:
                weigh(tile(TILE), TILE, block + v_at, scores, part, width, n_tile_row, n)
            for r in range(n_row):
                m, total = load_f32(state + 8 * (n_tile_row + r)), load_f32(state + 8 * (n_tile_row + r) + 4)
                if total > np.float32(0):
                    merge_piece(state + 8 * r, m, total, part + 4 * r * width, out + 4 * r * width, width)
        for r in range(n_row):
            inverse = np.float32(1) / load_f32(state + 8 * r + 4)
            for i in range(0, width, 16):
                at = out + 4 * (r * width + i)
                store_f32x16(at, mul(load_f32x16(at), splat_f32(inverse)))

    def attention(
        job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale: float, n_head_kv, group, head_dim,
        width, k_at, v_at, ld_q, ld_out,
    ):  # fmt: skip
        """Items are (tile of tokens, key-value head): the keys and values of a head are read once for its group."""
        per_item = max(1, ATTENTION_ROWS // group)
        n_item = (n_rows + per_item - 1) // per_item * n_head_kv
        mine = scratch + tid * ld_scratch
        item = take(job, n_item, 1)
        while item < n_item:
            # The last tokens see the most: they go first, so that threads end together.
            first, h = (n_item - 1 - item) // n_head_kv * per_item, item % n_head_kv
            n_row = min(per_item, n_rows - first) * group
            tile_rows = TILE_F32 if n_row > TILE else TILE
            n_tile_row = (n_row + tile_rows - 1) // tile_rows * tile_rows
            queries = mine
            result = queries + 4 * n_tile_row * head_dim
            rest = result + 4 * n_tile_row * width
            gather_queries(q + h * group * head_dim * 4, ld_q, queries, first, n_row, group, head_dim, scale)
            one_head(
                kv_blocks, k_at + h * POSITIONS * head_dim * size, v_at + h * POSITIONS * width * size, n_past + first,
                queries, result, rest, n_row, n_tile_row, group, head_dim, width,
            )  # fmt: skip
            for r in range(n_row):
                to = out + (first + r // group) * ld_out + (h * group + r % group) * head_dim * 4
                for d in range(head_dim):
                    store_f32(to + 4 * d, load_f32(result + 4 * (r * width + d)))
            item = take(job, n_item, 1)

    def store_kv(job, n_rows, n_past, kv_blocks, k, v, n_head_kv, head_dim, width, k_at, v_at, ld_k, ld_v):
        """Keys and values of the step's tokens into the cache."""
        item = take(job, n_rows * n_head_kv, 4)
        while item < n_rows * n_head_kv:
            for j in range(item, min(item + 4, n_rows * n_head_kv)):
                t, h = j // n_head_kv, j % n_head_kv
                position = (n_past + t) % POSITIONS
                block = load_i64(kv_blocks + 8 * ((n_past + t) // POSITIONS))
                head = block + k_at + h * POSITIONS * head_dim * size
                to = head + (position // 16 * head_dim * 16 + position % 16) * size
                for d in range(head_dim):
                    store(to + 16 * size * d, load_f32(k + t * ld_k + 4 * (h * head_dim + d)))
                to = block + v_at + (h * POSITIONS + position) * width * size
                for d in range(0, head_dim, 16):
                    store_vector(to + d * size, load_f32x16(v + t * ld_v + 4 * (h * head_dim + d)))
            item = take(job, n_rows * n_head_kv, 4)

    register(f"attention.{name}", attention)
    register(f"attention.store_{name}", store_kv)


attention_kernels("f16", 2, load_f16x16, store_f16, store_f16x16)
attention_kernels("f32", 4, load_f32x16, store_f32, store_f32x16)
assert POSITIONS % 32 == 0
