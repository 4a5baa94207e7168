"""The GGUF container, versions 2 and 3, little-endian: metadata, tensor directory, split files.

Trusts nothing: every length, count and offset is compared with the file size, in Python integers, before
it is used. What keys mean is left to hparams.py and tokenizer/, what tensors mean to model.py and quant/.
"""

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from qllama import sigbus
from qllama.atomic import check_unchanged, file_status
from qllama.errors import FileError, printable
from qllama.ggml import REMOVED, TYPES, GGMLType
from qllama.metadata import SCALARS, ArrayValue, Metadata, Value, short

VERSIONS = (2, 3)
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535  # the specification's limit
MAX_NAME_BYTES = 63  # of a tensor: ggml keeps 64 with the terminating zero
MAX_STRING_BYTES = 16 << 20
MAX_ALIGNMENT = 64 << 10
MIN_KEY_ENTRY = 13  # bytes: length 8, type 4, value 1
MIN_TENSOR_ENTRY = 24  # bytes: length 8, n_dims 4, type 4, offset 8

_U32, _U64, _HEADER = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQQ")
_STRING, _ARRAY = 8, 9

# How files begin that people mistake for a GGUF.
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"version https://git-lfs", "a Git LFS pointer, not the model: run `git lfs pull`"),
    (r"\s*<(!doctype|html|\?xml)", "a web page, not a model: the download gave an HTML or XML answer"),
    (r"\s*\{\s*\"", "a JSON text, not a model"),
    (r".{8}\{", "a safetensors file: convert it to GGUF first"),
    (r"PK\x03\x04", "a zip archive (a PyTorch checkpoint?): convert it to GGUF first"),
    (r"\x80[\x02-\x05]", "a pickle (a PyTorch checkpoint?): convert it to GGUF first"),
    (r"lmgg|fmgg|tjgg|algg|ggml|ggmf|ggjt|ggla", "a pre-GGUF ggml file: convert the original model again"),
    (r"FUGG", "a byte-swapped GGUF (big-endian): convert it for little-endian machines"),
    (r"\x00{4,}\Z", "all zeros where a GGUF header should be (download incomplete?)"),
)

_PART_NAME = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the directory; its bytes lie within the file and overlap no other's."""

    name: str
    shape: tuple[int, ...]  # GGUF order: shape[0] is contiguous, the input width of a matrix
    type: GGMLType
    nbytes: int
    offset: int  # bytes from the start of its file
    part: int = 0  # index of its file in GGUF.parts

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Part:
    """One mapped file, read-only."""

    path: str
    buffer: mmap.mmap
    nbytes: int
    status: tuple[int, ...] = ()  # what tells whether it was written to since: see file_status


@dataclass
class GGUF:
    """An opened model: one file, or all parts of a split one."""

    path: str
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    parts: list[Part]
    warnings: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(part.nbytes for part in self.parts)

    def locate(self, name: str) -> tuple[mmap.mmap, int, int]:
        """(mapping, byte offset in it, number of bytes) of a tensor; KeyError if there is none."""
        tensor = self.tensors[name]
        return self.parts[tensor.part].buffer, tensor.offset, tensor.nbytes

    def data(self, name: str) -> np.ndarray:
        """The blocks of a tensor: (nbytes,) uint8, read-only, in the file. KeyError if there is none."""
        buffer, offset, nbytes = self.locate(name)
        return np.frombuffer(buffer, np.uint8, nbytes, offset)

    def release(self, name: str, start: int, nbytes: int) -> None:
        """Let go of the pages that lie wholly in these bytes of a tensor; they stay in the system's cache."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        buffer, offset, _ = self.locate(name)
        first = -(-(offset + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            buffer.madvise(mmap.MADV_DONTNEED, first, last - first)

    def check_unchanged(self) -> None:
        """Raises FileError when one of the files was written to since it was opened."""
        for part in self.parts:
            check_unchanged(part.path, part.status)

    def close(self) -> None:
        """Unmap the files. One whose bytes are still viewed as an array is unmapped with its last view."""
        for part in self.parts:
            try:
                part.buffer.close()
            except BufferError:
                continue

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str], override_kv: Mapping[str, int | float | bool | str] | None = None) -> GGUF:
    """Open a model file, or a split model from any of its parts.

    Reads the metadata and the tensor directory; arrays and tensors stay in the file until asked for. `override_kv`
    has metadata values that stand for those of the file.
    Raises FileError, one line, for whatever is wrong with the file.
    """
    gguf = _open_part(os.fspath(path))
    try:
        n_parts = gguf.metadata.integer("split.count", 0, kinds=("u16",))
        gguf = gguf if n_parts <= 1 else _open_split(gguf, n_parts)
        gguf.metadata = gguf.metadata.overridden(override_kv or {})
        return gguf
    except BaseException:
        gguf.close()
        raise


def _open_part(path: str) -> GGUF:
    buffer, status = _map(path)
    try:
        sigbus.watch(path)
        gguf = _Reader(path, buffer).read()
        return replace(gguf, parts=[replace(part, status=status) for part in gguf.parts])
    except BaseException:
        buffer.close()
        raise


def _map(path: str) -> tuple[mmap.mmap, tuple[int, ...]]:
    """The whole file, mapped read-only, and its status; FileError for what is not a regular file with bytes in it."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO would block
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                is_dir = stat.S_ISDIR(status.st_mode)
                raise FileError(path, "is a directory" if is_dir else "is not a regular file")
            if status.st_size == 0:
                raise FileError(path, "the file is empty")
            return mmap.mmap(handle, 0, access=mmap.ACCESS_READ), file_status(handle) or ()
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise FileError(path, getattr(error, "strerror", None) or str(error)) from None


