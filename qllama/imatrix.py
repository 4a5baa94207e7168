"""Importance matrices: how strongly each input column of a matrix is used. Their files, GGUF and the older .dat.

How they are collected is qllama.activations' business, what encoders do with them qllama.quant's.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from qllama.atomic import write_file
from qllama.errors import FileError, InputError, read_file
from qllama.ggml import BY_NAME
from qllama.gguf import GGUF, open_gguf
from qllama.gguf_writer import Entry, NewArray, NewTensor, head

SUMS, COUNTS = ".in_sum2", ".counts"  # of a tensor's name: sums of squares, numbers of rows that were summed
_I32 = struct.Struct("<i")

Path = str | os.PathLike[str]


@dataclass
class Sums:
    """Squares of the inputs of a tensor, summed: `sums` (n_matrices, n) float64, over `counts` (n_matrices,) rows."""

    sums: np.ndarray
    counts: np.ndarray

    def mean(self) -> np.ndarray:
        """(n_matrices, n) float32; ones for an expert that was never used."""
        counts = self.counts[:, None].astype(np.float32)
        with np.errstate(all="ignore"):
            return np.where(counts > 0, self.sums.astype(np.float32) / counts, np.float32(1))


@dataclass
class ImportanceMatrix:
    """The sums of each tensor by name, and what text they come from: `n_chunks` chunks of `chunk_size` tokens."""

    tensors: dict[str, Sums] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    n_chunks: int = 0
    chunk_size: int = 512
    path: str = ""  # of the file it was read from

    def filtered(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> "ImportanceMatrix":
        """Only the tensors whose name has one of `include` in it, or none of `exclude`; not both may be given."""
        if include and exclude:
            raise InputError("weights can be included or excluded, not both")
        kept = {
            name: sums
            for name, sums in self.tensors.items()
            if (any(part in name for part in include) if include else not any(part in name for part in exclude))
        }
        return ImportanceMatrix(kept, self.datasets, self.n_chunks, self.chunk_size, self.path)

    def importance(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """(n_matrices, n) float32 for a tensor of this shape, None without data; FileError when the sizes differ."""
        if name not in self.tensors:
            return None
        mean = self.tensors[name].mean()
        needed = (prod(shape[2:]), shape[0])
        if mean.size != prod(needed):
            found = "x".join(map(str, mean.shape))
            raise FileError(self.path, f"found {found} values, the tensor needs {needed[0]}x{needed[1]}", name)
        return mean.reshape(needed)


def load_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of either format. Raises FileError for what is not one, or holds no finite numbers."""
    path = os.fspath(path)
    content = read_file(path, "the importance matrix")
    if content.startswith(b"GGUF"):
        with open_gguf(path) as gguf:
            matrix = _from_gguf(gguf)
    else:
        matrix = _Legacy(path, content).read()
    for name, found in matrix.tensors.items():
        if not (np.isfinite(found.mean()).all() and (found.sums >= 0).all()):
            raise FileError(path, "a value is not finite or is negative", name)
    return matrix


def _from_gguf(gguf: GGUF) -> ImportanceMatrix:
    metadata = gguf.metadata
    datasets = metadata.array("imatrix.datasets", ("str",)).to_list()
    matrix = ImportanceMatrix(
        datasets=[raw.decode("utf-8", "surrogateescape") for raw in datasets],
        n_chunks=metadata.integer("imatrix.chunk_count"),
        chunk_size=metadata.integer("imatrix.chunk_size", low=1),
        path=gguf.path,
    )
    for name in gguf.tensors:
        if name.endswith(SUMS):
            tensor = name.removesuffix(SUMS)
            matrix.tensors[tensor] = Sums(_floats(gguf, name), _floats(gguf, tensor + COUNTS).reshape(-1))
            sums, counts = matrix.tensors[tensor].sums, matrix.tensors[tensor].counts
            if len(sums) != len(counts):
                raise FileError(gguf.path, f"{len(sums)} rows of sums, {len(counts)} counts", tensor)
    if not matrix.tensors:
        raise FileError(gguf.path, f"no importance matrix: none of its tensors is named ...{SUMS}")
    return matrix


