"""`qllama quantize`: a model file in another type, with llama-quantize's options and names."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.options import override_option, overrides
from qllama.cli.progress import Meter, show_warnings
from qllama.errors import InputError, printable, read_file

if TYPE_CHECKING:
    from qllama.quantize import Plan, Report, Step
    from qllama.quantize.source import Source

MIB = 1 << 20


@click.command()
@click.argument("arguments", nargs=-1, metavar="IN [OUT] TYPE [NTHREADS]")
@click.option("-t", "--threads", "n_threads", type=int, help="Threads. [default: physical cores that may be used]")
@click.option("--imatrix", "imatrix_path", metavar="FILE", help="Importance matrix: which columns matter how much.")
@click.option("--include-weights", multiple=True, metavar="NAME", help="Use it only for tensors with NAME in theirs.")
@click.option("--exclude-weights", multiple=True, metavar="NAME", help="Do not use it for tensors with NAME in theirs.")
@click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Type of tensors so named.")
@click.option("--tensor-type-file", metavar="FILE", help="A file of REGEX=TYPE, apart by spaces or new lines.")
@click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings.")
@click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is.")
@click.option("--pure", is_flag=True, help="No mixture: one type for all tensors.")
@click.option("--allow-requantize", is_flag=True, help="Take quantized tensors too, which lose a second time.")
@click.option("--prune-layers", metavar="L0,L1,...", help="Leave these layers out.")
@click.option("--keep-split", is_flag=True, help="Write as many parts as IN has.")
@override_option
@click.option("--dry-run", is_flag=True, help="Print the plan and the exact size, write nothing.")
@click.option("--stats", "stats_path", metavar="FILE.json", help="Write sizes and errors by type to this file.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(arguments: tuple[str, ...], n_threads: int | None, imatrix_path: str | None, dry_run: bool,
            stats_path: str | None, force: bool, **kwargs: Any) -> None:  # fmt: skip
    """Write IN, a GGUF file or a Hugging Face folder, as OUT, its tensors quantized to TYPE.

    TYPE is a name such as Q4_K_M, in any case, its number, or COPY. Without OUT the file is ggml-model-TYPE.gguf
    beside IN. Existing files are replaced only with --force, and never before the new one is whole.
    """
    path, out, file_type, n_threads = _arguments(arguments, n_threads)
    from qllama.atomic import write_file
    from qllama.imatrix import load_imatrix
    from qllama.quantize import make_plan, quantize_file

    show_warnings()
    filters = kwargs.pop("include_weights"), kwargs.pop("exclude_weights")
    options = _options(kwargs)
    imatrix = load_imatrix(imatrix_path).filtered(*filters) if imatrix_path else None
    with _source(path) as source:
        plan = make_plan(source, file_type, options, imatrix)
        if dry_run:
            click.echo("\n".join(_plan_lines(plan, imatrix is not None)))
            return
        meter = Meter()
        report = quantize_file(source, out, plan, imatrix, n_threads=n_threads, force=force, progress=meter.quantize)
        meter.close()
    click.echo("\n".join(report_lines(report)))
    if stats_path:
        raw = (json.dumps(report.to_json(), indent=2) + "\n").encode()
        write_file(stats_path, [raw], len(raw), [path, out], force=True)


@contextlib.contextmanager
def _source(path: str) -> Iterator["Source"]:
    """What is read: a GGUF file, or a folder."""
    from qllama.convert import FolderSource
    from qllama.gguf import open_gguf
    from qllama.quantize.source import GGUFSource

    if os.path.isdir(path):
        yield FolderSource(path)
        return
    with open_gguf(path) as gguf:
        yield GGUFSource(gguf)


def _arguments(texts: Sequence[str], n_threads: int | None) -> tuple[str, str, str, int | None]:
    """IN, OUT, the name of TYPE and the threads, as llama-quantize tells them apart."""
    from qllama.quant.mixes import ALIASES, COPY, FILE_TYPES, file_type

    if len(texts) < 2:
        raise click.UsageError("found too few arguments, needed IN [OUT] TYPE [NTHREADS]")
    path, rest = texts[0], list(texts[1:])
    name = file_type(rest[0])
    out = str(Path(path).parent / f"ggml-model-{name}.gguf") if name else rest.pop(0)
    if not name and rest:
        name = file_type(rest[0])
    if not name:
        found = printable(rest[0]) if rest else "none"
        raise InputError(f"TYPE: found {found}, needed one of {', '.join([*FILE_TYPES, *ALIASES, COPY])}")
    if len(rest) > 2:
        raise click.UsageError(f"found {len(texts)} arguments, needed IN [OUT] TYPE [NTHREADS]")
    if len(rest) == 2 and n_threads is None:
        n_threads = _number("NTHREADS", rest[1])
    return path, out, name, n_threads if n_threads and n_threads > 0 else None


def _number(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{what}: found {printable(text)}, needed a number") from None


def _options(kwargs: dict[str, Any]) -> Any:
    from qllama.quantize import Options

    texts = list(kwargs.pop("tensor_types"))
    listed = kwargs.pop("tensor_type_file")
    if listed:
        texts += read_file(listed, "the tensor types").decode(errors="replace").split()
    layers = kwargs.pop("prune_layers")
    override_kv = overrides(kwargs.pop("override_kv"))
    simple: dict[str, Any] = {k: v.upper() if isinstance(v, str) else v for k, v in kwargs.items()}
    return Options(
        tensor_types=[_tensor_type(text) for text in texts],
        prune_layers=[_number("--prune-layers", n) for n in layers.split(",")] if layers else [],
        override_kv=override_kv,
        **simple,
    )


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not (pattern and equals and name):
        raise InputError(f"--tensor-type: found {printable(text)}, needed REGEX=TYPE such as attn_v=Q8_0")
    return pattern, name.upper()


def _plan_lines(plan: "Plan", has_imatrix: bool) -> list[str]:
    lines = [_step_line(i, step, plan) for i, step in enumerate(plan.steps, 1)]
    before, after = plan.sizes
    lines += _size_lines(before, after, sum(_weights(s) for s in plan.steps))
    n_fallback = sum(s.fell_back for s in plan.steps)
    if n_fallback:
        lines.append(f"{n_fallback} of {len(plan.steps)} tensors fall back to another type: rows are not whole blocks")
    if not has_imatrix and any(s.needs_imatrix for s in plan.steps):
        lines.append(f"{plan.file_type} needs an importance matrix (--imatrix)")
    return [*lines, f"file size = {plan.nbytes} bytes"]


def _weights(step: "Step") -> int:
    return step.source.n_rows * (step.source.shape or (1,))[0]


def _step_line(number: int, step: "Step", plan: "Plan") -> str:
    shape = ", ".join(f"{n:>5}" for n in step.source.shape)
    line = f"[{number:>4}/{len(plan.steps):>4}] {printable(step.target.name):<36} - [{shape}], "
    line += f"type = {step.source.type.name:>6}, "
    if not step.changes:
        return line + f"size = {step.source.nbytes / MIB:8.3f} MiB"
    to = f"{step.source.nbytes / MIB:8.2f} MiB -> {step.target.nbytes / MIB:8.2f} MiB"
    return line + f"converting to {step.target.type.name}{' (fallback)' * step.fell_back} .. size = {to}"


def _size_lines(before: int, after: int, n_weights: int) -> list[str]:
    return [
        f"{name} size  = {nbytes / MIB:8.2f} MiB ({8 * nbytes / max(1, n_weights):.2f} BPW)"
        for name, nbytes in (("model", before), ("quant", after))
    ]


def report_lines(report: "Report") -> list[str]:
    lines = [f"{'type':<8} {'tensors':>7} {'MiB':>10} {'BPW':>7} {'RMSE':>12}"]
    for name, t in report.types.items():
        rmse = "" if t.rmse is None else f"{t.rmse:.6g}"
        lines.append(
            f"{name:<8} {t.n_tensors:>7} {t.nbytes / MIB:>10.2f} {8 * t.nbytes / t.n_weights:>7.4f} {rmse:>12}"
        )
    lines += _size_lines(report.nbytes_in, report.nbytes_out, report.n_weights)
    if report.n_fallbacks:
        lines.append(f"{report.n_fallbacks} tensors fell back to another type: rows are not whole blocks of theirs")
    return [*lines, f"{printable(report.path)} written in {report.seconds:.1f} s"]
