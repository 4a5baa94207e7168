"""Attention and the KV cache beside their naive twins, for every type of cache."""

import naive
import numpy as np
import pytest
from kernel_runner import Attention, Seen, same_bits

from qllama.kernels.layouts import CHUNK, POSITIONS

ULP = 2.0**-24  # half the distance of float32 neighbours, relative

TYPES = [("f16", "f16"), ("f32", "f32"), ("q8_0", "q8_0"), ("q8_0", "f16"), ("f32", "q8_0")]
FLOATS = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}


def qkv(n_tokens: int, n_positions: int, n_head_kv: int, group: int, head_dim: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng((n_tokens, n_positions, n_head_kv, group, head_dim))
    shapes = (n_tokens, n_head_kv * group), (n_positions, n_head_kv), (n_positions, n_head_kv)
    return tuple(rng.standard_normal((*shape, head_dim)).astype(np.float32) for shape in shapes)


def as_cached(x: np.ndarray, kind: str) -> np.ndarray:
    """What the cache makes of keys or values."""
    return naive.through_q8_0(x) if kind == "q8_0" else x.astype(FLOATS[kind])


@pytest.mark.parametrize("types", TYPES, ids="_".join)
@pytest.mark.parametrize(
    ("head_dim", "group"), [(8, 1), (8, 20), (16, 3), (16, 8), (64, 1), (64, 4), (80, 8), (80, 3), (128, 70), (256, 2)]
)
@pytest.mark.parametrize("n_past", [0, 250, 256, 511])
def test_attention(types, head_dim, group, n_past):
    """Scores here are below 8 and right to (head_dim + 3) roundings of sums below 40, so the weights are to 2e-4 in the
    worst case; roundings do not conspire, and what is seen is 1e-6."""
    if "q8_0" in types and head_dim % 32:
        head_dim = 32 * -(-head_dim // 32)
    n_tokens, n_head_kv = 70 if group == 1 else 19, 2
    q, k, v = qkv(n_tokens, n_past + n_tokens, n_head_kv, group, head_dim)
    attention = Attention(types, n_head_kv, group, head_dim, n_past + n_tokens)
    attention.store(k, v)
    got = attention.attend(q, n_past)
    expected = naive.attention(q, as_cached(k, types[0]), as_cached(v, types[1]))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    for n_threads in (2, 4):
        assert same_bits(attention.attend(q, n_past, n_threads), got)
    for few in (1, 3, 4, 5):  # as they are decoded, and in small batches
        for t in range(0, n_tokens, few):
            assert same_bits(attention.attend(q[t : t + few], n_past + t, 2), got[t : t + few])


WINDOWS = {
    "window": Seen(window=40), "one-position": Seen(window=1), "wide": Seen(window=300),
    "chunks": Seen(48, chunked=True), "cap": Seen(cap=2.0),
    "window-cap-sinks": Seen(33, cap=3.0, sinks=np.linspace(-3, 3, 6, dtype=np.float32)),
    "sinks": Seen(sinks=np.linspace(3, -3, 6, dtype=np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("seen", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("n_past", [0, 250, 520])
def test_windows_caps_and_sinks(kind, seen, n_past):
    """Values narrower than keys; bits that depend on neither threads nor batches."""
    n_tokens, n_head_kv, group, head_dim, head_dim_v = 70, 2, 3, 64, 32
    q, k, v = qkv(n_tokens, n_past + n_tokens, n_head_kv, group, head_dim)
    v = v[..., :head_dim_v].copy()
    attention = Attention((kind, kind), n_head_kv, group, head_dim, n_past + n_tokens, seen, head_dim_v)
    attention.store(k, v)
    first = n_past + 1 - seen.window if seen.window and not seen.chunked else 0
    if first >= POSITIONS:  # blocks that nobody sees need not be there
        attention.cache.table[: first // POSITIONS] = 0
    got = attention.attend(q, n_past)
    cached = as_cached(k, kind), as_cached(v, kind)
    expected = naive.attention(q, *cached, seen.window, seen.chunked, seen.cap, seen.sinks)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert same_bits(attention.attend(q, n_past, 3), got)
    for few in (1, 4, 7):
        for t in range(0, n_tokens, few):
            assert same_bits(attention.attend(q[t : t + few], n_past + t, 2), got[t : t + few])


def test_no_window_gives_the_same_bits_as_the_kernel_without():
    q, k, v = qkv(20, 320, 2, 2, 32)
    plain, windowed = (Attention(("f32", "f32"), 2, 2, 32, 320, seen) for seen in (None, Seen()))
    for attention in (plain, windowed):
        attention.store(k, v)
    for n in (1, 20):
        assert same_bits(plain.attend(q[:n], 300), windowed.attend(q[:n], 300))


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize(("head_dim", "head_dim_v", "group"), [(24, 16, 2), (96, 64, 16), (64, 32, 70)])
def test_values_that_are_the_first_channels_of_keys(kind, head_dim, head_dim_v, group):
    if kind == "q8_0" and head_dim % 32:
        head_dim = 32
    q, k, _ = qkv(9, 300, 1, group, head_dim)
    attention = Attention((kind, kind), 1, group, head_dim, 300, None, head_dim_v, latent=True)
    assert attention.cache.layer_bytes == attention.cache.values_at(0)  # nothing but keys
    attention.store(k, k)
    got, cached = attention.attend(q, 291), as_cached(k, kind)
    expected = naive.attention(q, cached, cached[..., :head_dim_v])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    for few in (1, 4):
        for t in range(0, 9, few):
            assert same_bits(attention.attend(q[t : t + few], 291 + t, 2), got[t : t + few])


@pytest.mark.parametrize("kind", ["f16", "f32", "q8_0"])
def test_one_position_gives_its_value(kind):
    q, k, v = qkv(1, 1, 1, 4, 32)
    attention = Attention((kind, kind), 1, 4, 32, 1)
    attention.store(k, v)
    np.testing.assert_allclose(attention.attend(q, 0)[0], np.repeat(as_cached(v[0], kind), 4, axis=0), rtol=2 * ULP)


def test_attention_to_scores_far_apart_takes_the_largest():
    q, k, v = qkv(1, 300, 1, 1, 64)
    k *= 100
    attention = Attention(("f32", "f32"), 1, 1, 64, 300)
    attention.store(k, v)
    np.testing.assert_allclose(attention.attend(q, 299), naive.attention(q, k, v), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", FLOATS)
def test_the_cache_keeps_keys_and_values_rounded_to_nearest(kind):
    n, n_head_kv, head_dim, dtype = 300, 2, 16, FLOATS[kind]
    _, k, v = qkv(1, n, n_head_kv, 1, head_dim)
    k[5], v[6] = np.float32(1e-7), np.float32(-6e-8)  # subnormal in f16
    attention = Attention((kind, kind), n_head_kv, 1, head_dim, n)
    for first, last in ((0, 250), (250, 259), (259, 300)):  # the second batch crosses into the second block
        attention.store(k[first:last], v[first:last], first, n_threads=2)
    cache = attention.cache
    for i, block in enumerate(cache._blocks):
        where, size = np.arange(i * POSITIONS, min(n, (i + 1) * POSITIONS)), POSITIONS * n_head_kv
        keys = block[cache.keys_at(1) :][: size * head_dim * dtype.itemsize].view(dtype)
        keys = keys.reshape(n_head_kv, POSITIONS // CHUNK, head_dim, CHUNK).transpose(1, 3, 0, 2)
        keys = keys.reshape(POSITIONS, n_head_kv, head_dim)[: len(where)]
        values = block[cache.values_at(1) :][: size * cache.width * dtype.itemsize].view(dtype)
        values = values.reshape(n_head_kv, cache.width // CHUNK, POSITIONS, CHUNK).transpose(2, 0, 1, 3)
        values = values.reshape(POSITIONS, n_head_kv, cache.width)[: len(where), :, :head_dim]
        assert keys.tobytes() == k[where].astype(dtype).tobytes()
        assert values.tobytes() == v[where].astype(dtype).tobytes()


def test_values_beyond_a_half_do_not_reach_earlier_tokens():
    """An infinity in the cache would: its weight is zero for them, and zero times infinity is NaN."""
    q, k, v = (np.ones((2, 1, 16), np.float32) for _ in range(3))
    v[1, 0, 0], k[1, 0, 1] = 1e6, -1e6
    attention = Attention(("f16", "f16"), 1, 1, 16, 1)
    attention.store(k, v)
    both = attention.attend(q, 0)
    assert np.isfinite(both).all()
    assert same_bits(both[:1], attention.attend(q[:1], 0))
