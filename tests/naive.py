"""The slow NumPy twin of every kernel, and of a whole model. Files are read by gguf-py, nothing of the engine is used.

`quantize` and `matmul_bits` repeat a kernel's float32 operations one by one and give the same bits; everything else
computes in float64 what its kernel approximates.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from naive_blocks import block_bytes, weights

# Activations as matmuls of quantized weights read them: value = d * q.
BLOCK_Q8 = np.dtype([("d", "<f4"), ("nsum8", "<i4"), ("nsum8_low", "<i4"), ("dsum", "<f4"), ("q", "i1", 32)])
assert BLOCK_Q8.itemsize == 48


class Parts(NamedTuple):
    """How to take a block apart by decoding alone: the bytes that make its scales, or its integers, one."""

    columns: int  # that share a scale
    d: int | None  # offset of the f16 that multiplies all
    dmin: int | None  # offset of the f16 that is added, or multiplies what is
    scales: dict[int, bytes]  # offset -> bytes with which all scales are 1 when d is `one`
    ones: dict[int, bytes]  # offset -> bytes with which all integers are 1; empty when there are none, and no zeros
    keep: tuple[int, bytes] = (0, b"")  # offset, the bits there that are not of scales, where bytes have both
    one: float = 1


PARTS: dict[str, Parts] = {
    "Q4_0": Parts(32, 0, None, {}, {2: b"\x99" * 16}),
    "Q4_1": Parts(32, 0, 2, {}, {4: b"\x11" * 16}),
    "Q5_0": Parts(32, 0, None, {}, {2: b"\xff" * 4 + b"\x11" * 16}),
    "Q5_1": Parts(32, 0, 2, {}, {4: b"\0" * 4 + b"\x11" * 16}),
    "Q8_0": Parts(32, 0, None, {}, {2: b"\1" * 32}),
    "Q2_K": Parts(16, 80, 82, {0: b"\1" * 16}, {16: b"\x55" * 64}),
    "Q3_K": Parts(16, 108, None, {96: b"\x11" * 8 + b"\xaa" * 4}, {0: b"\xff" * 32 + b"\x55" * 64}),
    "Q4_K": Parts(32, 0, 2, {4: b"\1" * 8 + b"\x11" * 4}, {16: b"\x11" * 128}),
    "Q5_K": Parts(32, 0, 2, {4: b"\1" * 8 + b"\x11" * 4}, {16: bytes(32) + b"\x11" * 128}),
    "Q6_K": Parts(16, 208, None, {192: b"\1" * 16}, {0: b"\x11" * 128 + b"\xaa" * 64}),
    "IQ4_NL": Parts(32, 0, None, {}, {2: b"\x88" * 16}),
    "IQ4_XS": Parts(32, 0, None, {2: b"\xaa" * 2 + b"\x11" * 4}, {8: b"\x88" * 128}),
    "MXFP4": Parts(32, None, None, {0: b"\x80"}, {1: b"\x11" * 16}),
    "NVFP4": Parts(16, None, None, {0: b"\x40" * 4}, {4: b"\x11" * 32}),
    "Q8_1": Parts(32, 0, None, {}, {4: b"\1" * 32}),
    "Q8_K": Parts(32, None, None, {0: np.float32(1).tobytes()}, {4: b"\1" * 256}),
    "Q1_0": Parts(32, 0, None, {}, {2: b"\xff" * 16}),
    "Q2_0": Parts(32, 0, None, {}, {2: b"\xaa" * 16}),
    "TQ1_0": Parts(32, 52, None, {}, {0: b"\xff" * 52}),
    "TQ2_0": Parts(32, 64, None, {}, {0: b"\xaa" * 64}),
    "IQ1_S": Parts(16, 0, None, {}, {}, (34, b"\xff\x8f" * 8), one=8),
    "IQ1_M": Parts(16, None, None, {48: b"\0\0\0\0\0\x80\0\x40"}, {}),  # d is 8
    "IQ2_XXS": Parts(16, 0, None, {}, {}, (2, (b"\xff" * 7 + b"\x0f") * 8), one=8),
    "IQ2_XS": Parts(16, 0, None, {66: bytes(8)}, {}, one=8),
    "IQ2_S": Parts(16, 0, None, {74: bytes(8)}, {}, one=8),
    "IQ3_XXS": Parts(16, 0, None, {}, {}, (66, (b"\xff" * 3 + b"\x0f") * 8), one=4),
    "IQ3_S": Parts(16, 0, None, {106: bytes(4)}, {}),
}
SCALED = ("Q2_K", "Q3_K")  # a group's scale is part of the integer dot product
PAIRED = ("Q6_K",)  # the two groups of a block of activations are added before its scale
ONE, ZERO = np.float16(1).tobytes(), bytes(2)


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z of float32 arrays, rounded once.

    The product is exact in float64. The sum is made odd there when it is inexact, so that rounding it a second time
    does no harm (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, z = np.float64(x) * np.float64(y), np.float64(z)
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    outward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    inexact_even = (error != 0) & (np.atleast_1d(total).view(np.int64).reshape(np.shape(total)) & 1 == 0)
    return np.where(inexact_even, outward, total).astype(np.float32)


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Normalized mean square error."""
    got, expected = np.float64(got), np.float64(expected)
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


