"""What quantizing a model will do, before it is done: each tensor's new type, the new metadata, the exact sizes."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qllama.errors import FileError, InputError, printable
from qllama.ggml import BY_NAME
from qllama.gguf_writer import Entry, Head, NewTensor, head, trimmed
from qllama.imatrix import ImportanceMatrix
from qllama.metadata import INTEGERS, ArrayValue
from qllama.quant import mixes
from qllama.quantize.source import Source, SourceTensor
from qllama.split import split_keys

QUANTIZATION_VERSION = 2  # of the block formats
FLOATS = ("F32", "F16", "BF16")
GUESSED = 1024  # added to a file type that no key gave


@dataclass(frozen=True)
class Options:
    """What llama-quantize's options of these names say.

    tensor_types: (regex, type name) pairs; the first whose regex is found in a tensor's name decides.
    override_kv: metadata that stands for the file's. prune_layers: numbers of blocks that are left out.
    """

    pure: bool = False
    leave_output_tensor: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    tensor_types: Sequence[tuple[str, str]] = ()
    allow_requantize: bool = False
    keep_split: bool = False
    override_kv: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    prune_layers: Sequence[int] = ()


@dataclass(frozen=True)
class Step:
    """One tensor: where it is read from, and what is written. `imatrix_name` is its name before pruning."""

    source: SourceTensor
    target: NewTensor
    fell_back: bool = False  # its rows are not whole blocks of the type that it should have
    needs_imatrix: bool = False

    @property
    def changes(self) -> bool:
        """Whether its type changes; it is copied otherwise."""
        return self.source.type != self.target.type


@dataclass(frozen=True)
class Plan:
    """All steps in the order of the output, and the heads of its files: one, or one a part with `keep_split`."""

    file_type: str
    steps: list[Step]
    heads: list[Head]
    keep_split: bool = False

    @property
    def nbytes(self) -> int:
        """Exact size of the output, all parts together."""
        return sum(part.nbytes for part in self.heads)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of all tensors before and after."""
        return sum(s.source.nbytes for s in self.steps), sum(s.target.nbytes for s in self.steps)

    def part(self, step: Step) -> int:
        """The index of the file that a step writes to."""
        return step.source.part if self.keep_split else 0


def make_plan(
    source: Source, file_type: str, options: Options | None = None, imatrix: ImportanceMatrix | None = None
) -> Plan:
    """The plan to make `file_type`, a name of mixes.FILE_TYPES or COPY, of a model.

    Raises InputError for options that do not fit the model or each other, and FileError for what it cannot be made of.
    """
    options = options or Options()
    metadata = {**source.metadata, **_overrides(options.override_kv)}
    names = _Pruned(source, options.prune_layers)
    tensors = sorted((t for t in source.tensors if names.new(t.name)), key=lambda t: _order(t.name))
    if options.keep_split:
        place = {t.name: i for i, t in enumerate(source.tensors)}
        tensors.sort(key=lambda t: (t.part, place[t.name]))
    types = _Types(source.path, metadata, file_type, options, imatrix is not None, [names.new(t.name) for t in tensors])
    steps = [types.step(t, names.new(t.name)) for t in tensors]
    for step in steps:
        _check_importance(source, step, imatrix)
    new = _metadata(source, file_type, options, imatrix)
    if options.prune_layers:
        key = f"{types.traits.architecture}.block_count"
        new = {k: v for k, v in new.items() if k != key} | {key: ("u32", names.n_layer)}
    return Plan(file_type, steps, _heads(new, steps, source.n_parts, options.keep_split), options.keep_split)


