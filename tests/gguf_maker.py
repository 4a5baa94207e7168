"""Builds GGUF files in memory, right ones and ones broken on purpose: counts, lengths and offsets may lie."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qllama.errors import FileError
from qllama.ggml import BY_NAME
from qllama.gguf import open_gguf

IDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9,
       "u64": 10, "i64": 11, "f64": 12}  # fmt: skip
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B",
         "u64": "Q", "i64": "q", "f64": "d"}  # fmt: skip


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(value: str | bytes, length: int | None = None) -> bytes:
    """A string, which may claim another `length`."""
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: str, value: Any) -> bytes:
    return string(value) if kind == "str" else struct.pack("<" + CODES[kind], value)


def kv(key: str | bytes, kind: str | int, value: Any = b"") -> bytes:
    """A key with a value of `kind`; a number as `kind` is a raw type id before raw bytes."""
    if isinstance(kind, int):
        return string(key) + u32(kind) + value
    return string(key) + u32(IDS[kind]) + scalar(kind, value)


def array(key: str, kind: str | int, values: Any, count: int | None = None) -> bytes:
    """A key with an array, which may claim another `count`; a number as `kind` as in `kv`."""
    if isinstance(kind, int):
        return string(key) + u32(IDS["arr"]) + u32(kind) + u64(count or 0) + values
    raw = b"".join(scalar(kind, value) for value in values)
    return string(key) + u32(IDS["arr"]) + u32(IDS[kind]) + u64(len(values) if count is None else count) + raw


def auto(key: str, value: Any) -> bytes:
    """A key whose type follows from the Python value; ("i8", 1) or ("arr", "u16", [1, 2]) names the type."""
    if isinstance(value, tuple):
        return kv(key, *value) if value[0] != "arr" else array(key, *value[1:])
    if isinstance(value, list):
        return array(key, {str: "str", bytes: "str", float: "f32", int: "i32"}[type(value[0])], value)
    return kv(key, {bool: "bool", int: "u32", float: "f32", str: "str"}[type(value)], value)


def tensor(
    name: str | bytes,
    shape: Sequence[int],
    kind: str | int = "F32",
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """An entry of the tensor directory."""
    type_id = BY_NAME[kind].id if isinstance(kind, str) else kind
    dims = b"".join(u64(n) for n in shape)
    return string(name) + u32(len(shape) if n_dims is None else n_dims) + dims + u32(type_id) + u64(offset)


def gguf(
    kvs: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these entries, padded to `alignment` before the data."""
    kvs, tensors = list(kvs), list(tensors)
    counts = (len(tensors) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(kvs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data if tensors else head + data


def model(keys: dict[str, Any], tensors: dict[str, Sequence[int]] | None = None, **more: Any) -> bytes:
    """A file of `keys` (see `auto`) and F32 tensors of these shapes, filled with zeros."""
    entries, data = [], b""
    for name, shape in (tensors or {}).items():
        entries.append(tensor(name, shape, "F32", len(data)))
        nbytes = 4
        for n in shape:
            nbytes *= n
        data += bytes(nbytes + -nbytes % 32)
    return gguf([auto(key, value) for key, value in keys.items()], entries, data, **more)


# A small model of the llama architecture, complete in keys and tensors.
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
}
_BLOCK = {
    "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "attn_output": (64, 64),
    "ffn_norm": (64,), "ffn_gate": (64, 96), "ffn_up": (64, 96), "ffn_down": (96, 64),
}  # fmt: skip
LLAMA_TENSORS: dict[str, Sequence[int]] = {
    "token_embd.weight": (64, 4),
    "output_norm.weight": (64,),
    **{f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in _BLOCK.items()},
}


def refused(path: Path) -> str:
    """The one line with which opening `path` is refused, without the name of the file."""
    with pytest.raises(FileError) as caught:
        open_gguf(path)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
