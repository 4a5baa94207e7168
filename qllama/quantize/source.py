"""Where tensors come from: their names, shapes and types, and their rows, a few at a time."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from qllama.ggml import GGMLType
from qllama.gguf import GGUF
from qllama.gguf_writer import Entry, entries


@dataclass(frozen=True)
class SourceTensor:
    """A tensor to be read; `shape` in GGUF order. `part` is the file of a split model that it is in."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    part: int = 0

    @property
    def n_rows(self) -> int:
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return (self.shape or (1,))[0] // self.type.block * self.type.nbytes

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_bytes


class Source(Protocol):
    """A model that can be read row by row."""

    path: str
    inputs: list[str]  # the files, which must not be overwritten
    n_parts: int
    metadata: dict[str, Entry]
    tensors: list[SourceTensor]  # in the order of the file

    def rows(self, tensor: SourceTensor, first: int, n_rows: int) -> np.ndarray:
        """(n_rows, row_bytes) uint8 from row `first` on."""
        ...


class GGUFSource:
    """The tensors of an opened file; its pages are let go when the next rows are read, so they need little memory."""

    def __init__(self, gguf: GGUF) -> None:
        self._gguf = gguf
        self.path, self.inputs, self.n_parts = gguf.path, [part.path for part in gguf.parts], len(gguf.parts)
        self.metadata = entries(gguf.metadata)
        self.tensors = [SourceTensor(t.name, t.shape, t.type, t.part) for t in gguf.tensors.values()]
        self._read: tuple[str, int, int] | None = None

    def rows(self, tensor: SourceTensor, first: int, n_rows: int) -> np.ndarray:
        if self._read is not None:
            self._gguf.release(*self._read)
        start, nbytes = first * tensor.row_bytes, n_rows * tensor.row_bytes
        self._read = tensor.name, start, nbytes
        return self._gguf.data(tensor.name)[start : start + nbytes].reshape(n_rows, tensor.row_bytes)
