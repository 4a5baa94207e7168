"""Which tensors of the folder make which tensor of the file: names, stacks of experts, rows in another order."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qllama.convert.families import Family
from qllama.convert.files import Config
from qllama.convert.safetensors import StoredTensor
from qllama.errors import FileError
from qllama.ggml import BY_NAME
from qllama.quantize.source import SourceTensor

FLOATS = ("F32", "F16", "BF16")
MAX_LAYERS = 1024  # gguf's table of names is made for each
SKIPPED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")  # of old files, can be computed
ALWAYS_F32 = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")


@dataclass(frozen=True)
class Recipe:
    """A tensor of the file: `pieces` one above the other, all of one shape and type.

    heads: their number, where the rows of each head's two halves are to alternate; 0 leaves rows in order.
    """

    target: SourceTensor
    pieces: tuple[StoredTensor, ...]
    heads: int = 0

    def rows(self, first: int, n_rows: int) -> np.ndarray:
        """(n_rows, row_bytes) uint8 of `target`, all of one piece."""
        height = self.pieces[0].n_rows
        piece, first = self.pieces[first // height], first % height
        if self.heads and len(piece.shape) == 1:  # a bias: its values take the part of rows
            column = replace(piece, shape=(*piece.shape, 1))
            return _as(self._moved(column, 0, column.n_rows), piece.dtype, self.target).reshape(1, -1)
        return _as(self._moved(piece, first, n_rows), piece.dtype, self.target)

    def _moved(self, piece: StoredTensor, first: int, n_rows: int) -> np.ndarray:
        """Rows in the new order: 0, half, 1, half + 1, ... of each head."""
        if not self.heads:
            return piece.rows(first, n_rows)
        per_head = piece.n_rows // self.heads
        head, row = np.divmod(np.arange(first, first + n_rows), per_head)
        order = head * per_head + row % 2 * (per_head // 2) + row // 2
        low = int(order.min())
        return piece.rows(low, int(order.max()) + 1 - low)[order - low]


@dataclass(frozen=True)
class Made:
    """A tensor of the file that the folder has not."""

    target: SourceTensor
    values: np.ndarray  # (n,) float32

    def rows(self, first: int, n_rows: int) -> np.ndarray:
        return self.values.view(np.uint8).reshape(1, -1)[first : first + n_rows]


def _as(raw: np.ndarray, dtype: str, target: SourceTensor) -> np.ndarray:
    """Rows as the bytes of the target's type, which is the same or F32."""
    if dtype == target.type.name:
        return raw
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.uint8)
    return raw.view(np.float16).astype(np.float32).view(np.uint8)


def recipes(config: Config, family: Family, stored: Mapping[str, StoredTensor]) -> list[Recipe]:
    """One for each tensor of the file, in the order in which the folder has them. Raises FileError."""
    n_layer = config.integer("num_hidden_layers")
    if n_layer > MAX_LAYERS:
        raise FileError(config.path, f"must be {MAX_LAYERS} at most", "num_hidden_layers", n_layer)
    names = _Names(family.arch, n_layer)
    found = []
    for key, pieces in _stacked(config, family, stored):
        name = names.new(pieces[0], key)
        heads = _heads(config, name) if family.permute else 0
        found.append(_recipe(name, pieces, heads, is_stack=key != pieces[0].name))
    return found


class _Names:
    """gguf's table of an architecture's names."""

    def __init__(self, arch: str, n_layer: int) -> None:
        import gguf

        ids = {name: id for id, name in gguf.MODEL_ARCH_NAMES.items()}
        self.arch, self.table = arch, gguf.get_tensor_name_map(ids[arch], n_layer)

    def new(self, tensor: StoredTensor, key: str) -> str:
        name = self.table.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise FileError(
                tensor.path, f"has no place in a {self.arch} model of so many layers", "tensor", tensor.name
            )
        return str(name)


def _stacked(
    config: Config, family: Family, stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, tuple[StoredTensor, ...]]]:
    """(name for gguf's table, pieces): a layer's experts are stacked where the last of them is."""
    experts: dict[int, dict[tuple[str, int], StoredTensor]] = {}
    pattern, stacks = family.experts or (r"(?!)", ())
    for name, tensor in stored.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            if not name.endswith(SKIPPED):
                yield name, (tensor,)
            continue
        n_expert = n_experts(config)
        layer, expert, what = int(match[1]), int(match[2]), match[3]
        layers = experts.setdefault(layer, {})
        layers[what, expert] = tensor
        if len(layers) == n_expert * len(stacks):
            for what, key in stacks:
                pieces = [layers.get((what, i)) for i in range(n_expert)]
                yield key.format(layer=layer) + ".weight", _complete(config, pieces, tensor)
            del experts[layer]
    for layers in experts.values():
        tensor = next(iter(layers.values()))
        raise FileError(tensor.path, f"its layer has {len(layers)} matrices of experts, needed "
                        f"{n_experts(config) * len(stacks)}", "tensor", tensor.name)  # fmt: skip


def n_experts(config: Config) -> int:
    """Under any of its two names."""
    return config.integer("num_experts" if config.get("num_local_experts") is None else "num_local_experts")


def _complete(config: Config, pieces: list[StoredTensor | None], last: StoredTensor) -> tuple[StoredTensor, ...]:
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        raise FileError(last.path, f"its layer has no expert {pieces.index(None)}", "tensor", last.name)
    return tuple(found)


def _heads(config: Config, name: str) -> int:
    if ".attn_q." in name:
        return config.integer("num_attention_heads")
    if ".attn_k." in name:
        return config.integer("num_key_value_heads", config.integer("num_attention_heads"))
    return 0


def _recipe(name: str, pieces: tuple[StoredTensor, ...], heads: int, is_stack: bool) -> Recipe:
    first = pieces[0]
    for piece in pieces:
        if piece.dtype not in FLOATS:
            raise FileError(piece.path, f"is {piece.dtype}, needed {', '.join(FLOATS)}", "tensor", piece.name)
        if (piece.shape, piece.dtype) != (first.shape, first.dtype):
            reason = f"is {piece.dtype} {piece.shape}, its layer's first {first.dtype} {first.shape}"
            raise FileError(piece.path, reason, "tensor", piece.name)
    if not first.shape or 0 in first.shape or len(first.shape) + is_stack > 4:
        raise FileError(first.path, f"has the shape {first.shape}", "tensor", first.name)
    if heads and first.shape[0] % (2 * heads):
        raise FileError(first.path, f"has {first.shape[0]} rows, needed an even number for each of {heads} heads",
                        "tensor", first.name)  # fmt: skip
    shape = tuple(reversed(first.shape)) + ((len(pieces),) if is_stack else ())
    type_name = "F32" if is_small(name, shape) else first.dtype
    return Recipe(SourceTensor(name, shape, BY_NAME[type_name]), pieces, heads)


def is_small(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is F32 in any file, as llama.cpp's kernels take it."""
    return len(shape) < 2 or name.endswith(("_norm.weight", *ALWAYS_F32)) or not name.endswith(".weight")
