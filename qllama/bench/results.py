"""What a test says: llama-bench's fields, and the statistics of its runs. How they are printed is printers.py's."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from qllama.bench.parameters import Instance
from qllama.gguf import GGUF
from qllama.hparams import FILE_TYPES, HParams

BUILD_COMMIT = f"qllama-{version('qllama')}"
BUILD_NUMBER = 0  # llama.cpp counts its commits
BACKEND = "CPU"

# In llama-bench's order: what JSON and SQL take them for.
FIELDS: dict[str, str] = {
    "build_commit": "text", "build_number": "int", "cpu_info": "text", "gpu_info": "text", "backends": "text",
    "model_filename": "text", "model_type": "text", "model_size": "int", "model_n_params": "int", "n_batch": "int",
    "n_ubatch": "int", "n_threads": "int", "cpu_mask": "text", "cpu_strict": "bool", "poll": "int", "type_k": "text",
    "type_v": "text", "n_gpu_layers": "int", "n_cpu_moe": "int", "split_mode": "text", "main_gpu": "int",
    "no_kv_offload": "bool", "flash_attn": "int", "devices": "text", "tensor_split": "text",
    "tensor_buft_overrides": "text", "load_mode": "text", "lazy_mode": "text", "embeddings": "bool",
    "no_op_offload": "int", "no_host": "bool", "repack": "bool", "fit_target": "int", "fit_min_ctx": "int",
    "n_prompt": "int", "n_gen": "int", "n_depth": "int", "test_time": "text", "avg_ns": "int", "stddev_ns": "int",
    "avg_ts": "float", "stddev_ts": "float",
}  # fmt: skip

# What has no meaning here: the value that llama-bench has by default.
NEUTRAL: dict[str, str] = {
    "cpu_mask": "0x0", "cpu_strict": "0", "poll": "50", "n_gpu_layers": "-1", "n_cpu_moe": "0", "split_mode": "layer",
    "main_gpu": "0", "no_kv_offload": "0", "flash_attn": "-1", "devices": "auto", "tensor_split": "0.00",
    "tensor_buft_overrides": "none", "load_mode": "auto", "lazy_mode": "auto", "embeddings": "0", "no_op_offload": "0",
    "no_host": "0", "repack": "1", "fit_target": "0", "fit_min_ctx": "0",
}  # fmt: skip

# Layers of a `llama` without experts: its size in llama.cpp's words. 32 and 80 are told apart below.
LLAMA_SIZES = {16: "1B", 22: "1B", 26: "3B", 28: "3B", 30: "256M", 36: "8B", 40: "13B", 48: "34B", 60: "30B"}

# Where llama.cpp's words for a file type are not those of its quantizer (hparams.FILE_TYPES).
FILE_TYPE_WORDS = {
    "F32": "all F32", "Q2_K": "Q2_K - Medium", "IQ3_M": "IQ3_S mix - 3.66 bpw", "MXFP4_MOE": "MXFP4 MoE",
    **{f"Q{n}_K_{size[0]}": f"Q{n}_K - {size}" for n in (2, 3, 4, 5) for size in ("Small", "Medium", "Large")},
    "TQ1_0": "TQ1_0 - 1.69 bpw ternary", "TQ2_0": "TQ2_0 - 2.06 bpw ternary",
    **{name: f"{name} - {bits} bpw" for name, bits in (
        ("IQ1_S", "1.5625"), ("IQ1_M", "1.75"), ("IQ2_XXS", "2.0625"), ("IQ2_XS", "2.3125"), ("IQ2_S", "2.5"),
        ("IQ2_M", "2.7"), ("IQ3_XXS", "3.0625"), ("IQ3_XS", "3.3"), ("IQ3_S", "3.4375"), ("IQ4_XS", "4.25"),
        ("IQ4_NL", "4.5"),
    )},
}  # fmt: skip

# What a file without general.file_type is taken for when most of its tensors have this type.
GUESSED = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


@dataclass(frozen=True)
class About:
    """A model file: llama.cpp's short description, bytes of its tensors, their elements."""

    type: str
    size: int
    n_params: int


def about(gguf: GGUF, hparams: HParams) -> About:
    tensors = gguf.tensors.values()
    words = f"{hparams.architecture} {model_size(hparams)} {file_type(gguf, hparams)}"
    return About(words, sum(t.nbytes for t in tensors), sum(t.n_elements for t in tensors))


def model_size(hparams: HParams) -> str:
    """What llama.cpp calls the size: it goes by the number of layers. `?B` for what it does not know."""
    if hparams.architecture != "llama":
        return "?B"
    if hparams.n_layer == 32:
        return "7B" if hparams.n_vocab < 40000 else "3B" if hparams.n_vocab == 49152 else "8B"
    if hparams.n_layer == 80:
        return "65B" if hparams.n_head == hparams.n_head_kv else "70B"
    return LLAMA_SIZES.get(hparams.n_layer, "?B")


def file_type(gguf: GGUF, hparams: HParams) -> str:
    """The file type in llama.cpp's words; without one in the file it is guessed from the most frequent type."""
    if hparams.file_type is not None:
        name = FILE_TYPES.get(hparams.file_type)
        return FILE_TYPE_WORDS.get(name, name) if name else "unknown, may not work"
    ((most, _),) = Counter(t.type.name for t in gguf.tensors.values()).most_common(1)
    name = GUESSED.get(most, most)
    return f"(guessed) {FILE_TYPE_WORDS.get(name, name)}"


@dataclass
class Result:
    """A test that was run. `samples_ns` are the times of its repetitions."""

    instance: Instance
    about: About
    cpu_info: str
    test_time: str  # RFC 3339, UTC
    samples_ns: list[int]
    foreign: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second."""
        return [1e9 * self.instance.n_tokens / ns for ns in self.samples_ns]

    def values(self) -> dict[str, str]:
        """Every field's text."""
        test, ns, ts = self.instance, self.samples_ns, self.samples_ts
        own = {
            "build_commit": BUILD_COMMIT, "build_number": BUILD_NUMBER, "cpu_info": self.cpu_info, "gpu_info": "",
            "backends": BACKEND, "model_filename": test.model, "model_type": self.about.type,
            "model_size": self.about.size, "model_n_params": self.about.n_params, "n_batch": test.n_batch,
            "n_ubatch": test.n_ubatch, "n_threads": test.n_threads, "type_k": test.type_k, "type_v": test.type_v,
            "n_prompt": test.n_prompt, "n_gen": test.n_gen, "n_depth": test.n_depth, "test_time": self.test_time,
            "avg_ns": int(mean(ns)), "stddev_ns": int(deviation(ns)), "avg_ts": f"{mean(ts):f}",
            "stddev_ts": f"{deviation(ts):f}",
        }  # fmt: skip
        found = {**NEUTRAL, **self.foreign, **own}
        return {name: str(found[name]) for name in FIELDS}


def mean(samples: list[int] | list[float]) -> float:
    return sum(samples) / len(samples)


def deviation(samples: list[int] | list[float]) -> float:
    """Of a sample (n - 1); 0 for a single one."""
    if len(samples) < 2:
        return 0.0
    middle = mean(samples)
    return math.sqrt(sum((x - middle) ** 2 for x in samples) / (len(samples) - 1))