def _floats(gguf: GGUF, name: str) -> np.ndarray:
    """A tensor as (rows, n) float64."""
    if name not in gguf.tensors:
        raise FileError(gguf.path, f"missing tensor {name}")
    tensor = gguf.tensors[name]
    if tensor.type.name != "F32":
        raise FileError(gguf.path, "must be F32", f"{name}.type", tensor.type.name)
    return gguf.data(name).view("<f4").reshape(-1, (tensor.shape or (1,))[0]).astype(np.float64)


class _Legacy:
    """A bounded cursor over a .dat file: numbers of entries, calls and values before each array of sums."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.buffer, self.position = path, content, 0

    def take(self, nbytes: int) -> bytes:
        if not 0 <= nbytes <= len(self.buffer) - self.position:
            raise FileError(self.path, f"no importance matrix, or cut off at byte {self.position}")
        self.position += nbytes
        return self.buffer[self.position - nbytes : self.position]

    def number(self) -> int:
        return int(_I32.unpack(self.take(4))[0])

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "surrogateescape")

    def read(self) -> ImportanceMatrix:
        matrix = ImportanceMatrix(path=self.path)
        n_entries = self.number()
        if not 1 <= n_entries <= len(self.buffer):
            raise FileError(self.path, f"no importance matrix: {n_entries} entries")
        for _ in range(n_entries):
            name, n_calls, n_values = self.text(), self.number(), self.number()
            sums = np.frombuffer(self.take(4 * n_values), "<f4").astype(np.float64)[None]
            matrix.tensors[name] = Sums(sums, np.array([max(1, n_calls)]))
        if self.position < len(self.buffer):  # older files end here
            matrix.n_chunks = self.number()
        if self.position < len(self.buffer):
            matrix.datasets = [self.text()]
        return matrix


def save_imatrix(matrix: ImportanceMatrix, path: Path, legacy: bool = False, force: bool = True) -> None:
    """Write a file that llama.cpp reads too: GGUF, or with `legacy` the .dat format."""
    names = sorted(matrix.tensors)
    chunks = list(_legacy_chunks(matrix, names) if legacy else _gguf_chunks(matrix, names))
    write_file(path, chunks, sum(map(len, chunks)), force=force)


def _gguf_chunks(matrix: ImportanceMatrix, names: list[str]) -> Iterable[bytes]:
    metadata: dict[str, Entry] = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("arr", NewArray("str", matrix.datasets)),
        "imatrix.chunk_count": ("u32", matrix.n_chunks),
        "imatrix.chunk_size": ("u32", matrix.chunk_size),
    }
    tensors, arrays = [], []
    for name in names:
        found = matrix.tensors[name]
        for suffix, values in ((SUMS, found.sums), (COUNTS, found.counts[:, None])):
            tensors.append(NewTensor(name + suffix, values.shape[::-1], BY_NAME["F32"]))
            arrays.append(values)
    start = head(metadata, tensors)
    yield start.data
    for values in arrays:
        raw = values.astype("<f4").tobytes()
        yield raw + start.padding(len(raw))


def _legacy_chunks(matrix: ImportanceMatrix, names: list[str]) -> Iterable[bytes]:
    """A call is a chunk: what is stored is the mean times the number of calls."""
    yield _I32.pack(len(names))
    for name in names:
        found = matrix.tensors[name]
        n_calls = max(1, -(-int(found.counts.max()) // matrix.chunk_size))
        values = (found.mean() * np.float32(n_calls)).astype("<f4").tobytes()
        yield _text(name) + _I32.pack(n_calls) + _I32.pack(len(values) // 4) + values
    yield _I32.pack(matrix.n_chunks) + _text(matrix.datasets[-1] if matrix.datasets else "")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _I32.pack(len(raw)) + raw
