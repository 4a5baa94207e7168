"""A Hugging Face folder read as if it were the GGUF file that it becomes, and the plan to write that file."""

import os
from pathlib import Path

import numpy as np

from qllama.convert.families import FAMILIES, Family
from qllama.convert.files import Config
from qllama.convert.keys import metadata, rope_factors
from qllama.convert.safetensors import folder_tensors
from qllama.convert.tensors import Made, Recipe, is_small, recipes
from qllama.errors import FileError
from qllama.ggml import BY_NAME
from qllama.gguf_writer import NewTensor, head
from qllama.quant.mixes import FILE_TYPES
from qllama.quantize import Plan, Step
from qllama.quantize.source import SourceTensor

TYPES = ("F32", "F16", "BF16", "Q8_0")
"""What all matrices of a converted file may be; for other types there is make_plan."""


class FolderSource:
    """A quantize.Source: config.json, safetensors and tokenizer files of one folder, read row by row.

    Matrices are of the type they have in the folder, all else is F32. Raises FileError, naming file and key, for what
    is missing, damaged or not known.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        where = Path(folder)
        if not where.is_dir():
            raise FileError(folder, "is no folder")
        config = Config(where)
        family = _family(config)
        stored = folder_tensors(where)
        found: list[Made] = []
        factors = rope_factors(config, family)
        if factors is not None:
            found.append(Made(SourceTensor("rope_freqs.weight", factors.shape, BY_NAME["F32"]), factors))
        both: list[Made | Recipe] = [*found, *recipes(config, family, stored)]
        self._recipes = {recipe.target.name: recipe for recipe in both}
        if len(self._recipes) < len(both):
            raise FileError(where, "two of its tensors would have one name")
        self.path, self.n_parts = os.fspath(folder), 1
        self.inputs = sorted({tensor.path for tensor in stored.values()})
        self.tensors = [recipe.target for recipe in both]
        self.type = _native(self.tensors)
        self.metadata = metadata(config, family, FILE_TYPES[self.type].id, self.tensors)

    def rows(self, tensor: SourceTensor, first: int, n_rows: int) -> np.ndarray:
        return self._recipes[tensor.name].rows(first, n_rows)


def convert_plan(source: FolderSource, type_name: str | None = None) -> Plan:
    """The plan of the file that llama.cpp's converter writes: in the folder's order, matrices as one of TYPES.

    Without a type it is the folder's own, F16 for F32. Rows that are not whole blocks of Q8_0 become F16.
    """
    wanted = type_name or ("F16" if source.type == "F32" else source.type)
    steps = [_step(tensor, wanted) for tensor in source.tensors]
    keys = {**source.metadata, "general.file_type": ("u32", FILE_TYPES[wanted].id)}
    return Plan(wanted, steps, [head(keys, [step.target for step in steps])])


def _step(tensor: SourceTensor, wanted: str) -> Step:
    chosen = "F32" if is_small(tensor.name, tensor.shape) else wanted
    fits = tensor.shape[0] % BY_NAME[chosen].block == 0
    target = NewTensor(tensor.name, tensor.shape, BY_NAME[chosen if fits else "F16"])
    return Step(tensor, target, fell_back=not fits)


def _family(config: Config) -> Family:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise FileError(config.path, f"needed one of {', '.join(FAMILIES)}", "architectures", name)
    method = config.get("quantization_config")
    if method is not None:
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise FileError(config.path, "quantized weights are not supported", "quantization_config", method)
    return FAMILIES[name]


def _native(tensors: list[SourceTensor]) -> str:
    """The type of the first matrix that is not F32, as llama.cpp's converter guesses it."""
    return next((t.type.name for t in tensors if t.type.name != "F32"), "F32")
