"""The keys of a converted file, in the order and of the types that llama.cpp's converter writes them.

gguf's writer knows the keys' names and types, its Metadata what general.* is to say.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qllama.convert.families import Family
from qllama.convert.files import Config
from qllama.convert.tensors import n_experts
from qllama.convert.vocab import add_vocab
from qllama.errors import FileError, InputError, printable
from qllama.gguf_writer import Entry, NewArray
from qllama.quantize.source import SourceTensor

KINDS = {"UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "UINT32": "u32", "INT32": "i32", "UINT64": "u64",
         "INT64": "i64", "FLOAT32": "f32", "FLOAT64": "f64", "BOOL": "bool", "STRING": "str"}  # fmt: skip


def metadata(config: Config, family: Family, file_type: int, tensors: Sequence[SourceTensor]) -> dict[str, Entry]:
    """The keys of a file of these tensors. Raises FileError for a value that is missing or wrong."""
    import gguf

    writer = gguf.GGUFWriter(None, family.arch)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tuple(reversed(tensor.shape)), np.dtype(np.float32), tensor.nbytes)
    _general(writer, config)
    _hyperparameters(writer, config, family)
    writer.add_file_type(file_type)
    if family.says_vocab_size:
        writer.add_vocab_size(config.integer("vocab_size"))
        writer.add_rope_dimension_count(head_dim(config))
    _experts(writer, config, family)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocab(writer, config, family.permute)
    return {key: _entry(value) for key, value in writer.kv_data[0].items()}


def _entry(value: Any) -> Entry:
    if value.type.name != "ARRAY":
        return KINDS[value.type.name], value.value
    import gguf

    first = gguf.GGUFValueType.get_type(value.value[0])
    return "arr", NewArray(KINDS[first.name], value.value)


def _general(writer: Any, config: Config) -> None:
    """general.*: what the model's card and its folder's name say."""
    import gguf

    folder = config.path.parent.resolve()
    total, *counts = writer.get_total_parameter_count()
    try:
        found = gguf.Metadata.load(None, folder, None, total)
    except Exception as error:  # of YAML, and whatever a stranger's values lead to
        reason = f"the model's card cannot be read: {type(error).__name__}: {error}"
        raise FileError(folder / "README.md", reason) from None
    found.name = folder.name if found.name is None else found.name
    if found.size_label is None and total > 0:
        found.size_label = gguf.size_label(total, *counts)
    writer.add_type(gguf.GGUFType.MODEL)
    try:
        found.set_gguf_meta_model(writer)
    except Exception as error:
        raise InputError(f"{printable(folder)}: README.md or generation_config.json: {error}") from None


def head_dim(config: Config) -> int:
    """Values of a head's query."""
    default = config.integer("hidden_size") // config.integer("num_attention_heads")
    return config.integer("head_dim", max(1, default))


def _hyperparameters(writer: Any, config: Config, family: Family) -> None:
    n_head = config.integer("num_attention_heads")
    writer.add_block_count(config.integer("num_hidden_layers"))
    writer.add_context_length(config.integer("max_position_embeddings"))
    writer.add_embedding_length(config.integer("hidden_size"))
    writer.add_feed_forward_length(config.integer("intermediate_size"))
    writer.add_head_count(n_head)
    writer.add_head_count_kv(config.integer("num_key_value_heads", n_head))
    _rope(writer, config, family)
    writer.add_layer_norm_rms_eps(config.number("rms_norm_eps", family.defaults.get("rms_norm_eps", 1e-6)))
    if family.experts:
        writer.add_expert_count(n_experts(config))
        writer.add_expert_used_count(config.integer("num_experts_per_tok"))
    if family.head_dim or config.get("head_dim") is not None:
        writer.add_key_length(head_dim(config))
        writer.add_value_length(head_dim(config))


def rope(config: Config, family: Family) -> dict[str, Any]:
    """The settings of the rotation under their newest names, wherever config.json has them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise FileError(config.path, "must be an object", "rope_scaling", found)
    theta = config.get("rope_theta") or family.defaults.get("rope_theta", 10000.0)
    return {"rope_theta": theta, "rope_type": found.get("type", "default"), **found}


def _rope(writer: Any, config: Config, family: Family) -> None:
    found = rope(config, family)

    def number(key: str, default: float | None = None) -> float:
        return config.check_number(f"rope_parameters.{key}", found.get(key), default)

    kind = found["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(_scaling(kind))
        writer.add_rope_scaling_factor(number("factor"))
    elif kind not in ("default", "llama3"):
        raise FileError(config.path, "needed default, linear, yarn or llama3", "rope_type", kind)
    if kind == "yarn":
        _yarn(writer, config, found, number)
    writer.add_rope_freq_base(number("rope_theta"))


def _scaling(kind: str) -> Any:
    import gguf

    return gguf.RopeScalingType(kind)


def _yarn(writer: Any, config: Config, found: dict[str, Any], number: Any) -> None:
    original = found.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if type(original) is not int or original <= 0:
        raise FileError(config.path, "yarn needs a number", "original_max_position_embeddings", original)
    writer.add_rope_scaling_orig_ctx_len(original)
    attention = "attention_factor" if "attention_factor" in found else "attn_factor"
    for key, add in (
        ("extrapolation_factor", "add_rope_scaling_yarn_ext_factor"),
        (attention, "add_rope_scaling_yarn_attn_factor"),
        ("beta_fast", "add_rope_scaling_yarn_beta_fast"),
        ("beta_slow", "add_rope_scaling_yarn_beta_slow"),
    ):
        if found.get(key) is not None:
            getattr(writer, add)(number(key))


def _experts(writer: Any, config: Config, family: Family) -> None:
    """Of qwen2moe and qwen3moe."""
    if config.get("moe_intermediate_size") is not None:
        writer.add_expert_feed_forward_length(config.integer("moe_intermediate_size"))
    if config.get("shared_expert_intermediate_size") is not None:
        writer.add_expert_shared_feed_forward_length(config.integer("shared_expert_intermediate_size"))


def rope_factors(config: Config, family: Family) -> np.ndarray | None:
    """(head_dim / 2,) float32: what Llama 3.1 divides the frequencies by; None for others.

    In float32, and a quotient is a product with the reciprocal: so does PyTorch in llama.cpp's converter.
    """
    found = rope(config, family)
    if family.arch != "llama" or found["rope_type"] != "llama3":
        return None

    def number(key: str, default: float) -> float:
        return config.check_number(f"rope_parameters.{key}", found.get(key), default)

    factor, low, high = number("factor", 8.0), number("low_freq_factor", 1.0), number("high_freq_factor", 4.0)
    n_ctx = number("original_max_position_embeddings", 8192)
    exponents = np.arange(0, head_dim(config), 2, dtype=np.float32) / np.float32(head_dim(config))
    frequencies = 1 / np.power(number("rope_theta", 10000.0), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = 1 / frequencies * np.float32(2 * np.pi)
    if high <= low:
        raise FileError(config.path, f"must be above low_freq_factor, {low}", "rope_parameters.high_freq_factor", high)
    smooth = (1 / wavelengths * np.float32(n_ctx) - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(wavelengths > n_ctx / low, np.float32(factor), between)
    return np.where(wavelengths < n_ctx / high, np.float32(1), factors).astype(np.float32)
