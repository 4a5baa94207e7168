"""The metadata of a model file: typed, checked access by key. gguf.py reads it; users know what it means."""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from qllama.errors import FileError, InputError, printable

# Value type id: name and layout. A bool is read as a byte, any but 0 being true.
SCALARS: dict[int, tuple[str, struct.Struct]] = {
    i: (name, struct.Struct("<" + code))
    for i, name, code in (
        (0, "u8", "B"), (1, "i8", "b"), (2, "u16", "H"), (3, "i16", "h"), (4, "u32", "I"), (5, "i32", "i"),
        (6, "f32", "f"), (7, "bool", "?"), (10, "u64", "Q"), (11, "i64", "q"), (12, "f64", "d"),
    )
}  # fmt: skip
_DTYPES = {name: np.dtype(layout.format) for name, layout in SCALARS.values()}
INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")

_LENGTH = struct.Struct("<Q")  # before each string

T = TypeVar("T")
REQUIRED: Any = object()  # as a default: the key must be there


@dataclass(frozen=True, repr=False)
class ArrayValue:
    """An array of the metadata, still undecoded in the file. Readable until its GGUF is closed."""

    type: str  # of the elements: u8 ... f64, bool, str
    count: int
    buffer: mmap.mmap
    start: int  # of the first element in `buffer`
    nbytes: int

    def __repr__(self) -> str:
        return f"[{self.type} x {self.count}]"

    def to_numpy(self) -> np.ndarray:
        """A copy: (count,) of the element type; bool from bytes. Not for strings."""
        if self.type == "bool":
            return np.frombuffer(self.buffer[self.start : self.start + self.nbytes], np.uint8) != 0
        return np.frombuffer(self.buffer[self.start : self.start + self.nbytes], _DTYPES[self.type]).copy()

    def to_list(self, limit: int | None = None) -> list[Any]:
        """The elements, or the first `limit`: int, float, bool; strings as bytes, perhaps not UTF-8."""
        count = self.count if limit is None else min(limit, self.count)
        if self.type != "str":
            itemsize = _DTYPES[self.type].itemsize
            return ArrayValue(self.type, count, self.buffer, self.start, count * itemsize).to_numpy().tolist()
        buffer, position, unpack = self.buffer, self.start, _LENGTH.unpack_from
        strings = []
        for _ in repeat(None, count):
            begin = position + 8
            position = begin + unpack(buffer, position)[0]
            strings.append(buffer[begin:position])
        return strings


Value = int | float | bool | str | ArrayValue


class Metadata(Mapping[str, Value]):
    """The keys and values of a file; getters that check type and range and raise FileError naming both.

    Strings that are not UTF-8 keep their bytes as lone surrogates (`value.encode(errors="surrogateescape")`).
    """

    def __init__(self, path: str, entries: dict[str, tuple[str, Value]]) -> None:
        self.path = path
        self._entries = entries  # key: (type name, value)

    def __getitem__(self, key: str) -> Value:
        return self._entries[key][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def overridden(self, values: Mapping[str, int | float | bool | str]) -> "Metadata":
        """A copy in which these values stand for those of the file, whatever type it has them in."""
        kinds = {int: "i64", float: "f64", bool: "bool", str: "str"}
        for key, value in values.items():
            if type(value) not in kinds:
                raise InputError(f"override of {printable(key)}: found {value!r}, needed an int, float, bool or str")
        return Metadata(self.path, self._entries | {k: (kinds[type(v)], v) for k, v in values.items()})

    def type_of(self, key: str) -> str:
        """The type as stored: u8 ... f64, bool, str, or arr."""
        return self._entries[key][0]

    def error(self, key: str, reason: str) -> FileError:
        """What to raise about the value of `key`."""
        return FileError(self.path, reason, key, short(self[key]))

    def _get(self, key: str, types: tuple[str, ...], wanted: str, default: Any) -> Any:
        if key not in self._entries:
            if default is REQUIRED:
                raise FileError(self.path, f"missing key {key}")
            return default
        kind, value = self._entries[key]
        if kind not in types:
            raise self.error(key, f"is {kind}, must be {wanted}")
        return value

    def integer(
        self,
        key: str,
        default: T = REQUIRED,
        *,
        low: int = 0,
        high: int = 2**63 - 1,
        kinds: tuple[str, ...] = INTEGERS,
    ) -> int | T:
        """An integer, `low` to `high`, stored in any width (or only as one of `kinds`)."""
        value = self._get(key, kinds, " or ".join(kinds) if kinds != INTEGERS else "an integer", default)
        if key in self and not low <= value <= high:
            raise self.error(key, f"must be from {low} to {high}")
        return value

    def number(self, key: str, default: T = REQUIRED) -> float | T:
        """A finite float; integers are taken too."""
        value = self._get(key, ("f32", "f64", *INTEGERS), "a number", default)
        if key in self and not isfinite(value):
            raise self.error(key, "must be finite")
        return float(value) if key in self else value

    def text(self, key: str, default: T = REQUIRED) -> str | T:
        """A string."""
        return self._get(key, ("str",), "a string", default)

    def boolean(self, key: str, default: T = REQUIRED) -> bool | T:
        """A bool."""
        return self._get(key, ("bool",), "a bool", default)

    def array(self, key: str, types: tuple[str, ...], default: T = REQUIRED) -> ArrayValue | T:
        """An array whose elements are one of `types`."""
        value = self._get(key, ("arr",), "an array", default)
        if key in self and value.type not in types:
            raise self.error(key, f"must be an array of {' or '.join(types)}")
        return value


def short(value: object) -> str:
    """`value` as an error line quotes it: escaped, at most 60 characters."""
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = printable(text[:64])
    return text if len(text) <= 60 else text[:57] + "..."