# ---- activations and weights


def quantize(x: np.ndarray) -> np.ndarray:
    """(n_tokens, n) float32 -> (n_tokens, n // 32) of BLOCK_Q8: d = amax / 127, ties to even; below 1e-30 all zero."""
    values = x.reshape(len(x), -1, 32)
    amax = np.abs(values).max(axis=2)
    some = amax >= np.float32(1e-30)
    q = np.rint(values * np.where(some, np.float32(127) / np.where(some, amax, 1), 0).astype(np.float32)[:, :, None])
    out = np.zeros(amax.shape, BLOCK_Q8)
    out["d"] = np.where(some, amax / np.float32(127), 0)
    out["q"] = q.astype(np.int8)
    out["nsum8"] = -8 * q.sum(axis=2)
    out["nsum8_low"] = -8 * q[:, :, :16].sum(axis=2)
    with np.errstate(over="ignore"):
        out["dsum"] = out["d"] * q.sum(axis=2).astype(np.float32)
    return out


def dequantized_activations(x: np.ndarray) -> np.ndarray:
    """What is left of (n_tokens, n) float32 when it is quantized: (n_tokens, n) float64."""
    blocks = quantize(x)
    return (np.float64(blocks["d"])[:, :, None] * blocks["q"]).reshape(x.shape)


def _blocks(rows: np.ndarray, type_name: str) -> np.ndarray:
    """(n_out, bytes of a row) -> (n_out, n_block, bytes of a block)."""
    return rows.reshape(len(rows), -1, block_bytes(type_name))


def _with(blocks: np.ndarray, type_name: str, changes: dict[int | None, bytes]) -> np.ndarray:
    """The values (n_out, n_group, columns) of rows after `changes` to every block: offset -> bytes."""
    changed = _blocks(blocks, type_name).copy()
    for at, content in changes.items():
        if at is not None:
            changed[:, :, at : at + len(content)] = np.frombuffer(content, np.uint8)
    return weights(changed.reshape(len(blocks), -1), type_name).reshape(len(blocks), -1, PARTS[type_name].columns)


def _without_scales(blocks: np.ndarray, type_name: str) -> np.ndarray:
    """Rows whose scales that share bytes with other things have no bit set."""
    changed = _blocks(blocks, type_name).copy()
    at, bits = PARTS[type_name].keep
    changed[:, :, at : at + len(bits)] &= np.frombuffer(bits, np.uint8)
    return changed.reshape(len(blocks), -1)


