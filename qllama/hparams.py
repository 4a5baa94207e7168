"""Hyper-parameters of a model, from its metadata, and the RoPE frequencies that follow from them.

Refuses by name whatever changes the maths and is not implemented. Shapes of tensors are model.py's business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Any

import numpy as np

from qllama.errors import FileError, InputError, printable
from qllama.metadata import Metadata

# general.file_type: the name llama.cpp's quantizer gives it.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

MAX_LAYER, MAX_EMBD, MAX_FF, MAX_HEAD, MAX_VOCAB = 1024, 1 << 20, 1 << 24, 1 << 14, 1 << 24
MAX_CTX = 1 << 24
DEFAULT_CTX = 4096  # where the file gives no usable context length

_REQUIRED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
# Read below, or without influence on what is computed.
_KNOWN = frozenset(_REQUIRED) | {
    "vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.finetuned",
    "tensor_data_layout", "expert_used_count", "expert_feed_forward_length", "leading_dense_block_count",
}  # fmt: skip
# Keys that change the maths in a way that is not implemented: the values that do not, and what it is called.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "expert_count": ((0,), "mixture of experts"),
    "expert_shared_count": ((0,), "shared experts"),
    "interleave_moe_layer_step": ((0,), "mixture of experts in some layers"),
    "moe_every_n_layers": ((0,), "mixture of experts in some layers"),
    "nextn_predict_layers": ((0,), "layers that predict several tokens"),
    "attention.causal": ((True,), "attention that is not causal"),
    "attention.sliding_window": ((0,), "sliding-window attention"),
    "attention.sliding_window_pattern": ((0,), "sliding-window attention"),
    "attention.shared_kv_layers": ((0,), "layers that share keys and values"),
    "attention.clamp_kqv": ((0,), "clamping of queries, keys and values"),
    "attention.max_alibi_bias": ((0,), "ALiBi position bias"),
    "attention.scale": ((0,), "an attention scale of its own"),
    "attention.output_scale": ((0, 1), "scaled attention output"),
    "attention.temperature_scale": ((0,), "attention temperature by position"),
    "attention.temperature_length": ((0,), "attention temperature by position"),
    "attention.q_lora_rank": ((0,), "multi-head latent attention"),
    "attention.kv_lora_rank": ((0,), "multi-head latent attention"),
    "attention.key_length_mla": ((0,), "multi-head latent attention"),
    "attention.value_length_mla": ((0,), "multi-head latent attention"),
    "attn_logit_softcapping": ((0,), "softcapping of attention logits"),
    "final_logit_softcapping": ((0,), "softcapping of output logits"),
    "logit_scale": ((0, 1), "scaled output logits"),
    "residual_scale": ((0, 1), "scaled residual connections"),
    "embedding_scale": ((0, 1), "scaled embeddings"),
    "use_parallel_residual": ((False,), "parallel residual connections"),
    "swin_norm": ((False,), "Swin norms"),
    "full_attention_interval": ((0, 1), "layers without full attention"),
    "rope.dimension_sections": ((), "RoPE in sections"),
    "rope.freq_base_swa": ((), "a second RoPE base for sliding windows"),
    "rope.scaling.alpha": ((0,), "RoPE scaling by alpha"),
    "rope.scaling.yarn_log_multiplier": ((0,), "a YaRN magnitude of its own"),
    "pooling_type": ((0,), "pooled outputs (an embedding model)"),
    "embedding_length_out": ((), "an output width of its own"),
    "embedding_length_per_layer_input": ((0,), "embeddings per layer"),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the context of training. YaRN: arXiv 2309.00071."""

    type: str = "none"  # none, linear, yarn
    factor: float = 1.0  # positions are divided by it
    n_ctx_orig: int = 0  # context before stretching
    attn_factor: float = 1.0  # scales cos and sin
    yarn_ext_factor: float = 0.0  # share of the original frequency where the ramp says so; 1 for yarn
    yarn_attn_factor: float = 1.0  # instead of YaRN's own magnitude where yarn_ext_factor is 0
    yarn_beta_fast: float = 32.0  # rotations in n_ctx_orig above which a frequency is kept
    yarn_beta_slow: float = 1.0  # ... below which it is divided by factor


