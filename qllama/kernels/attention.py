"""Attention over the block-wise KV cache; how keys and values lie in it is kv.py's business.

A block of the cache is also the piece of the online softmax: its partial result (maximum, sum, weighted values) never
depends on the other blocks, and partial results are merged in order. So neither threads nor batches change a bit, and
with few tokens the pieces of a head can be shared out among the threads.

A layer that sees only some of the positions before a token, caps its scores or has sinks takes the kernel
`attention.windowed_K_V`; the others do not pay for it. Pieces that nobody sees are not looked at.

With many (token, head) rows keys and values are widened to float32 a chunk at a time, once for all of them; with few,
as when a token is decoded, they are read from the cache straight into the sums.
"""

from typing import Any

import numpy as np

from qllama.jit import function, kernel, register
from qllama.kernels.exp import exp
from qllama.kernels.kv import KINDS
from qllama.kernels.layouts import CACHE_BYTES, CHUNK, FEW_ROWS, LATENT, POSITIONS, item_tokens
from qllama.kernels.rows import take
from qllama.kernels.tiles import TILE, TILE_F32
from qllama.simd import (
    add,
    div,
    fma,
    lane_ids,
    load_f32,
    load_f32x16,
    load_i64,
    max_lanes,
    maximum,
    mul,
    select_below,
    splat_f32,
    store_f32,
    store_f32x16,
    sub,
    sum_lanes,
    tile,
    tile_fma,
    tile_store,
)

SCORES = POSITIONS * 4  # bytes of one row of scores
WIDE = CHUNK * 4  # bytes of one row of widened keys or values
DIRECT = max(TILE, TILE_F32)  # rows up to which nothing is widened
NEG_INF = np.float32(-np.inf)
assert CHUNK == 32
tokens_at_a_time = function(item_tokens)


@function
def softmax_piece(scores, n):
    """scores[i] -> exp(scores[i] - max) for i < n, zero for the rest of the piece; returns (max, sum)."""
    top, zero = splat_f32(NEG_INF), splat_f32(np.float32(0))
    whole = n // 16 * 16
    for i in range(0, whole, 16):
        top = maximum(top, load_f32x16(scores + 4 * i))
    for i in range(whole, n, 16):
        top = maximum(top, select_below(lane_ids(), np.int32(n - i), load_f32x16(scores + 4 * i), splat_f32(NEG_INF)))
    m = max_lanes(top)
    total = zero
    for i in range(0, whole, 16):
        p = exp(sub(load_f32x16(scores + 4 * i), splat_f32(m)))
        store_f32x16(scores + 4 * i, p)
        total = add(total, p)
    for i in range(whole, POSITIONS, 16):
        p = zero
        if i < n:
            p = select_below(lane_ids(), np.int32(n - i), exp(sub(load_f32x16(scores + 4 * i), splat_f32(m))), zero)
        store_f32x16(scores + 4 * i, p)
        total = add(total, p)
    return m, sum_lanes(total)


@function
def capped(x, cap):
    """cap * tanh(x / cap), tanh(y) = 1 - 2 / (1 + e^2y)."""
    e = exp(mul(x, splat_f32(np.float32(2) / cap)))
    y = sub(splat_f32(np.float32(1)), div(splat_f32(np.float32(2)), add(splat_f32(np.float32(1)), e)))
    return mul(y, splat_f32(cap))


