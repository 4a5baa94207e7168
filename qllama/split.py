"""One model file to several and back, as llama-gguf-split does it. Tensors are copied, nothing is converted."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qllama.atomic import OutputFiles
from qllama.errors import InputError
from qllama.ggml import GGMLType
from qllama.gguf import GGUF, TensorInfo
from qllama.gguf_writer import ALIGNMENT, Entry, Head, NewTensor, entries, head, trimmed

MAX_TENSORS = 128  # of a part, when nothing else is asked for
PIECE = 32 << 20  # bytes copied at a time

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class PartPlan:
    """A file to be written: its path, its head, and the tensors that follow."""

    path: str
    head: Head
    tensors: Sequence[TensorInfo]


def part_paths(prefix: Path, n_parts: int) -> list[str]:
    """The names of the parts of a split model."""
    stem = os.fspath(prefix).removesuffix(".gguf")
    return [f"{stem}-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts)]


def split_keys(part: int, n_parts: int, n_tensors: int) -> dict[str, Entry]:
    """The keys that make a file a part; `n_tensors` is of all parts."""
    return {
        "split.no": ("u16", part), "split.count": ("u16", n_parts), "split.tensors.count": ("i32", n_tensors)
    }  # fmt: skip


def plan_split(
    gguf: GGUF, prefix: Path, max_tensors: int | None = None, max_size: int | None = None,
    no_tensor_first_split: bool = False,
) -> list[PartPlan]:  # fmt: skip
    """Parts of at most `max_tensors` tensors, or of tensors of at most `max_size` bytes, named PREFIX-00001-of-....

    The first part has all metadata, and with `no_tensor_first_split` no tensors. Raises InputError for limits that
    contradict each other or cannot be kept.
    """
    if max_tensors is not None and max_size is not None:
        raise InputError("found a most number of tensors and a most size, needed one of them")
    for name, value in (("tensors", max_tensors), ("bytes", max_size)):
        if value is not None and value < 1:
            raise InputError(f"{value} {name} of a part, needed 1 or more")
    groups: list[list[TensorInfo]] = [[]] if no_tensor_first_split else []
    groups += _by_size(gguf, max_size) if max_size else _by_number(gguf, max_tensors or MAX_TENSORS)
    if len(groups) > 65_535:
        raise InputError(f"{len(groups)} parts, the most are 65535")
    plans = []
    kept = {k: v for k, v in entries(gguf.metadata).items() if not k.startswith("split.")}
    for i, (path, tensors) in enumerate(zip(part_paths(prefix, len(groups)), groups, strict=True)):
        keys = (kept if i == 0 else _alignment(kept)) | split_keys(i, len(groups), len(gguf.tensors))
        plans.append(PartPlan(path, _head(keys, tensors), tensors))
    return plans


def plan_merge(gguf: GGUF, out: Path) -> list[PartPlan]:
    """All tensors in one file, without the keys of the split. Raises InputError for a model that is not split."""
    if len(gguf.parts) < 2 and "split.count" not in gguf.metadata:
        raise InputError(f"{gguf.path} is not split")
    kept = {k: v for k, v in entries(gguf.metadata).items() if not k.startswith("split.")}
    tensors = list(gguf.tensors.values())
    return [PartPlan(os.fspath(out), _head(kept, tensors), tensors)]


def write_parts(gguf: GGUF, plans: Sequence[PartPlan], force: bool = False) -> None:
    """Write the files of a plan; they appear together or not at all (see atomic.OutputFiles, also for refusals)."""
    inputs = [part.path for part in gguf.parts]
    with OutputFiles([p.path for p in plans], [p.head.nbytes for p in plans], inputs, force) as out:
        for plan, file in zip(plans, out.files, strict=True):
            file.write(plan.head.data)
            for tensor in plan.tensors:
                for piece in _pieces(gguf, tensor):
                    file.write(piece)
                file.write(plan.head.padding(tensor.nbytes))


def _pieces(gguf: GGUF, tensor: TensorInfo) -> Iterator[memoryview]:
    data = gguf.data(tensor.name)
    for start in range(0, tensor.nbytes, PIECE):
        yield data[start : start + PIECE].data


def _by_number(gguf: GGUF, most: int) -> list[list[TensorInfo]]:
    tensors = list(gguf.tensors.values())
    return [tensors[i : i + most] for i in range(0, len(tensors), most)]


def _by_size(gguf: GGUF, most: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = []
    size = 0
    for tensor in gguf.tensors.values():
        nbytes = tensor.nbytes + -tensor.nbytes % ALIGNMENT
        if nbytes > most:
            raise InputError(f"{tensor.name} has {nbytes} bytes, a part may have {most}")
        if not groups or size + nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes
    return groups


def _alignment(metadata: dict[str, Entry]) -> dict[str, Entry]:
    """Parts after the first need this key alone, when tensors are not placed as usual."""
    return {key: value for key, value in metadata.items() if key == "general.alignment"}


def _head(metadata: dict[str, Entry], tensors: Sequence[TensorInfo]) -> Head:
    types: list[tuple[str, tuple[int, ...], GGMLType]] = [(t.name, trimmed(t.shape), t.type) for t in tensors]
    return head(metadata, [NewTensor(*t) for t in types])
