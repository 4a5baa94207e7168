"""The tensors of a folder's safetensors files: names, types, where their bytes are. A stranger's headers are checked.

What the tensors mean to a model is left to others. Weights as Python pickles are refused: reading them runs code.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qllama.convert.files import check_name, parse_json, read_json
from qllama.errors import FileError, printable

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes, as the format's own library has it
MAX_DIMS = 8
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; the last number of `shape` is contiguous, `offset` counts from the file's start."""

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return (self.shape or (1,))[-1] * SIZES[self.dtype]

    def rows(self, first: int, n_rows: int) -> np.ndarray:
        """(n_rows, row_bytes) uint8 from row `first` on, read from the disk."""
        nbytes = n_rows * self.row_bytes
        try:
            raw = np.fromfile(self.path, np.uint8, nbytes, offset=self.offset + first * self.row_bytes)
        except OSError as error:
            raise FileError(self.path, f"cannot be read: {error.strerror}") from None
        if raw.size != nbytes:
            raise FileError(self.path, "became shorter while it was read", "tensor", self.name)
        return raw.reshape(n_rows, self.row_bytes)


def folder_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by name: file by file, by name in each. Raises FileError for what is wrong or missing."""
    index = folder / "model.safetensors.index.json"
    parts = sorted(path.name for path in folder.glob("model*.safetensors"))
    weight_map: dict[str, str] = {}
    if index.is_file():
        weight_map = _weight_map(index)
        parts = sorted(set(weight_map.values()))
    if not parts:
        raise FileError(folder, _no_weights(folder))
    found: dict[str, StoredTensor] = {}
    for part in parts:
        for name, tensor in read_header(folder / part).items():
            if name in found:
                raise FileError(folder / part, f"is in {printable(Path(found[name].path).name)} too", "tensor", name)
            if weight_map and weight_map.get(name) != part:
                raise FileError(index, f"does not place it in {printable(part)}, where it is", "tensor", name)
            found[name] = tensor
    missing = sorted(weight_map.keys() - found.keys())
    if missing:
        raise FileError(folder / weight_map[missing[0]], "is not in it, needed by the index", "tensor", missing[0])
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name; every one lies inside the file. Raises FileError."""
    raw, start, size = _header(path)
    header = parse_json(path, raw)
    tensors = {
        name: _tensor(path, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"
    }
    return dict(sorted(tensors.items()))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError(index, "has no weight_map")
    for name, part in weight_map.items():
        check_name(index, name, part)
    return weight_map


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"has its weights as a pickle ({printable(pickles[0])}), which runs code when read; needed safetensors"
    return "has no model*.safetensors"


def _header(path: Path) -> tuple[bytes, int, int]:
    """The header's bytes, where the data starts, the file's size."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise FileError(path, f"is no safetensors file, or cut short: a header of {length} bytes in {size}")
            return file.read(length), 8 + length, size
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from None


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    """Check one entry of a header."""
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if dtype not in SIZES:
        raise FileError(path, f"is of type {printable(dtype)}, needed one of {', '.join(SIZES)}", "tensor", name)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise FileError(path, f"has the shape {printable(shape)}", "tensor", name)
    if not _sizes(offsets) or len(offsets) != 2:
        raise FileError(path, f"has the data_offsets {printable(offsets)}", "tensor", name)
    begin, end = offsets
    needed = prod(shape) * SIZES[dtype]
    if end - begin != needed:
        raise FileError(path, f"has {end - begin} bytes, {dtype} {shape} needs {needed}", "tensor", name)
    if start + end > size:
        raise FileError(path, f"ends at byte {start + end}, the file at {size}: it is cut short", "tensor", name)
    return StoredTensor(str(path), name, dtype, tuple(shape), start + begin)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