def _order(name: str) -> tuple[int, bytes]:
    """llama.cpp's: by block, tensors of no block first, then by name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name.encode("utf-8", "surrogateescape"))


class _Pruned:
    """New names of tensors when blocks are left out and the later ones move up."""

    def __init__(self, source: Source, layers: Sequence[int]) -> None:
        found = {int(m[1]) for t in source.tensors if (m := re.match(r"blk\.(\d+)\.", t.name))}
        missing = sorted(set(layers) - found)
        if missing:
            raise InputError(f"--prune-layers: {printable(source.path)} has no layer {missing[0]}")
        kept = sorted(found - set(layers))
        self.n_layer, self._new = len(kept), {old: new for new, old in enumerate(kept)}
        self._layers = set(layers)

    def new(self, name: str) -> str:
        """The name in the new file, empty for a tensor that is left out."""
        match = re.match(r"blk\.(\d+)\.", name)
        if not self._layers or match is None:
            return name
        layer = int(match[1])
        return "" if layer in self._layers else f"blk.{self._new[layer]}.{name[match.end() :]}"


class _Types:
    """Decides the new type of each tensor, asked in the order of the new file."""

    def __init__(self, path: str, metadata: Mapping[str, Entry], file_type: str, options: Options, imatrix: bool,
                 names: Sequence[str]) -> None:  # fmt: skip
        self.path, self.file_type, self.options = path, file_type, options
        self.traits = _traits(path, metadata, imatrix)
        self.base = None if file_type == mixes.COPY else mixes.FILE_TYPES[file_type].base
        if self.base:
            self.mix = mixes.Mix(file_type, self.traits, names, options.output_tensor_type)
        for name in (options.output_tensor_type, options.token_embedding_type, *(t for _, t in options.tensor_types)):
            if name is not None and name not in BY_NAME:
                raise InputError(f"tensor type {printable(name)} is unknown; known are {', '.join(BY_NAME)}")
        self.patterns = [(_compiled(pattern), name) for pattern, name in options.tensor_types]

    def step(self, tensor: SourceTensor, name: str) -> Step:
        wanted, fell_back = self._wanted(tensor, name)
        found = tensor.type.name
        if wanted != found and found not in FLOATS and not self.options.allow_requantize:
            needed = "F32, F16 or BF16; --allow-requantize makes it lose twice"
            raise FileError(self.path, f"is {found}, needed {needed}", "tensor", name)
        target = NewTensor(name, trimmed(tensor.shape), BY_NAME[wanted])
        return Step(tensor, target, fell_back, self._needs_imatrix(name, wanted, found))

    def _needs_imatrix(self, name: str, wanted: str, found: str) -> bool:
        return wanted != found and mixes.needs_imatrix(name, wanted, self.file_type)

    def _wanted(self, tensor: SourceTensor, name: str) -> tuple[str, bool]:
        """The type, and whether it is a fallback."""
        kept = self.options.leave_output_tensor and name == mixes.OUTPUT
        if self.base is None or kept or not mixes.is_quantizable(name, tensor.shape):
            return tensor.type.name, False
        what, n = mixes.role(name), tensor.shape[0]
        given = {"token_embd": self.options.token_embedding_type, "output": self.options.output_tensor_type}.get(what)
        if given:
            if n % BY_NAME[given].block:
                raise InputError(f"{printable(name)}: rows of {n} values, {given} needs a multiple of "
                                 f"{BY_NAME[given].block}")  # fmt: skip
            return given, False
        if self.base in FLOATS:
            return self.base, False
        chosen = next((type_name for pattern, type_name in self.patterns if pattern.search(name)), None)
        if chosen is None:
            chosen = self.base if self.options.pure else self.mix.type_of(name, tensor.shape)
        type_name = mixes.fallback(chosen, name, n)
        return type_name, type_name != chosen


def _compiled(pattern: str) -> re.Pattern[str]:
    """A regex of --tensor-type; names are lower-case, so it is taken so."""
    try:
        return re.compile(pattern.lower())
    except re.error as error:
        raise InputError(f"--tensor-type: {printable(pattern)} is not a regular expression: {error}") from None


def _traits(path: str, metadata: Mapping[str, Entry], imatrix: bool) -> mixes.Traits:
    arch = metadata.get("general.architecture", ("", ""))
    if arch[0] != "str" or not arch[1]:
        raise FileError(path, "missing key general.architecture")

    def number(key: str, default: int) -> int:
        kind, value = metadata.get(f"{arch[1]}.{key}", ("u32", default))
        if kind == "arr" and isinstance(value, ArrayValue) and value.count:  # one for each layer
            kind, value = value.type, value.to_list(1)[0]
        if kind not in INTEGERS or not 0 <= value < 2**31:
            raise FileError(path, "must be a small integer", f"{arch[1]}.{key}", value)
        return int(value)

    n_layer, n_head = number("block_count", 0), number("attention.head_count", 0)
    n_head_kv = number("attention.head_count_kv", n_head)
    n_gqa = n_head // n_head_kv if n_head_kv else 0
    return mixes.Traits(arch[1], n_layer, n_gqa, number("expert_count", 0), imatrix)


def _check_importance(source: Source, step: Step, imatrix: ImportanceMatrix | None) -> None:
    """With an importance matrix, each tensor that needs it must be in it; without any, a dry run is still of use."""
    if imatrix is not None and step.needs_imatrix and step.source.name not in imatrix.tensors:
        reason = f"has no data of {printable(step.source.name)}, which {step.target.type.name} needs"
        raise FileError(imatrix.path, reason)


def _overrides(values: Mapping[str, int | float | bool | str]) -> dict[str, Entry]:
    """As llama.cpp stores them: integers as u32, floats as f32."""
    kinds = {int: "u32", float: "f32", bool: "bool", str: "str"}
    for key, value in values.items():
        if type(value) is int and not 0 <= value < 2**32:
            raise InputError(f"--override-kv: {printable(key)}={value}, an integer must be from 0 to {2**32 - 1}")
    return {key: (kinds[type(value)], value) for key, value in values.items()}


def _metadata(source: Source, file_type: str, options: Options, imatrix: ImportanceMatrix | None) -> dict[str, Entry]:
    """The keys of the new file; what is set anew goes to the end, as in llama.cpp's files."""
    new: dict[str, Entry] = {"general.quantization_version": ("u32", QUANTIZATION_VERSION)}
    if file_type != mixes.COPY:
        new["general.file_type"] = ("u32", mixes.FILE_TYPES[file_type].id)
    else:
        new["general.file_type"] = source.metadata.get("general.file_type") or ("u32", _guessed(source.tensors))
    new |= _overrides(options.override_kv)
    if imatrix is not None:
        new["quantize.imatrix.file"] = ("str", imatrix.path)
        if imatrix.datasets:
            new["quantize.imatrix.dataset"] = ("str", imatrix.datasets[0])
        new["quantize.imatrix.entries_count"] = ("u32", len(imatrix.tensors))
        if imatrix.n_chunks:
            new["quantize.imatrix.chunks_count"] = ("u32", imatrix.n_chunks)
    kept = {k: v for k, v in source.metadata.items() if k not in new and not k.startswith("split.")}
    return kept | new


def _guessed(tensors: Sequence[SourceTensor]) -> int:
    """The file type that llama.cpp takes a file for which does not say: by the type that most of its tensors have."""
    counts: Counter[str] = Counter()
    most = "F32"
    for tensor in sorted(tensors, key=lambda t: _order(t.name)):
        counts[tensor.type.name] += 1
        most = max(most, tensor.type.name, key=counts.__getitem__)
    named = (mixes.FILE_TYPES.get(name) for name in (most, f"{most}_M", "F32"))
    return GUESSED + next(found.id for found in named if found)


def _heads(metadata: dict[str, Entry], steps: Sequence[Step], n_parts: int, keep_split: bool) -> list[Head]:
    """One a file. Only the first of several has the metadata; all of them have the split's keys."""
    if not keep_split:
        return [head(metadata, [step.target for step in steps])]
    heads = []
    for part in range(n_parts):
        keys = metadata if part == 0 else {}
        if n_parts > 1:
            keys = keys | split_keys(part, n_parts, len(steps))
        heads.append(head(keys, [step.target for step in steps if step.source.part == part]))
    return heads
