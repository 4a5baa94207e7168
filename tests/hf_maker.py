"""Small Hugging Face folders, the same on every machine: safetensors and JSON written by hand, real vocabularies."""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import shared
from sentencepiece import SentencePieceProcessor

from qllama.gguf import open_gguf

BASE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0}  # fmt: skip
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
# name: (config.json, type of the weights, tokenizer, number of files)
MODELS: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "Llama-3.1-0.1B-Instruct": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3,
         "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128009, "num_hidden_layers": 1},
        "BF16", "llama-bpe", 1,
    ),
    "mistral-v0.3": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 16, "attention_bias": True},
        "F16", "spm", 3,
    ),
    "tiny-yarn": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0}},
        "F32", "spm", 1,
    ),
    "mixtral-3x": (
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 3,
         "num_experts_per_tok": 2},
        "BF16", "spm", 2,
    ),
    "qwen2": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
         "bos_token_id": 151643, "eos_token_id": 151645},
        "BF16", "qwen2", 1,
    ),
    "qwen3moe": (
        {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "tie_word_embeddings": True, **MOE},
        "F16", "qwen2", 1,
    ),
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
RULES = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make(folder: Path, name: str) -> Path:
    """Write the model `name` of MODELS into a new folder of that name."""
    config, dtype, tokenizer, n_files = MODELS[name]
    where = folder / name
    where.mkdir()
    n_vocab = (_sentencepiece if tokenizer == "spm" else _byte_level)(where, tokenizer)
    config = {**BASE, **config, "vocab_size": n_vocab + 5}
    (where / "config.json").write_text(json.dumps(config))
    (where / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "top_p": 0.95}))
    rng = np.random.default_rng(1)
    tensors = {key: rng.integers(-300, 300, shape) / np.float32(256) for key, shape in _shapes(config)}
    _weights(where, tensors, dtype, n_files)
    return where


def _shapes(c: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    n, heads, kind = c["hidden_size"], c["num_attention_heads"], c["model_type"]
    dim = c.get("head_dim", n // heads)
    yield "model.embed_tokens.weight", (c["vocab_size"], n)
    yield "model.norm.weight", (n,)
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", (c["vocab_size"], n)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for which, n_head in (("q", heads), ("k", c["num_key_value_heads"]), ("v", c["num_key_value_heads"])):
            yield f"{layer}self_attn.{which}_proj.weight", (n_head * dim, n)
            if kind == "qwen2" or c.get("attention_bias"):
                yield f"{layer}self_attn.{which}_proj.bias", (n_head * dim,)
            if kind == "qwen3_moe" and which != "v":
                yield f"{layer}self_attn.{which}_norm.weight", (dim,)
        yield f"{layer}self_attn.o_proj.weight", (n, heads * dim)
        yield f"{layer}self_attn.rotary_emb.inv_freq", (dim // 2,)
        yield f"{layer}input_layernorm.weight", (n,)
        yield f"{layer}post_attention_layernorm.weight", (n,)
        yield from _ffn(layer, c)


def _ffn(layer: str, c: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    n, n_ff, kind = c["hidden_size"], c.get("moe_intermediate_size", c["intermediate_size"]), c["model_type"]
    n_expert = c.get("num_experts", c.get("num_local_experts", 0))
    where = f"{layer}block_sparse_moe." if kind == "mixtral" else f"{layer}mlp."
    names = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    if n_expert:
        yield f"{where}gate.weight", (n_expert, n)
    for expert in range(n_expert) if n_expert else [None]:
        at = where if expert is None else f"{where}experts.{expert}."
        for which, shape in zip(names, ((n_ff, n), (n_ff, n), (n, n_ff)), strict=True):
            yield f"{at}{which}.weight", shape


def encoded(values: np.ndarray, dtype: str) -> bytes:
    """Values that all three types hold exactly, or BF16 cut short."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def safetensors(tensors: Mapping[str, np.ndarray], dtype: str) -> bytes:
    """The bytes of a file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        raw = encoded(values, dtype)
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        body += raw
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def _weights(where: Path, tensors: dict[str, np.ndarray], dtype: str, n_files: int) -> None:
    if n_files == 1:
        (where / "model.safetensors").write_bytes(safetensors(tensors, dtype))
        return
    weight_map = {}
    for i in range(n_files):
        part = f"model-{i + 1:05d}-of-{n_files:05d}.safetensors"
        names = list(tensors)[i::n_files]
        (where / part).write_bytes(safetensors({name: tensors[name] for name in names}, dtype))
        weight_map |= dict.fromkeys(names, part)
    (where / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _sentencepiece(where: Path, _: str) -> int:
    shutil.copy(shared("models/books-5m-tokenizer.model"), where / "tokenizer.model")
    n_vocab = SentencePieceProcessor(str(where / "tokenizer.model")).vocab_size()
    named = {0: "<unk>", 1: "<s>", 2: "</s>", n_vocab: "<|tool|>", n_vocab + 1: "a b"}
    decoder = {str(i): {"content": t, "special": i < 3} for i, t in named.items()}
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<unk>"}, "add_bos_token": True,
                "add_eos_token": False, "add_prefix_space": True, "chat_template": TEMPLATE,
                "added_tokens_decoder": decoder}  # fmt: skip
    (where / "tokenizer_config.json").write_text(json.dumps(settings))
    return n_vocab


def _byte_level(where: Path, vocabulary: str) -> int:
    with open_gguf(shared(f"vocabs/ggml-vocab-{vocabulary}.gguf")) as gguf:
        tokens, merges, kinds = (
            gguf.metadata[f"tokenizer.ggml.{key}"].to_list() for key in ("tokens", "merges", "token_type")
        )
    tokens, merges = ([raw.decode() for raw in texts] for texts in (tokens, merges))
    added = [{"id": i, "content": t, "special": True, "normalized": False, "single_word": False, "lstrip": False,
              "rstrip": False} for i, t in enumerate(tokens) if kinds[i] == 3]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": WORDS.replace("NUMBERS", RULES[vocabulary])},
             "behavior": "Isolated", "invert": False}  # fmt: skip
    tokenizer = {
        "version": "1.0", "added_tokens": added, "decoder": byte_level, "post_processor": byte_level,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "model": {"type": "BPE", "ignore_merges": vocabulary == "llama-bpe", "merges": [m.split(" ") for m in merges],
                  "vocab": {t: i for i, t in enumerate(tokens) if kinds[i] == 1}},
    }  # fmt: skip
    if vocabulary == "llama-bpe":
        first, text = {"SpecialToken": {"id": tokens[128000], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        ids = {tokens[128000]: {"id": tokens[128000], "ids": [128000], "tokens": [tokens[128000]]}}
        tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [first, text],
                                       "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
                                       "special_tokens": ids}  # fmt: skip
    (where / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": added[-1]["content"],
        "chat_template": TEMPLATE,
    }
    if vocabulary == "llama-bpe":
        settings["bos_token"] = tokens[128000]
    (where / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)
