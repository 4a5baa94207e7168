"""`qllama info`: what a model file holds and whether it runs. Whether it runs is known by qllama.model."""

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.streams import need_stdout
from qllama.errors import printable

if TYPE_CHECKING:
    from qllama.gguf import GGUF

SHOWN = 5  # elements of an array in --json

# tokenizer.ggml.model: what people call it
VOCABULARIES = {"llama": "SentencePiece", "gpt2": "BPE", "bert": "WordPiece", "t5": "Unigram"}


@click.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON; of an array the first elements.")
@click.option("--tensors", is_flag=True, help="List the tensors.")
@click.option("--plan", is_flag=True, help="Print the operations that compute a token.")
def command(file: str, as_json: bool, tensors: bool, plan: bool) -> None:
    """Say what a model file holds and whether it runs.

    FILE is a GGUF file; of a split model, any part.
    """
    need_stdout("the facts")
    from qllama.gguf import open_gguf
    from qllama.model import describe_plan, missing_support

    if plan:
        click.echo(describe_plan(file))
        return
    with open_gguf(file) as gguf:
        facts = describe(gguf, missing_support(gguf))
    for warning in facts["warnings"]:
        click.echo(f"qllama: warning: {printable(warning)}", err=True)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo("\n".join(summary(facts)))
    if tensors:
        click.echo("\n" + "\n".join(tensor_table(facts)))


def describe(gguf: "GGUF", missing: list[str]) -> dict[str, Any]:
    """All facts about a file as plain data that JSON can hold; `missing` is what it lacks to run."""
    n_params = sum(tensor.n_elements for tensor in gguf.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in gguf.tensors.values())
    types: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "nbytes": 0})
    for tensor in gguf.tensors.values():
        types[tensor.type.name]["count"] += 1
        types[tensor.type.name]["nbytes"] += tensor.nbytes
    return {
        "path": gguf.path,
        "nbytes": gguf.nbytes,
        "version": gguf.version,
        "alignment": gguf.alignment,
        "parts": [part.path for part in gguf.parts],
        "runs": not missing,
        "missing": missing,
        "warnings": gguf.warnings,
        "n_params": n_params,
        "tensor_nbytes": nbytes,
        "bits_per_weight": 8 * nbytes / n_params if n_params else None,
        "tensor_types": types,
        "metadata": {key: _plain(value) for key, value in gguf.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.type.name, "nbytes": t.nbytes, "offset": t.offset,
             "part": t.part}
            for t in gguf.tensors.values()
        ],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A metadata value for JSON, which knows neither bytes nor infinities."""
    if hasattr(value, "to_list"):
        first = [_plain(element) for element in value.to_list(SHOWN)]
        return {"type": value.type, "count": value.count, "first": first}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def summary(facts: dict[str, Any]) -> list[str]:
    """Lines for a person: a label and what the file says; what it does not say is left out."""
    rows = [("file", _file(facts)), *_model_rows(facts), *_tensor_rows(facts)]
    missing = facts["missing"] or ["yes"]
    rows.append(("runs", missing[0] if facts["runs"] else f"no: {missing[0]}"))
    rows += [("", reason) for reason in missing[1:]]
    return [f"{label:<16}{printable(text)}" for label, text in rows]


def _file(facts: dict[str, Any]) -> str:
    parts = f", {len(facts['parts'])} parts" if len(facts["parts"]) > 1 else ""
    return f"{facts['path']}: {_size(facts['nbytes'])}, GGUF version {facts['version']}{parts}"


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from qllama.hparams import FILE_TYPES

    metadata = facts["metadata"]
    arch = metadata.get("general.architecture")

    def row(label: str, key: str, unit: str = "") -> list[tuple[str, str]]:
        return [(label, f"{_number(metadata[key])}{unit}")] if key in metadata else []

    file_type = metadata.get("general.file_type")
    named = isinstance(file_type, int) and file_type in FILE_TYPES
    return [
        *row("name", "general.name"),
        *row("architecture", "general.architecture"),
        *([("file type", FILE_TYPES[file_type])] if named else row("file type", "general.file_type")),
        *row("context", f"{arch}.context_length", " tokens"),
        *row("layers", f"{arch}.block_count"),
        *row("heads", f"{arch}.attention.head_count"),
        *row("key-value heads", f"{arch}.attention.head_count_kv"),
        *row("embedding", f"{arch}.embedding_length"),
        *row("feed forward", f"{arch}.feed_forward_length"),
        ("vocabulary", _vocabulary(metadata)),
        ("chat template", "yes" if "tokenizer.chat_template" in metadata else "no"),
    ]


def _vocabulary(metadata: dict[str, Any]) -> str:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, dict):
        return "none"
    model, pre = (str(metadata.get(f"tokenizer.ggml.{key}", "")) for key in ("model", "pre"))
    return f"{tokens['count']:,} tokens, {VOCABULARIES.get(model, model)}" + (f" ({pre})" if pre else "")


def _tensor_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts["tensors"]:
        return [("tensors", "none")]
    weights = f"{facts['n_params']:,} in {_size(facts['tensor_nbytes'])}"
    rows = [("parameters", f"{weights}, {facts['bits_per_weight']:.2f} bits each")]
    for name, type_ in facts["tensor_types"].items():
        count = f"{type_['count']} tensor{'s' * (type_['count'] > 1)}"
        rows.append(("tensors" if len(rows) == 1 else "", f"{name:<8}{count:>12}{_size(type_['nbytes']):>14}"))
    return rows


def tensor_table(facts: dict[str, Any]) -> list[str]:
    """Lines of aligned columns; the first dimension of a shape is the contiguous one."""
    rows = [("name", "shape", "type", "bytes", "offset", "part" if len(facts["parts"]) > 1 else "")]
    for t in facts["tensors"]:
        shape, part = " x ".join(map(str, t["shape"])), str(t["part"] + 1) if rows[0][5] else ""
        rows.append((printable(t["name"]), shape, t["type"], str(t["nbytes"]), str(t["offset"]), part))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _number(value: Any) -> str:
    if isinstance(value, dict):  # an array: one value per layer
        return ", ".join(map(str, value["first"])) + (", ..." if value["count"] > SHOWN else "")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} bytes"
