"""The head of a GGUF file as bytes, and where the tensors lie behind it. Version 3, little-endian.

Writing bytes to a disk is atomic.py's business, what keys mean their users'.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from qllama.errors import InputError, printable
from qllama.ggml import GGMLType
from qllama.gguf import MAX_NAME_BYTES
from qllama.metadata import SCALARS, ArrayValue, Metadata

_IDS = {name: id for id, (name, _) in SCALARS.items()} | {"str": 8, "arr": 9}
_LAYOUTS = dict(SCALARS.values())
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
ALIGNMENT = 32  # of tensors, unless general.alignment says otherwise


@dataclass(frozen=True)
class NewArray:
    """An array for the metadata; elements of `type` u8 ... f64, bool or str (str or bytes)."""

    type: str
    values: Sequence[Any]


Entry = tuple[str, Any]
"""A type name, u8 ... f64, bool, str or arr, and a value of it; an array is an ArrayValue or a NewArray."""


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; `shape` in GGUF order, shape[0] contiguous."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks."""
        return prod(self.shape) // self.type.block * self.type.nbytes


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without dimensions of 1 at its end: what ggml makes of a shape when it writes what it read."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@dataclass(frozen=True)
class Head:
    """What comes before the tensors, padded. The data of a tensor is `padding` zeros longer than its blocks."""

    data: bytes
    alignment: int
    nbytes: int  # of the whole file

    def padding(self, nbytes: int) -> bytes:
        """What follows `nbytes` bytes of a tensor."""
        return bytes(-nbytes % self.alignment)


def entries(metadata: Metadata) -> dict[str, Entry]:
    """The keys of a file that was read, with their types, to be written again."""
    return {key: (metadata.type_of(key), value) for key, value in metadata.items()}


def head(metadata: Mapping[str, Entry], tensors: Sequence[NewTensor]) -> Head:
    """The head of a file of these keys and tensors, in these orders; tensors follow it one by one, each padded.

    Raises InputError for a value that its type cannot hold and for a name of a tensor that is too long or not unique.
    """
    alignment = int(metadata["general.alignment"][1]) if "general.alignment" in metadata else ALIGNMENT
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, (kind, value) in metadata.items():
        out += _string(key) + _U32.pack(_IDS[kind]) + _value(key, kind, value)
    offset = 0
    for tensor in tensors:
        out += _tensor(tensor, offset)
        offset += tensor.nbytes + -tensor.nbytes % alignment
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise InputError("two tensors have one name")
    out += bytes(-len(out) % alignment)
    return Head(bytes(out), alignment, len(out) + offset)


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(raw)) + raw


def _value(key: str, kind: str, value: Any) -> bytes:
    if kind == "str":
        return _string(value)
    if kind == "arr":
        return _U32.pack(_IDS[value.type]) + _array(key, value)
    try:
        return _LAYOUTS[kind].pack(value)
    except (struct.error, OverflowError):
        raise InputError(f"{printable(key)}: {value} is not a {kind}") from None


def _array(key: str, value: ArrayValue | NewArray) -> bytes:
    if isinstance(value, ArrayValue):
        return _U64.pack(value.count) + value.buffer[value.start : value.start + value.nbytes]
    if value.type == "str":
        body = b"".join(map(_string, value.values))
    else:
        try:
            body = np.asarray(value.values, _LAYOUTS[value.type].format).tobytes()
        except (OverflowError, ValueError, TypeError):
            raise InputError(f"{printable(key)}: an element is not a {value.type}") from None
    return _U64.pack(len(value.values)) + body


def _tensor(tensor: NewTensor, offset: int) -> bytes:
    raw = tensor.name.encode("utf-8", "surrogateescape")
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise InputError(f"tensor {printable(tensor.name)}: a name of {len(raw)} bytes, needed 1 to {MAX_NAME_BYTES}")
    dims = b"".join(map(_U64.pack, tensor.shape))
    return _string(raw) + _U32.pack(len(tensor.shape)) + dims + _U32.pack(tensor.type.id) + _U64.pack(offset)