def take_apart(blocks: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w = scale * integer + min of quantized rows, by decoding.

    Scales (n_out, n_group) float32, integers (n_out, n_group, columns), mins (n_out, n_group) float32.
    """
    parts = PARTS[type_name]
    one = np.float16(parts.one).tobytes()
    integers = _with(_without_scales(blocks, type_name), type_name, {parts.d: one, parts.dmin: ZERO, **parts.scales})
    if parts.ones:
        scales = _with(blocks, type_name, {parts.dmin: ZERO, **parts.ones})[:, :, 0]
    else:
        scales = _with(blocks, type_name, {})[:, :, 0] / integers[:, :, 0]  # exact: the weight is their product
    mins = np.zeros_like(scales)
    if parts.dmin is not None:
        mins = _with(blocks, type_name, {at: bytes(len(ones)) for at, ones in parts.ones.items()})[:, :, 0]
    return scales, integers.astype(np.int64), mins


def matmul_bits(blocks: np.ndarray, type_name: str, x: np.ndarray) -> np.ndarray:
    """W x for (n_tokens, n_in) float32: (n_tokens, n_out) float32, the very bits that a matmul has to give.

    Quantized: an integer dot product per group of columns, one float32 FMA for each and one for its min, groups in
    order (or see PAIRED). Floats: one FMA per column, in order.
    """
    total = np.zeros((len(x), len(blocks)), np.float32)
    if type_name not in PARTS:
        w = weights(blocks, type_name)
        for column in range(x.shape[1]):
            total = fma(w[None, :, column], x[:, column, None], total)
        return total
    if type_name in SCALED:
        return _scaled_bits(blocks, type_name, x)
    scales, q, mins = take_apart(blocks, type_name)
    columns = q.shape[2]
    activations = quantize(x)
    qx = activations["q"].reshape(len(x), -1, columns).astype(np.int64)
    for g in range(q.shape[1]):
        dot = qx[:, g] @ q[:, g].T
        assert np.abs(dot).max(initial=0) < 2**24  # exact as float32
        block = activations[:, g * columns // 32, None]
        if type_name in PAIRED:
            if g % 2 == 0:
                first = dot.astype(np.float32) * scales[None, :, g]
            else:
                both = fma(dot.astype(np.float32), scales[None, :, g], first)
                total = fma(both, block["d"], total)
            continue
        total = fma(dot.astype(np.float32), scales[None, :, g] * block["d"], total)  # the scale is rounded
        if PARTS[type_name].dmin is not None:
            total = fma(mins[None, :, g], block["dsum"], total)
    return total


def _scaled_bits(blocks: np.ndarray, type_name: str, x: np.ndarray) -> np.ndarray:
    """The same for superblocks of 256 with integer scales.

    A float32 FMA for each 32 columns, of their integer dot product and the activations' scale; then, for each 256, one
    of that sum and d. After it the minima, eightfold, and an eighth of dmin.
    """
    parts, activations = PARTS[type_name], quantize(x)
    terms = []
    for at, other, factor in ((parts.d, parts.dmin, 1), (parts.dmin, parts.d, 8)):
        if at is not None:
            integers = _with(blocks, type_name, {at: ONE, other: ZERO}).astype(np.int64) * factor
            bytes_of_d = _blocks(blocks, type_name)[:, :, at : at + 2]
            d = bytes_of_d.copy().view("<f2")[:, :, 0].astype(np.float32) / np.float32(factor)
            terms.append((integers.reshape(len(blocks), -1, 32), d))
    total = np.zeros((len(x), len(blocks)), np.float32)
    for block in range(x.shape[1] // 256):
        for integers, d in terms:
            total = fma(_sums(integers, activations, block), d[None, :, block], total)
    return total


def _sums(integers: np.ndarray, activations: np.ndarray, block: int) -> np.ndarray:
    """One FMA for each 32 of 256 columns, of integers (n_out, n_in // 32, 32): (n_tokens, n_out) float32."""
    total = np.zeros((len(activations), len(integers)), np.float32)
    for b in range(8 * block, 8 * block + 8):
        dot = activations["q"][:, b].astype(np.int64) @ integers[:, b].T
        assert np.abs(dot).max(initial=0) < 2**24  # exact as float32
        total = fma(dot.astype(np.float32), activations["d"][:, b, None], total)
    return total


# ---- operations, in float64


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = np.float64(x)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    gate = np.float64(gate)
    return gate / (1 + np.exp(-gate)) * up


def rope_angles(positions: np.ndarray, inv_freq: np.ndarray, mscale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) * mscale, each (n_tokens, n_pair)."""
    angle = np.float64(positions)[:, None] * inv_freq
    return np.cos(angle) * mscale, np.sin(angle) * mscale


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate the leading pairs (x[2i], x[2i+1]) of each head; x is (n_tokens, n_head, head_dim)."""
    out, n_rot = x.copy(), 2 * cos.shape[1]
    even, odd = x[:, :, :n_rot:2], x[:, :, 1:n_rot:2]
    out[:, :, :n_rot:2] = even * cos[:, None] - odd * sin[:, None]
    out[:, :, 1:n_rot:2] = even * sin[:, None] + odd * cos[:, None]
    return out


def rope_neox(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The same for pairs (x[i], x[i + n_pair])."""
    out, n = x.copy(), cos.shape[1]
    first, second = x[:, :, :n], x[:, :, n : 2 * n]
    out[:, :, :n] = first * cos[:, None] - second * sin[:, None]
    out[:, :, n : 2 * n] = first * sin[:, None] + second * cos[:, None]
    return out


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, chunked: bool = False, cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Causal attention of the last len(q) of len(k) positions.

    q (n_tokens, n_head, head_dim), k (n_positions, n_head_kv, head_dim), v (n_positions, n_head_kv, head_dim_v) ->
    (n_tokens, n_head, head_dim_v). A token sees the last `window` positions with its own, all if 0, or those of its
    chunk of so many; scores are capped by tanh; a sink takes weight and gives nothing: a score per head.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v = np.float64(q), np.repeat(np.float64(k), group, 1), np.repeat(np.float64(v), group, 1)
    scores = np.einsum("thd,phd->htp", q, k) / np.sqrt(q.shape[2])
    if cap:
        scores = cap * np.tanh(scores / cap)
    at, to = np.arange(len(k) - len(q), len(k))[:, None], np.arange(len(k))[None, :]
    hidden = to > at
    if window:
        hidden |= to // window != at // window if chunked else to <= at - window
    scores = np.where(hidden[None], -np.inf, scores)
    sinks = np.full(q.shape[1], -np.inf) if sinks is None else np.float64(sinks)
    top = np.maximum(scores.max(axis=2), sinks[:, None])[..., None]
    p = np.exp(scores - top)
    total = p.sum(axis=2, keepdims=True) + np.exp(sinks[:, None, None] - top)
    return np.einsum("htp,phd->thd", p / total, v)


def through_q8_0(x: np.ndarray) -> np.ndarray:
    """x as float64 after q8_0: blocks of 32 of the last axis, d = amax / 127 in float16, values to nearest."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    d = (amax / np.float32(127)).astype(np.float16)
    return (np.float64(d) * np.round(blocks * inverse)).reshape(x.shape)


# ---- a whole model


class Llama:
    """The llama architecture from a file: weights widened to float64, everything computed in float64."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._keys = {name: field for name, field in reader.fields.items() if name.startswith("llama.")}
        self.tensors = {t.name: np.float64(dequantize(np.asarray(t.data), t.tensor_type)) for t in reader.tensors}
        self.n_layer, self.n_head = self.key("block_count"), self.key("attention.head_count")
        self.n_head_kv = self.key("attention.head_count_kv", self.n_head)
        self.head_dim = self.key("attention.key_length", self.key("embedding_length") // self.n_head)
        self.eps = self.key("attention.layer_norm_rms_epsilon")

    def key(self, name: str, default: Any = None) -> Any:
        field = self._keys.get(f"llama.{name}")
        return default if field is None else field.contents()

    def logits(self, tokens: np.ndarray, quantized: bool = False) -> np.ndarray:
        """After each of `tokens` from position 0: (n_tokens, n_vocab) float64.

        `quantized` passes what every matmul reads through int8 blocks of 32, as matmuls of quantized weights do.
        """
        self._quantized = quantized
        x = self.tensors["token_embd.weight"][tokens]
        self.angles = rope_angles(np.arange(len(tokens)), *self.rope_frequencies())
        for i in range(self.n_layer):
            x = x + self._attention(f"blk.{i}.", x)
            x = x + self._feed_forward(f"blk.{i}.", x)
        output = "output" if "output.weight" in self.tensors else "token_embd"
        return self._linear(output, self._norm("output_norm", x))

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.eps)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        if self._quantized:
            x = dequantized_activations(x.astype(np.float32))
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)

    def _attention(self, blk: str, x: np.ndarray) -> np.ndarray:
        normed = self._norm(f"{blk}attn_norm", x)
        q, k, v = (self._linear(f"{blk}attn_{n}", normed).reshape(len(x), -1, self.head_dim) for n in "qkv")
        mixed = attention(rope(q, *self.angles), rope(k, *self.angles), v)
        return self._linear(f"{blk}attn_output", mixed.reshape(len(x), -1))

    def _feed_forward(self, blk: str, x: np.ndarray) -> np.ndarray:
        normed = self._norm(f"{blk}ffn_norm", x)
        return self._linear(
            f"{blk}ffn_down",
            swiglu(self._linear(f"{blk}ffn_gate", normed), self._linear(f"{blk}ffn_up", normed)),
        )

    def rope_frequencies(self) -> tuple[np.ndarray, float]:
        """Radians per position of each pair, and what cos and sin are multiplied by. YaRN: arXiv 2309.00071."""
        n_rot, base = self.key("rope.dimension_count", self.head_dim), self.key("rope.freq_base", 10000.0)
        pairs = np.arange(n_rot // 2)
        inv_freq = float(base) ** (-2.0 * pairs / n_rot) / self.tensors.get("rope_freqs.weight", 1.0)
        factor = self.key("rope.scaling.factor", 1.0)
        if self.key("rope.scaling.type") != "yarn":
            return inv_freq / factor, 1.0
        n_ctx = self.key("rope.scaling.original_context_length")
        low, high = (n_rot * np.log(n_ctx / (beta * 2 * np.pi)) / (2 * np.log(base)) for beta in (32.0, 1.0))
        low, high = max(0, np.floor(low)), min(n_rot - 1, np.ceil(high))
        ramp = np.clip((pairs - low) / max(0.001, high - low), 0, 1)
        return inv_freq / factor * ramp + inv_freq * (1 - ramp), 1 + 0.1 * np.log(factor)
