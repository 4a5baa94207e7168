"""From a declaration, hyper-parameters and the tensors of a file to a plan. No memory, no kernels, no text."""

import math
from typing import Any

import numpy as np

from qllama.arch import Arch
from qllama.gguf import GGUF, TensorInfo
from qllama.hparams import HParams, rope_frequencies
from qllama.kernels.layouts import F32, LAYOUTS, Q8, attention_scratch
from qllama.kv_cache import KVCache
from qllama.plan import OUTPUTS, TOKENS, Buffer, Plan, Weight, padded_vector
from qllama.team import aligned

GRAIN = (
    96 << 10
)  # bytes of packed weights that a thread takes at a time: a few panels, at home in the second-level cache


VECTOR_TYPES = {"F32"}  # of norms, biases and rope factors


class Tensors:
    """The tensors of a file by role, checked. Problems are collected, so that all of them can be told at once."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf = gguf
        self.weights: dict[str, Weight] = {}
        self.used: set[str] = set()
        self.problems: list[str] = []

    def has(self, name: str) -> bool:
        return name in self.gguf.tensors

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo | None:
        self.used.add(name)
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            self.problems.append(f"tensor {name} is missing")
        elif tensor.shape != shape:
            self.problems.append(f"tensor {name} has shape {list(tensor.shape)}, needed {list(shape)}")
        else:
            return tensor
        return None

    def matrix(self, name: str, n_in: int, n_out: int) -> Weight:
        """The matrix `name`, to be packed; a tied one is asked for twice."""
        if name in self.weights:
            return self.weights[name]
        tensor = self._take(name, (n_in, n_out))
        layout = LAYOUTS.get(tensor.type.name) if tensor else None
        if tensor and layout is None:
            self.problems.append(
                f"tensor {name} has type {tensor.type.name}, not supported yet (supported: {', '.join(LAYOUTS)})"
            )
        self.weights[name] = Weight(name, layout or LAYOUTS["F32"], n_out, n_in)
        return self.weights[name]

    def scale(self, weight: Weight) -> float | None:
        """What the products of a matrix are multiplied by, as NVFP4's are; None when there is nothing."""
        name = f"{weight.name.removesuffix('.weight')}.scale"
        if not self.has(name):
            return None
        scale = float(self.vector(name, 1)[0])
        if not math.isfinite(scale):
            self.problems.append(f"tensor {name} is {scale}, needed a finite number")
        return scale

    def vector(self, name: str, n: int) -> np.ndarray:
        """The float32 vector `name`, padded with zeros; zeros if there is a problem."""
        tensor = self._take(name, (n,))
        if tensor and tensor.type.name not in VECTOR_TYPES:
            self.problems.append(f"tensor {name} has type {tensor.type.name}, needed F32")
        elif tensor:
            return padded_vector(self.gguf.data(name).view("<f4"))
        return padded_vector(np.zeros(n, np.float32))