class _Reader:
    """A bounded cursor over one file: nothing is read that was not first found to be there."""

    def __init__(self, path: str, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.size = path, buffer, len(buffer)
        self.position, self.section = 0, "header"

    def error(self, reason: str, key: str | None = None, value: object = None) -> FileError:
        return FileError(self.path, reason, None if key is None else short(key), short(value))

    def take(self, nbytes: int) -> int:
        """Step over `nbytes`, which must be there; return where they start."""
        start = self.position
        if nbytes > self.size - start:
            have = f"needs {nbytes} bytes, has {self.size - start} (download incomplete?)"
            raise self.error(f"cut off in the {self.section} at byte {start}: {have}")
        self.position = start + nbytes
        return start

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack_from(self.buffer, self.take(layout.size))[0]

    def string(self, limit: int, what: str) -> bytes:
        length = self.number(_U64)
        if length > limit:
            reason = f"length at byte {self.position - 8} of the {self.section}: at most {limit}"
            raise self.error(reason, what, length)
        start = self.take(length)
        return self.buffer[start : start + length]

    def read(self) -> GGUF:
        """The metadata and tensors of this file."""
        version, n_tensors, n_kv = self.header()
        self.section = "metadata"
        metadata = Metadata(self.path, self.metadata(n_kv))
        alignment = self.alignment(metadata)
        self.section = "tensor directory"
        tensors = self.place(self.tensor_entries(n_tensors), alignment)
        extra = self.size - _align(self.data_end(tensors.values()), alignment)
        warnings = [f"{self.path}: {extra} bytes after the last tensor are ignored"] if extra > 0 else []
        part = Part(self.path, self.buffer, self.size)
        return GGUF(self.path, version, alignment, metadata, tensors, [part], warnings)

    def header(self) -> tuple[int, int, int]:
        head = self.buffer[:64]
        if not head.startswith(b"GGUF"):
            raise self.error(_kind(head))
        self.take(4)
        version, n_tensors, n_kv = _HEADER.unpack_from(self.buffer, self.take(_HEADER.size))
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            hint = ": a big-endian file; convert it for little-endian machines" if swapped else ""
            raise self.error(f"supported are 2 and 3{hint}", "version", version)
        left = self.size - self.position
        for key, count, entry, most in (
            ("n_tensors", n_tensors, MIN_TENSOR_ENTRY, MAX_TENSORS),
            ("n_kv", n_kv, MIN_KEY_ENTRY, MAX_KEYS),
        ):
            if count * entry > left:
                have = f"needs {count * entry} bytes or more, has {left} (download incomplete?)"
                raise self.error(have, key, count)
            if count > most:
                raise self.error(f"at most {most}", key, count)
        return version, n_tensors, n_kv

    def metadata(self, n_kv: int) -> dict[str, tuple[str, Value]]:
        entries: dict[str, tuple[str, Value]] = {}
        for index in range(n_kv):
            key = _text(self.string(MAX_KEY_BYTES, f"key #{index}"))
            if not key:
                raise self.error(f"empty, at byte {self.position - 8}", f"key #{index}", "")
            kind, value = self.value(key)
            if key in entries:
                raise self.error(f"is there twice, first as {short(entries[key][1])}", key, value)
            entries[key] = kind, value
        return entries

    def value(self, key: str) -> tuple[str, Value]:
        type_id = self.number(_U32)
        if type_id in SCALARS:
            name, layout = SCALARS[type_id]
            return name, self.number(layout)
        if type_id == _STRING:
            return "str", _text(self.string(MAX_STRING_BYTES, key))
        if type_id == _ARRAY:
            return "arr", self.array(key)
        raise self.error("unknown value type", key, f"type {type_id}")

    def array(self, key: str) -> ArrayValue:
        type_id, count = self.number(_U32), self.number(_U64)
        start = self.position
        if type_id in SCALARS:
            name, layout = SCALARS[type_id]
            self.take(count * layout.size)
        elif type_id == _STRING:
            name = "str"
            self.skip_strings(count, key)
        elif type_id == _ARRAY:
            raise self.error("an array of arrays is not supported", key, f"[array x {count}]")
        else:
            raise self.error("unknown element type", key, f"[type {type_id} x {count}]")
        return ArrayValue(name, count, self.buffer, start, self.position - start)

    def skip_strings(self, count: int, key: str) -> None:
        """Step over an array of strings. A vocabulary has 400,000 of them, so this loop uses locals only."""
        start = position = self.take(8 * count)  # each has a length at least
        buffer, unpack = self.buffer, _U64.unpack_from
        try:
            for index in range(count):
                (length,) = unpack(buffer, position)
                if length > MAX_STRING_BYTES:
                    reason = f"length at byte {position} of the metadata: at most {MAX_STRING_BYTES}"
                    raise self.error(reason, f"{key}[{index}]", length)
                position += 8 + length
        except struct.error:  # the file ends before this length does
            position += 8
        self.position = start
        self.take(position - start)

    def alignment(self, metadata: Metadata) -> int:
        key = "general.alignment"
        value = metadata.integer(key, 32, kinds=("u32",))
        if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise metadata.error(key, f"must be a power of two from 8 to {MAX_ALIGNMENT}")
        return value

    def tensor_entries(self, n_tensors: int) -> list[TensorInfo]:
        """The directory in file order, offsets still relative to the data."""
        entries = []
        for index in range(n_tensors):
            try:
                entries.append(self.tensor_entry(index))
            except FileError as error:
                if index or error.key is None:
                    raise
                # a wrong count of keys shows here first: half a key is read as a tensor
                raise self.error(f"{error.reason} (is n_kv wrong?)", error.key, error.value) from None
        return entries

    def tensor_entry(self, index: int) -> TensorInfo:
        name = _text(self.string(MAX_NAME_BYTES, f"name of tensor #{index}"))
        if not name:
            raise self.error(f"empty, at byte {self.position - 8}", f"name of tensor #{index}", "")
        n_dims = self.number(_U32)
        if n_dims > 4:
            raise self.error(f"tensor #{index} may have 0 to 4 dimensions", f"{name}.n_dims", n_dims)
        shape = tuple(self.number(_U64) for _ in range(n_dims))
        type_id, offset = self.number(_U32), self.number(_U64)
        if type_id not in TYPES:
            reason = "unknown tensor type"
            if type_id in REMOVED:
                reason = f"removed from ggml ({REMOVED[type_id]}): convert the original model again"
            raise self.error(reason, f"{name}.type", type_id)
        self.check_shape(name, shape, TYPES[type_id])
        nbytes = prod(shape) // TYPES[type_id].block * TYPES[type_id].nbytes
        return TensorInfo(name, shape, TYPES[type_id], nbytes, offset)

    def check_shape(self, name: str, shape: tuple[int, ...], kind: GGMLType) -> None:
        if 0 in shape:
            raise self.error(f"dimension {shape.index(0)} is 0", f"{name}.shape", shape)
        if (shape or (1,))[0] % kind.block:
            reason = f"{kind.name} has blocks of {kind.block}: dimension 0 must be a multiple"
            raise self.error(reason, f"{name}.shape", shape)

    def place(self, entries: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """Tensors by name, at their offsets in the file."""
        start = _align(self.position, alignment)
        tensors: dict[str, TensorInfo] = {}
        for entry in entries:
            if entry.name in tensors:
                raise self.error("two tensors have this name", "tensor", entry.name)
            if entry.offset % alignment:
                reason = f"not a multiple of the alignment {alignment}"
                raise self.error(reason, f"{entry.name}.offset", entry.offset)
            tensors[entry.name] = replace(entry, offset=start + entry.offset)
        if any(self.buffer[self.position : start]) and entries:
            raise self.error("no zero padding after the tensor directory", "n_tensors", len(entries))
        return tensors

    def data_end(self, tensors: Iterable[TensorInfo]) -> int:
        """Where the last tensor ends; all must lie apart and in the file."""
        in_file = sorted(tensors, key=lambda tensor: tensor.offset)
        for before, after in pairwise(in_file):
            if before.offset + before.nbytes > after.offset:
                reason = f"overlaps {short(before.name)}, which ends at {before.offset + before.nbytes}"
                raise self.error(reason, f"{after.name}.offset in the file", after.offset)
        ends = [tensor.offset + tensor.nbytes for tensor in in_file]
        if ends and ends[-1] > self.size:
            cut = short(next(t.name for t, end in zip(in_file, ends, strict=True) if end > self.size))
            have = f"needs {ends[-1]} bytes, has {self.size} (download incomplete?)"
            raise self.error(f"cut off in the data of {cut}: {have}")
        return ends[-1] if ends else self.position


def _open_split(opened: GGUF, n_parts: int) -> GGUF:
    """All parts of a split model as one GGUF; `opened` is one of them."""
    with ExitStack() as undo:
        files: list[GGUF] = []
        for index, path in enumerate(_part_paths(opened, n_parts)):
            files.append(opened if path == opened.path else undo.enter_context(_open_part(path)))
            _check_part(files[-1], index, files[0], n_parts)
        sigbus.watch(f"{opened.path}, or another of its parts,")
        merged = _merge(files)
        undo.pop_all()
    return merged


def _part_paths(opened: GGUF, n_parts: int) -> list[str]:
    """The paths of all parts, which must exist."""
    match = _PART_NAME.fullmatch(opened.path)
    if match is None or int(match[2]) != n_parts:
        raise opened.metadata.error("split.count", f"the file must be named NAME-00001-of-{n_parts:05d}.gguf")
    paths = [f"{match[1]}-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts)]
    missing = [os.path.basename(path) for path in paths if not os.path.exists(path)]
    if missing:
        names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise FileError(opened.path, f"{len(missing)} of {n_parts} parts are missing: {printable(names)}")
    return paths


def _check_part(part: GGUF, index: int, first: GGUF, n_parts: int) -> None:
    metadata = part.metadata
    if metadata.integer("split.count", kinds=("u16",)) != n_parts:
        raise metadata.error("split.count", f"must be {n_parts}, as in the other parts")
    if metadata.integer("split.no", kinds=("u16",)) != index:
        raise metadata.error("split.no", f"must be {index}, by the name of the file")
    architecture = first.metadata.get("general.architecture")
    # later parts need not repeat it
    if metadata.get("general.architecture", architecture) != architecture:
        raise metadata.error("general.architecture", f"the first part is a {short(architecture)} model")


def _merge(files: list[GGUF]) -> GGUF:
    first = files[0]
    tensors: dict[str, TensorInfo] = {}
    for index, file in enumerate(files):
        for name, tensor in file.tensors.items():
            if name in tensors:
                other = os.path.basename(files[tensors[name].part].path)
                raise FileError(file.path, f"is also in {other}", "tensor", name)
            tensors[name] = replace(tensor, part=index)
    if first.metadata.integer("split.tensors.count") != len(tensors):
        raise first.metadata.error("split.tensors.count", f"the parts have {len(tensors)} tensors together")
    parts = [part for file in files for part in file.parts]
    warnings = [warning for file in files for warning in file.warnings]
    return replace(first, tensors=tensors, parts=parts, warnings=warnings)


def _kind(head: bytes) -> str:
    """What a file that does not begin with GGUF is, by its first bytes."""
    for pattern, kind in _OTHER_KINDS:
        if re.match(pattern.encode(), head, re.DOTALL | re.IGNORECASE):
            return kind
    return "too short for a GGUF file" if len(head) < 24 else f"not a GGUF file: begins with {head[:4]!r}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