@dataclass(frozen=True)
class HParams:
    """What a model computes with. Checked: every number is in range and fits the others."""

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int  # leading dimensions of a head that rotate
    n_ff: int
    norm_rms_eps: float
    rope_freq_base: float
    rope_scaling: RopeScaling
    n_expert: int = 0
    file_type: int | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_metadata(
        cls, metadata: Metadata, supported: Sequence[str], tensors: Mapping[str, Any] | None = None
    ) -> "HParams":
        """The hyper-parameters of a file whose architecture is one of `supported`.

        With `tensors` (name: anything with a `shape`), the number of layers and the vocabulary must fit them.
        Raises FileError naming key and value, all required keys that are missing, or what is not implemented.
        """
        arch = _architecture(metadata, supported)
        warnings = _check_keys(metadata, arch)
        n_layer = metadata.integer(f"{arch}.block_count", low=1, high=MAX_LAYER)
        n_embd = metadata.integer(f"{arch}.embedding_length", low=1, high=MAX_EMBD)
        n_head, n_head_kv, head_dim = _heads(metadata, arch, n_layer, n_embd)
        if tensors is not None:
            _check_layers(metadata, arch, n_layer, tensors)
        n_ctx_train = _context_length(metadata, arch, warnings)
        return cls(
            architecture=arch,
            n_vocab=_n_vocab(metadata, arch, tensors or {}, warnings),
            n_ctx_train=n_ctx_train,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim=head_dim,
            n_rot=_n_rot(metadata, arch, head_dim),
            n_ff=_per_layer(metadata, f"{arch}.feed_forward_length", n_layer, MAX_FF),
            norm_rms_eps=_norm_eps(metadata, arch),
            rope_freq_base=_positive(metadata, f"{arch}.rope.freq_base", 10000.0),
            rope_scaling=_rope_scaling(metadata, arch, n_ctx_train),
            file_type=_file_type(metadata, warnings),
            warnings=tuple(warnings),
        )


def _architecture(metadata: Metadata, supported: Sequence[str]) -> str:
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise metadata.error("general.type", "not a model that can run by itself")
    arch = metadata.text("general.architecture")
    if arch not in supported:
        names = ", ".join(supported)
        raise metadata.error("general.architecture", f"not implemented; supported: {names}")
    return arch