@function
def softmax_window(scores, start, low, n, cap):
    """softmax_piece for low <= i < n, of scores capped at `cap` if that is not 0; zero from `start` to low.

    The same bits for any start, a multiple of 16.
    """
    top, zero, nothing = splat_f32(NEG_INF), splat_f32(np.float32(0)), splat_f32(NEG_INF)
    for i in range(low // 16 * 16, n, 16):
        x = load_f32x16(scores + 4 * i)
        x = select_below(lane_ids(), np.int32(n - i), capped(x, cap) if cap > 0 else x, nothing)
        x = select_below(lane_ids(), np.int32(low - i), nothing, x)
        store_f32x16(scores + 4 * i, x)
        top = maximum(top, x)
    m = max_lanes(top)
    total = zero
    for i in range(start, POSITIONS, 16):
        p = zero
        if low < i + 16 and i < n and low < n:
            p = exp(sub(load_f32x16(scores + 4 * i), splat_f32(m)))
        store_f32x16(scores + 4 * i, p)
        total = add(total, p)
    return m, sum_lanes(total)


@function
def first_seen(position, window, chunked):
    """The first position that the token at `position` sees.

    A window is of so many positions, the token's own included, 0 for all; `chunked` windows lie side by side.
    """
    if window == 0:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


@function
def exp1(x):
    """exp of one float32."""
    return max_lanes(exp(splat_f32(x)))


@function
def begin_merge(state, out, width, sinks, head):
    """Nothing merged yet; or a sink, a score with weight and without value: `sinks` has one per head, or is 0."""
    store_f32(state, load_f32(sinks + 4 * head) if sinks else NEG_INF)
    store_f32(state + 4, np.float32(1) if sinks else np.float32(0))
    for i in range(0, width, 16):
        store_f32x16(out + 4 * i, splat_f32(np.float32(0)))


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


@function
def end_merge(state, values, out, head_dim_v, width):
    """out = values / sum: a head of the result."""
    inverse = splat_f32(np.float32(1) / load_f32(state + 4))
    for i in range(0, width, 16):
        store_f32x16(values + 4 * i, mul(load_f32x16(values + 4 * i), inverse))
    for d in range(head_dim_v):
        store_f32(out + 4 * d, load_f32(values + 4 * d))


@function
def product(wide, n, x, ld_x, out, ld_out, n_row):
    """out[r][0..31] = sum over i < n of x[r][i] * wide[i][0..31]; n_row is a multiple of the tile."""
    for r in range(0, n_row, TILE_F32):
        low, high = tile(TILE_F32), tile(TILE_F32)
        at, scalar = wide, x + r * ld_x
        for _ in range(n):
            low = tile_fma(low, load_f32x16(at), scalar, ld_x)
            high = tile_fma(high, load_f32x16(at + 64), scalar, ld_x)
            at += WIDE
            scalar += 4
        tile_store(low, out + r * ld_out, ld_out)
        tile_store(high, out + r * ld_out + 64, ld_out)


def direct_product(add_rows: Any) -> Any:
    """The same from the cache itself, for the rows of one tile."""

    @function
    def one_tile(zero, src, n, x, ld_x, out, ld_out):
        low, high = add_rows(zero, zero, src, n, x, ld_x)
        tile_store(low, out, ld_out)
        tile_store(high, out + 64, ld_out)

    @function
    def direct(src, n, x, ld_x, out, ld_out, n_row):
        if n_row == 1:
            one_tile(tile(1), src, n, x, ld_x, out, ld_out)
        elif n_row == TILE:
            one_tile(tile(TILE), src, n, x, ld_x, out, ld_out)
        else:
            one_tile(tile(TILE_F32), src, n, x, ld_x, out, ld_out)

    return direct


@function
def gather_queries(q, ld_q, to, n_row, group, head_dim, scale):
    """The scaled queries of n_row (token, head) rows, one after the other; row r is token r // group."""
    for r in range(n_row):
        src = q + r // group * ld_q + r % group * head_dim * 4
        for d in range(head_dim):
            store_f32(to + 4 * (r * head_dim + d), load_f32(src + 4 * d) * scale)


@function
def whole_tiles(n_row):
    """Rows of the tiles that n_row rows are computed in."""
    if n_row <= 1:
        return n_row
    return TILE if n_row <= TILE else (n_row + TILE_F32 - 1) // TILE_F32 * TILE_F32


@function
def few(n_rows, group):
    """Whether the pieces of a head are work of their own: then one item has all tokens."""
    return n_rows <= min(FEW_ROWS, tokens_at_a_time(group))


def attention_kernel(kind_k: str, kind_v: str, windowed: bool) -> Any:
    """The kernel for a cache of keys and values of these types; `latent` values are the keys' first channels."""
    latent = kind_v == LATENT
    widen_keys, direct_keys = KINDS[kind_k].widen_keys, direct_product(KINDS[kind_k].add_keys)
    widen_latent = KINDS[kind_k].widen_latent
    values_of = KINDS[kind_k if latent else kind_v]
    widen_values, direct_values = values_of.widen_values, direct_product(values_of.add_values)
    key_bytes, value_bytes = CACHE_BYTES[kind_k], CACHE_BYTES[kind_v]

    @function
    def weights_of_row(scores, start, position, first, window, chunked, cap):
        """A row's scores to weights; the piece begins at `first`, the row's token is `position` behind that."""
        visible = max(min(position + 1, POSITIONS), 0)
        if windowed:
            low = max(0, first_seen(first + position, window, chunked) - first)
            return softmax_window(scores, start, low, visible, cap)
        return softmax_piece(scores, visible)

    @function
    def one_piece(
        k, v, queries, scores, parts, ld_part, wide, position, n_row, n_tile_row, group, head_dim, width, first, window,
        chunked, cap,
    ):  # fmt: skip
        """The part of one piece of one head: values, and (max, sum) behind them, for rows that see any of it.

        Row r's token is at `position` + r // group of the piece, which begins at position `first` of the context.
        """
        n = min(position + (n_row - 1) // group + 1, POSITIONS)
        start = 0
        if windowed:
            start = max(0, first_seen(first + position, window, chunked) - first) // CHUNK * CHUNK
        for i in range(start, n, CHUNK):
            src = k + i // CHUNK * head_dim * key_bytes
            if n_tile_row <= DIRECT:
                direct_keys(src, head_dim, queries, 4 * head_dim, scores + 4 * i, SCORES, n_tile_row)
            else:
                widen_keys(src, wide, head_dim)
                product(wide, head_dim, queries, 4 * head_dim, scores + 4 * i, SCORES, n_tile_row)
        for r in range(n_row):
            m, total = weights_of_row(scores + r * SCORES, start, position + r // group, first, window, chunked, cap)
            store_f32(parts + r * ld_part + 4 * width, m)
            store_f32(parts + r * ld_part + 4 * width + 4, total)
        for i in range(0, width, CHUNK):
            to, weights = parts + 4 * i, scores + 4 * start
            if latent:
                for p in range(start, n, CHUNK):
                    widen_latent(k + (p // CHUNK * head_dim + i) * key_bytes, wide + (p - start) * WIDE)
                product(wide, n - start, weights, SCORES, to, ld_part, n_tile_row)
                continue
            src = v + (i // CHUNK * POSITIONS + start) * value_bytes
            if n_tile_row <= DIRECT:
                direct_values(src, n - start, weights, SCORES, to, ld_part, n_tile_row)
            else:
                widen_values(src, wide, n - start)
                product(wide, n - start, weights, SCORES, to, ld_part, n_tile_row)

    @function
    def attend(
        job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale, n_head_kv, group, head_dim, head_dim_v,
        width, k_at, v_at, parts_at, ld_part, ld_q, ld_out, window, chunked, cap, sinks,
    ):  # fmt: skip
        apart = few(n_rows, group)
        per_item = tokens_at_a_time(group)
        n_piece = (n_past + n_rows - 1) // POSITIONS + 1
        first_piece = first_seen(n_past, window, chunked) // POSITIONS if windowed else 0
        n_item = (n_piece - first_piece if apart else (n_rows + per_item - 1) // per_item) * n_head_kv
        item = take(job, n_item, 1)
        while item < n_item:
            h = item % n_head_kv
            # The last tokens see the most: they go first, so that threads end together.
            first = 0 if apart else (n_item - 1 - item) // n_head_kv * per_item
            n_token = min(per_item, n_rows - first)
            n_row = n_token * group
            n_tile_row = whole_tiles(n_row)
            queries = scratch + tid * ld_scratch
            result = queries + 4 * n_tile_row * head_dim
            scores = result + 4 * n_tile_row * width
            parts = scores + n_tile_row * SCORES
            wide = parts + n_tile_row * ld_part
            states = wide + WIDE * max(head_dim, POSITIONS)
            keys, values = h * POSITIONS // CHUNK * head_dim * key_bytes, h * width // CHUNK * POSITIONS * value_bytes
            gather_queries(q + first * ld_q + h * group * head_dim * 4, ld_q, queries, n_row, group, head_dim, scale)
            piece, end = 0, (n_past + first + n_token - 1) // POSITIONS + 1
            if apart:
                piece = first_piece + item // n_head_kv
                end = piece + 1
            else:
                if windowed:
                    piece = first_seen(n_past + first, window, chunked) // POSITIONS
                for r in range(n_row):
                    begin_merge(states + 8 * r, result + 4 * r * width, width, sinks, h * group + r % group)
            while piece < end:
                begin = piece * POSITIONS
                block, position = load_i64(kv_blocks + 8 * piece), n_past + first - begin
                one_piece(
                    block + k_at + keys, block + v_at + values, queries, scores, parts, ld_part, wide, position, n_row,
                    n_tile_row, group, head_dim, width, begin, window, chunked, cap,
                )  # fmt: skip
                for r in range(n_row):
                    part = parts + r * ld_part
                    at = position + r // group
                    if apart:
                        to = block + parts_at + (r // group * n_head_kv * group + h * group + r % group) * ld_part
                        for i in range(0, ld_part, 64):
                            store_f32x16(to + i, load_f32x16(part + i))
                    elif at >= 0 and (not windowed or first_seen(begin + at, window, chunked) < begin + POSITIONS):
                        m, total = load_f32(part + 4 * width), load_f32(part + 4 * width + 4)
                        merge_piece(states + 8 * r, m, total, part, result + 4 * r * width, width)
                piece += 1
            if not apart:
                for r in range(n_row):
                    to = out + (first + r // group) * ld_out + (h * group + r % group) * head_dim_v * 4
                    end_merge(states + 8 * r, result + 4 * r * width, to, head_dim_v, width)
            item = take(job, n_item, 1)

    def attention(
        job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale: float, n_head_kv, group, head_dim,
        head_dim_v, width, k_at, v_at, parts_at, ld_part, ld_q, ld_out,
    ):  # fmt: skip
        """Items are (tile of tokens, key-value head): the keys and values of a head are read once for its group.

        With few tokens an item is (piece, key-value head), and its part goes to the piece's block for `merge`.
        """
        attend(
            job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale, n_head_kv, group, head_dim,
            head_dim_v, width, k_at, v_at, parts_at, ld_part, ld_q, ld_out, 0, 0, np.float32(0), 0,
        )  # fmt: skip

    def windowed_attention(
        job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale: float, n_head_kv, group, head_dim,
        head_dim_v, width, k_at, v_at, parts_at, ld_part, ld_q, ld_out, window, chunked, cap: float, sinks,
    ):  # fmt: skip
        """The same of what `first_seen` says, scores capped if `cap` is not 0, with `sinks` if that is not 0."""
        attend(
            job, tid, n_rows, n_past, kv_blocks, q, out, scratch, ld_scratch, scale, n_head_kv, group, head_dim,
            head_dim_v, width, k_at, v_at, parts_at, ld_part, ld_q, ld_out, window, chunked, cap, sinks,
        )  # fmt: skip

    return windowed_attention if windowed else attention


for _k in KINDS:
    for _v in (*KINDS, LATENT):
        register(f"attention.{_k}_{_v}", attention_kernel(_k, _v, windowed=False))
        register(f"attention.windowed_{_k}_{_v}", attention_kernel(_k, _v, windowed=True))


@kernel
def merge(
    job, tid, n_rows, n_past, kv_blocks, out, scratch, ld_scratch, n_head, group, head_dim_v, width, parts_at,
    ld_part, ld_out, window, chunked, sinks,
):  # fmt: skip
    """With few tokens: the parts of each (token, head), in the order of the pieces."""
    n_item = n_rows * n_head if few(n_rows, group) else 0
    values = scratch + tid * ld_scratch
    state = values + 4 * width
    item = take(job, n_item, 1)
    while item < n_item:
        t, h = item // n_head, item % n_head
        begin_merge(state, values, width, sinks, h)
        first = first_seen(n_past + t, window, chunked) // POSITIONS
        for piece in range(first, (n_past + t) // POSITIONS + 1):
            part = load_i64(kv_blocks + 8 * piece) + parts_at + item * ld_part
            m, total = load_f32(part + 4 * width), load_f32(part + 4 * width + 4)
            merge_piece(state, m, total, part, values, width)
        end_merge(state, values, out + t * ld_out + h * head_dim_v * 4, head_dim_v, width)
        item = take(job, n_item, 1)
