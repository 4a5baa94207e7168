"""Model files for tests: the recorded sources in other tensor types, encoded by qllama.quant."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import shared
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from naive_blocks import weights

from qllama.ggml import BY_NAME
from qllama.quant import quantize

ARCHITECTURE = "general.architecture"


@cache
def recorded() -> dict[str, Any]:
    """What llama-quantize made of each source: kind -> {files: {type: {file_type, bytes, tensors}}}."""
    return json.loads(shared("oracles/quant/quant.json").read_text())["sources"]


@cache
def source(kind: str) -> dict[str, np.ndarray]:
    """The tensors of a recorded source by name, float32, rows last."""
    tensors = GGUFReader(shared(f"oracles/quant/{kind}.gguf")).tensors
    return {t.name: np.asarray(t.data).astype(np.float32) for t in tensors}


@cache
def importance(kind: str) -> dict[str, np.ndarray]:
    """The importance matrix of a recorded source: tensor -> (n_expert or 1, n) float32."""
    tensors = {t.name: t.data for t in GGUFReader(shared(f"oracles/quant/{kind}.imatrix.gguf")).tensors}
    names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
    return {name: tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"].reshape(-1, 1) for name in names}


def encoded(kind: str, tensor: str, type_name: str, weighted: bool = False) -> np.ndarray:
    """The blocks of a source's tensor, uint8, (..., bytes of a row); `weighted` by its importance matrix, if any."""
    values = source(kind)[tensor]
    matrices = values.reshape(-1, *values.shape[-2:]) if values.ndim > 1 else values.reshape(1, 1, -1)
    weights = importance(kind).get(tensor, [None]) if weighted else [None]
    weights = [weights[i * len(weights) // len(matrices)] for i in range(len(matrices))]
    blocks = [quantize(m, type_name, w) for m, w in zip(matrices, weights, strict=True)]
    return np.stack(blocks).reshape(*values.shape[:-1], -1)


def quantized_model(kind: str, type_name: str, out: Path) -> Path:
    """Write at `out` the model of `llama-quantize KIND.gguf out TYPE`, each tensor checked by its sha256."""
    file = recorded()[kind]["files"][type_name]
    tensors = {}
    for t in file["tensors"]:
        blocks = encoded(kind, t["name"], t["type"])
        assert hashlib.sha256(blocks.tobytes()).hexdigest() == t["sha256"], (t["name"], t["type"])
        tensors[t["name"]] = (blocks, GGMLQuantizationType[t["type"]])
    return _write(GGUFReader(shared(f"oracles/quant/{kind}.gguf")), out, file["file_type"], tensors)


def dequantized_copy(path: Path, out: Path) -> Path:
    """Write at `out` the model of `path` with every tensor widened to F32 by gguf-py."""
    reader = GGUFReader(path)
    tensors = {
        t.name: (weights(np.asarray(t.data), t.tensor_type.name).view(np.uint8), GGMLQuantizationType.F32)
        for t in reader.tensors
    }
    return _write(reader, out, 0, tensors)


def requantized(path: Path, type_name: str, out: Path) -> Path:
    """Write at `out` the F32 model of `path` with its matrices in `type_name`; rows that do not divide stay F16."""
    reader = GGUFReader(path)
    tensors = {}
    for t in reader.tensors:
        values = np.asarray(t.data)
        whole = values.ndim > 1 and values.shape[-1] % BY_NAME[type_name].block == 0
        kind = "F32" if values.ndim == 1 else type_name if whole else "F16"
        tensors[t.name] = (
            quantize(np.atleast_2d(values), kind).reshape(*values.shape[:-1], -1),
            GGMLQuantizationType[kind],
        )
    return _write(reader, out, 7, tensors)


def _write(
    like: GGUFReader, out: Path, file_type: int, tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]]
) -> Path:
    """Write `tensors` (uint8, (..., bytes of a row)) with the metadata of `like`."""
    writer = GGUFWriter(out, like.fields[ARCHITECTURE].contents())
    for field in like.fields.values():
        if field.name == ARCHITECTURE or field.name.startswith("GGUF."):  # the writer's own
            continue
        value = file_type if field.name == "general.file_type" else field.contents()
        items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=items)
    for name, (blocks, tensor_type) in tensors.items():
        writer.add_tensor(name, blocks, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