class Builder:
    """Writes the plan of a decoder-only transformer, layer by layer."""

    def __init__(self, arch: Arch, hparams: HParams, tensors: Tensors, cache: KVCache, n_threads: int) -> None:
        self.arch, self.hp, self.tensors, self.cache = arch, hparams, tensors, cache
        self.plan, self.n_threads = Plan(), n_threads
        self.group = hparams.n_head // hparams.n_head_kv
        # A thread's own memory for attention, on cache lines of its own; layers take turns with it.
        self.ld_scratch = -(-attention_scratch(self.group, hparams.head_dim, cache.width) // 64) * 64
        self.scratch = aligned(self.ld_scratch * n_threads)
        self.n_q, self.n_kv = hparams.n_head * hparams.head_dim, hparams.n_head_kv * hparams.head_dim

    def build(self) -> Plan:
        hp, plan, tensors = self.hp, self.plan, self.tensors
        embedding = self.matrix("token_embd.weight", hp.n_embd, hp.n_vocab)
        x = plan.buffer("x", hp.n_embd)
        kernel = f"{embedding.layout.kernels}.lookup"
        plan.add(kernel, meet=False, w=embedding, out=x, n_block=embedding.n_block, ld_out=x.ld)
        angles = self.rope_table()
        for layer in range(hp.n_layer):
            x = self.attention(layer, x, angles)
            self.feed_forward(layer, x)
        output = self.matrix("output.weight" if tensors.has("output.weight") else embedding.name, hp.n_embd, hp.n_vocab)
        normed = self.norm("output_norm.weight", x, "out_norm", [output])
        self.matmul(output, normed, plan.buffer("logits", hp.n_vocab, OUTPUTS))
        return plan

    def rope_table(self) -> Buffer:
        hp, factors = self.hp, None
        if self.tensors.has("rope_freqs.weight"):
            factors = self.tensors.vector("rope_freqs.weight", hp.n_rot // 2)[: hp.n_rot // 2]
        inv_freq, mscale = rope_frequencies(hp, factors)
        angles = self.plan.buffer("angles", hp.n_rot)
        self.plan.add(
            "rope.table",
            inv_freq=inv_freq,
            mscale=float(mscale),
            out=angles,
            n_pair=hp.n_rot // 2,
            ld_out=angles.ld,
        )
        return angles

    def attention(self, layer: int, x: Buffer, angles: Buffer) -> Buffer:
        """x += attention(norm(x)). After the last layer's only the wanted outputs go on, in a shorter buffer."""
        hp, plan, blk = self.hp, self.plan, f"blk.{layer}."
        q, k, v = (plan.buffer(n, size) for n, size in (("q", self.n_q), ("k", self.n_kv), ("v", self.n_kv)))
        projections = [self.matrix(f"{blk}attn_{out.name}.weight", hp.n_embd, out.n) for out in (q, k, v)]
        normed = self.norm(f"{blk}attn_norm.weight", x, "attn_norm", projections)
        for weight, out in zip(projections, (q, k, v), strict=True):
            self.matmul(weight, normed, out, meet=out is v)
        for out in (q, k, v):
            self.bias(f"{blk}attn_{out.name}.bias", out)
        for out, n_head in ((q, hp.n_head), (k, hp.n_head_kv)):
            self.head_norm(f"{blk}attn_{out.name}_norm.weight", out, n_head)
            plan.add(
                f"rope.{self.arch.rope}", meet=out is k, x=out, angles=angles, n_head=n_head, head_dim=hp.head_dim,
                n_pair=hp.n_rot // 2, ld_x=out.ld, ld_angles=angles.ld,
            )  # fmt: skip
        mixed = self.attend(layer, q, k, v)
        if layer == hp.n_layer - 1:
            mixed, x = self.last(mixed), self.last(x)
        output = self.matrix(f"{blk}attn_output.weight", self.n_q, hp.n_embd)
        self.matmul(output, self.quantized(mixed, output), x, add=True)
        self.bias(f"{blk}attn_output.bias", x)
        return x

    def attend(self, layer: int, q: Buffer, k: Buffer, v: Buffer) -> Buffer:
        hp, plan, cache = self.hp, self.plan, self.cache
        where: dict[str, Any] = {"k_at": cache.keys_at(layer), "v_at": cache.values_at(layer)}
        heads: dict[str, Any] = {"head_dim_v": cache.head_dim_v, "width": cache.width}
        scratch: dict[str, Any] = {"scratch": self.scratch, "ld_scratch": self.ld_scratch}
        parts: dict[str, Any] = {"parts_at": cache.parts_at, "ld_part": cache.part_bytes, "group": self.group}
        plan.add(
            f"kv.store_{cache.types}", k=k, v=v, n_head_kv=hp.n_head_kv, head_dim=hp.head_dim, **heads, **where,
            **scratch, ld_k=k.ld, ld_v=v.ld,
        )  # fmt: skip
        mixed = plan.buffer("attn", self.n_q)
        plan.add(
            f"attention.{cache.types}", q=q, out=mixed, scale=1 / math.sqrt(hp.head_dim), n_head_kv=hp.n_head_kv,
            head_dim=hp.head_dim, **heads, **where, **scratch, **parts, ld_q=q.ld, ld_out=mixed.ld,
        )  # fmt: skip
        plan.add(
            "attention.merge", out=mixed, n_head=hp.n_head, **heads, **scratch, **parts, ld_out=mixed.ld, window=0,
            chunked=0, sinks=0,
        )  # fmt: skip
        return mixed

    def feed_forward(self, layer: int, x: Buffer) -> None:
        """x += down(activation(gate(norm(x)), up(norm(x))))."""
        hp, plan, blk = self.hp, self.plan, f"blk.{layer}."
        into = [self.matrix(f"{blk}ffn_{name}.weight", hp.n_embd, hp.n_ff) for name in ("gate", "up")]
        normed = self.norm(f"{blk}ffn_norm.weight", x, "ffn_norm", into)
        gate, up = (plan.buffer(_named(name, x.rows), hp.n_ff, x.rows) for name in ("gate", "up"))
        self.matmul(into[0], normed, gate, meet=False)
        self.matmul(into[1], normed, up)
        self.bias(f"{blk}ffn_gate.bias", gate)
        self.bias(f"{blk}ffn_up.bias", up)
        down = self.matrix(f"{blk}ffn_down.weight", hp.n_ff, hp.n_embd)
        kind = down.layout.activation
        act = plan.buffer(_named(f"act.{kind}", x.rows), hp.n_ff, x.rows, kind)
        kernel = f"ffn.{self.arch.activation}_{kind}"
        plan.add(kernel, rows=x.rows, gate=gate, up=up, out=act, n=hp.n_ff, ld_in=gate.ld, ld_out=act.ld)
        self.matmul(down, {kind: act}, x, add=True)
        self.bias(f"{blk}ffn_down.bias", x)

    # ---- pieces

    def matrix(self, name: str, n_in: int, n_out: int) -> Weight:
        return self.tensors.matrix(name, n_in, n_out)

    def matmul(
        self, weight: Weight, inputs: dict[str, Buffer], out: Buffer, add: bool = False, meet: bool = True
    ) -> None:
        """out = W x, or out += W x, with x in the form that the weight's layout reads; a scaled weight's times that."""
        scale = self.tensors.scale(weight)
        if scale is not None:
            product = self.plan.buffer(f"product.{out.name}", out.n, out.rows)
            self._product(weight, inputs, product, add=False, meet=True)
            self.plan.add(
                "ffn.scaled", rows=out.rows, x=product, out=out, scale=scale, n=out.ld // 4, ld_x=product.ld,
                ld_out=out.ld, onto=int(add),
            )  # fmt: skip
        else:
            self._product(weight, inputs, out, add, meet)

    def _product(self, weight: Weight, inputs: dict[str, Buffer], out: Buffer, add: bool, meet: bool) -> None:
        layout, x = weight.layout, inputs[weight.layout.activation]
        n_panel = layout.panels(weight.n_out)
        grain = max(1, min(GRAIN // layout.panel_bytes(weight.n_in), n_panel // (4 * self.n_threads)))
        self.plan.add(
            f"{layout.kernels}.matmul", rows=out.rows, meet=meet, w=weight, x=x, out=out, n_block=weight.n_block,
            n_panel=n_panel, ld_x=x.ld, ld_out=out.ld, add=int(add), grain=grain,
        )  # fmt: skip

    def norm(self, name: str, x: Buffer, out: str, readers: list[Weight]) -> dict[str, Buffer]:
        """RMSNorm of x in every form that `readers` read."""
        n, plan, rows = self.hp.n_embd, self.plan, x.rows
        f32 = plan.buffer(_named(out, rows), n, rows)
        common: dict[str, Any] = {
            "x": x,
            "weight": self.tensors.vector(name, n),
            "n": n,
            "eps": self.hp.norm_rms_eps,
            "ld_x": x.ld,
        }
        if all(w.layout.activation == F32 for w in readers):
            plan.add("norm.rms_f32", rows=rows, **common, out=f32, ld_out=f32.ld)
            return {F32: f32}
        q8 = plan.buffer(_named(f"{out}.q8", rows), n, rows, Q8)
        plan.add("norm.rms_q8", rows=rows, **common, scratch=f32, ld_scratch=f32.ld, out=q8, ld_out=q8.ld)
        return {F32: f32, Q8: q8}

    def head_norm(self, name: str, x: Buffer, n_head: int) -> None:
        """RMSNorm of each head in place, where the file has a weight for it."""
        if self.tensors.has(name):
            weight = self.tensors.vector(name, self.hp.head_dim)
            self.plan.add(
                "norm.rms_heads", x=x, weight=weight, n_head=n_head, head_dim=self.hp.head_dim,
                eps=self.hp.norm_rms_eps, ld_x=x.ld,
            )  # fmt: skip

    def quantized(self, x: Buffer, reader: Weight) -> dict[str, Buffer]:
        """x in the form that `reader` reads."""
        if reader.layout.activation == F32:
            return {F32: x}
        q8 = self.plan.buffer(f"{x.name}.q8", x.n, x.rows, Q8)
        self.plan.add("ffn.quantize", rows=x.rows, x=x, out=q8, n=x.n, ld_x=x.ld, ld_out=q8.ld)
        return {Q8: q8}

    def last(self, x: Buffer) -> Buffer:
        out = self.plan.buffer(f"{x.name}.out", x.n, OUTPUTS)
        self.plan.add("ffn.last_rows", rows=OUTPUTS, x=x, out=out, n=x.ld // 4, ld=x.ld)
        return out

    def bias(self, name: str, x: Buffer) -> None:
        if self.tensors.has(name):
            bias = self.tensors.vector(name, x.n)
            self.plan.add("ffn.add_bias", rows=x.rows, x=x, bias=bias, n=x.ld // 4, ld_x=x.ld)


def _named(name: str, rows: str) -> str:
    """Buffers with a row per output are apart from those with a row per token."""
    return name if rows == TOKENS else f"{name}.out"