def _check_keys(metadata: Metadata, arch: str) -> list[str]:
    """Refuse what is missing or not implemented; warnings for keys nobody here knows."""
    missing = [f"{arch}.{key}" for key in _REQUIRED if f"{arch}.{key}" not in metadata]
    if missing:
        raise FileError(metadata.path, f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    unknown = []
    for name in metadata:
        key = name.removeprefix(f"{arch}.")
        if key == name or key in _KNOWN:
            continue
        neutral, what = _REFUSED.get(key, ((metadata[name],), ""))
        if metadata[name] not in neutral:
            raise metadata.error(name, f"not implemented: {what}")
        if key not in _REFUSED:
            unknown.append(printable(name))
    return [f"{printable(metadata.path)}: unknown and ignored: {', '.join(unknown)}"] if unknown else []


def _per_layer(metadata: Metadata, key: str, n_layer: int, high: int) -> int:
    """An integer, or an array of one per layer that are all equal."""
    if metadata.type_of(key) != "arr":
        return metadata.integer(key, low=1, high=high)
    array = metadata.array(key, ("i32", "u32"))
    if array.count != n_layer:
        raise metadata.error(key, f"needs one value for each of {n_layer} layers")
    values = set(array.to_list())
    if len(values) > 1:
        raise metadata.error(key, "not implemented: values that differ from layer to layer")
    (value,) = values
    if not 1 <= value <= high:
        raise metadata.error(key, f"each is {value}, must be from 1 to {high}")
    return value


def _heads(metadata: Metadata, arch: str, n_layer: int, n_embd: int) -> tuple[int, int, int]:
    """(n_head, n_head_kv, head_dim), which must go together."""
    key, key_kv = f"{arch}.attention.head_count", f"{arch}.attention.head_count_kv"
    n_head = _per_layer(metadata, key, n_layer, MAX_HEAD)
    n_head_kv = _per_layer(metadata, key_kv, n_layer, MAX_HEAD) if key_kv in metadata else n_head
    if n_head_kv > n_head or n_head % n_head_kv:
        raise metadata.error(key_kv, f"must divide the {n_head} heads: {n_head} % {n_head_kv} != 0")
    key_k, key_v = f"{arch}.attention.key_length", f"{arch}.attention.value_length"
    if key_k not in metadata and n_embd % n_head:
        raise metadata.error(key, f"must divide the embedding: {n_embd} % {n_head} != 0")
    head_dim = metadata.integer(key_k, n_embd // n_head, low=1, high=MAX_EMBD)
    if head_dim % 2:
        raise metadata.error(key_k if key_k in metadata else key, f"a head is {head_dim} wide, must be even")
    if metadata.integer(key_v, head_dim, low=1, high=MAX_EMBD) != head_dim:
        raise metadata.error(key_v, f"not implemented: values of another width than keys ({head_dim})")
    return n_head, n_head_kv, head_dim


def _n_rot(metadata: Metadata, arch: str, head_dim: int) -> int:
    key = f"{arch}.rope.dimension_count"
    n_rot = metadata.integer(key, head_dim)
    if not 2 <= n_rot <= head_dim or n_rot % 2:
        raise metadata.error(key, f"must be even, from 2 to the head width {head_dim}")
    return n_rot


def _norm_eps(metadata: Metadata, arch: str) -> float:
    key = f"{arch}.attention.layer_norm_rms_epsilon"
    eps = metadata.number(key)
    if not 0 <= eps < 1:
        raise metadata.error(key, "must be from 0 up to 1")
    return eps


def _positive(metadata: Metadata, key: str, default: float) -> float:
    value = metadata.number(key, default)
    if value <= 0:
        raise metadata.error(key, "must be greater than 0")
    return value


def _context_length(metadata: Metadata, arch: str, warnings: list[str]) -> int:
    """Only advice, memory is never sized by it: what is out of all reason is replaced, with a warning."""
    key = f"{arch}.context_length"
    n_ctx = metadata.integer(key, low=-(2**63), high=2**64)
    if 1 <= n_ctx <= MAX_CTX:
        return n_ctx
    warnings.append(str(metadata.error(key, f"not from 1 to {MAX_CTX}, taken as {DEFAULT_CTX}")))
    return DEFAULT_CTX


def _check_layers(metadata: Metadata, arch: str, n_layer: int, tensors: Mapping[str, Any]) -> None:
    wanted = {str(i) for i in range(n_layer)}
    blocks = {name.split(".", 2)[1] for name in tensors if name.startswith("blk.")}
    if blocks != wanted:
        names = ", ".join(f"blk.{i}" for i in sorted(blocks ^ wanted, key=lambda i: (len(i), i))[:4])
        reason = f"tensors for {len(blocks)} layers, too many or missing: {names}"
        raise metadata.error(f"{arch}.block_count", printable(reason))


def _n_vocab(metadata: Metadata, arch: str, tensors: Mapping[str, Any], warnings: list[str]) -> int:
    """Rows of the embedding; without it the number of tokens, or else what the file says."""
    key, key_tokens = f"{arch}.vocab_size", "tokenizer.ggml.tokens"
    tokens = metadata.array(key_tokens, ("str",), None)
    n_said = metadata.integer(key, 0, high=MAX_VOCAB)
    n_tokens = tokens.count if tokens else 0
    shape: tuple[int, ...] = tensors["token_embd.weight"].shape if "token_embd.weight" in tensors else ()
    n_vocab = shape[1] if len(shape) == 2 else n_tokens or n_said
    if not n_vocab:
        raise FileError(metadata.path, f"no vocabulary: missing keys {key_tokens}, {key}")
    if tokens and n_tokens != n_vocab:
        raise metadata.error(key_tokens, f"token_embd.weight has {n_vocab} rows")
    if n_said and n_said != n_vocab:
        warnings.append(str(metadata.error(key, f"ignored, the vocabulary has {n_vocab} tokens")))
    return n_vocab


def _file_type(metadata: Metadata, warnings: list[str]) -> int | None:
    """Only a name for people: the tensors say what they are."""
    key = "general.file_type"
    file_type = metadata.integer(key, None)
    if file_type is not None and file_type not in FILE_TYPES:
        warnings.append(str(metadata.error(key, "unknown file type")))
    return file_type


def _rope_scaling(metadata: Metadata, arch: str, n_ctx_train: int) -> RopeScaling:
    """Defaults are llama.cpp's: a factor without a type is linear."""
    prefix = f"{arch}.rope.scaling."
    kind = metadata.text(prefix + "type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise metadata.error(prefix + "type", "not implemented; supported: none, linear, yarn")
    legacy = _positive(metadata, f"{arch}.rope.scale_linear", 1.0)
    factor = _positive(metadata, prefix + "factor", legacy)
    ext_factor = metadata.number(prefix + "yarn_ext_factor", -1.0)
    ext_factor = float(kind == "yarn") if ext_factor < 0 else ext_factor  # below 0: not set
    if ext_factor and metadata.number(f"{arch}.rope.freq_base", 10000.0) <= 1:
        raise metadata.error(f"{arch}.rope.freq_base", "must be greater than 1 for YaRN")
    return RopeScaling(
        type=kind,
        factor=1.0 if kind == "none" else factor,
        n_ctx_orig=metadata.integer(prefix + "original_context_length", n_ctx_train, low=1, high=MAX_CTX),
        attn_factor=_positive(metadata, prefix + "attn_factor", 1.0),
        yarn_ext_factor=ext_factor,
        yarn_attn_factor=_positive(metadata, prefix + "yarn_attn_factor", 1.0),
        yarn_beta_fast=_positive(metadata, prefix + "yarn_beta_fast", 32.0),
        yarn_beta_slow=_positive(metadata, prefix + "yarn_beta_slow", 1.0),
    )


# 40 digits, correctly rounded at the end: the libm of another platform would give other last bits.
_DIGITS = 40
_PI = Decimal("3.141592653589793238462643383279502884197169")


def rope_frequencies(hparams: HParams, rope_freqs: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """What a head is rotated by: pair i by `position * inv_freq[i]` radians, cos and sin times `mscale`.

    Returns inv_freq (n_rot // 2,) float64 and mscale; the same bits on every platform. `rope_freqs` is the
    tensor of that name, (n_rot // 2,), which divides the frequencies; InputError if it has another shape or
    bad values. Formulas: llama.cpp's `ggml_rope_yarn_corr_dims`, `rope_yarn` and `yarn_attn_factor`.
    """
    scaling, n_pairs = hparams.rope_scaling, hparams.n_rot // 2
    extrapolated = _base_frequencies(hparams.rope_freq_base, hparams.n_rot)  # (n_pairs,) float64
    if rope_freqs is not None:
        if rope_freqs.shape != (n_pairs,) or not (np.isfinite(rope_freqs) & (rope_freqs > 0)).all():
            raise InputError(f"rope_freqs.weight: must be {n_pairs} numbers greater than 0")
        extrapolated = extrapolated / rope_freqs.astype(np.float64)
    interpolated = extrapolated / scaling.factor
    if scaling.yarn_ext_factor == 0:
        return interpolated, scaling.attn_factor * scaling.yarn_attn_factor
    low, high = _yarn_range(hparams)
    ramp = np.clip((np.arange(n_pairs) - low) / max(0.001, high - low), 0.0, 1.0)
    share = (1.0 - ramp) * scaling.yarn_ext_factor  # of the frequency that is not stretched
    return interpolated * (1.0 - share) + extrapolated * share, scaling.attn_factor * _yarn_mscale(scaling)


def _base_frequencies(base: float, n_rot: int) -> np.ndarray:
    """base ** (-2 i / n_rot): (n_rot // 2,) float64."""
    with localcontext(prec=_DIGITS):
        return np.array([float(Decimal(base) ** (Decimal(-2 * i) / n_rot)) for i in range(n_rot // 2)])


def _yarn_range(hparams: HParams) -> tuple[int, int]:
    """The pairs between which the ramp runs: those that turn beta_fast and beta_slow times in n_ctx_orig."""
    scaling, n_rot = hparams.rope_scaling, hparams.n_rot
    with localcontext(prec=_DIGITS):
        per_log = n_rot / (2 * Decimal(hparams.rope_freq_base).ln())
        fast, slow = (
            per_log * (scaling.n_ctx_orig / (Decimal(beta) * 2 * _PI)).ln()
            for beta in (scaling.yarn_beta_fast, scaling.yarn_beta_slow)
        )
        low = int(fast.to_integral_value(ROUND_FLOOR))
        high = int(slow.to_integral_value(ROUND_CEILING))
    return max(0, low), min(n_rot - 1, high)


def _yarn_mscale(scaling: RopeScaling) -> float:
    with localcontext(prec=_DIGITS):
        return float(1 + Decimal(max(1.0, scaling.factor)).ln() / 10)
