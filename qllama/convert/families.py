"""The architectures of Hugging Face that can be converted: their names in GGUF, and how they depart from Llama."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """How models of an architecture become GGUF.

    arch: general.architecture. experts: pattern of the names of one expert's matrices, and the names of the stacks that
    they become, in the order of the file; both are for gguf's table of names. defaults: of config.json, where
    it leaves a key out.
    """

    arch: str
    permute: bool = False  # rotated pairs are halves in the folder, neighbours in the file
    says_vocab_size: bool = False  # <arch>.vocab_size and <arch>.rope.dimension_count
    head_dim: bool = False  # an attention.key_length, even where config.json says none
    experts: tuple[str, tuple[tuple[str, str], ...]] | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)


_LLAMA = Family("llama", permute=True, says_vocab_size=True, head_dim=True)
_MIXTRAL = (
    r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight",
    tuple((w, f"layers.{{layer}}.feed_forward.experts.{w}") for w in ("w1", "w2", "w3")),
)
_QWEN_EXPERTS = (
    r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(down_proj|gate_proj|up_proj)\.weight",
    tuple((w, f"model.layers.{{layer}}.mlp.experts.{w}") for w in ("down_proj", "gate_proj", "up_proj")),
)

FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": Family(
        "llama", permute=True, says_vocab_size=True, experts=_MIXTRAL,
        defaults={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen2MoeForCausalLM": Family("qwen2moe", experts=_QWEN_EXPERTS),
    "Qwen3ForCausalLM": Family("qwen3"),
    "Qwen3MoeForCausalLM": Family("qwen3moe", experts=_QWEN_EXPERTS),
}  # fmt: skip
