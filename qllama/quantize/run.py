"""Carrying out a plan: rows are read, encoded by all threads and written, a few at a time: memory stays small."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qllama.atomic import OutputFiles
from qllama.errors import FileError, InputError, printable
from qllama.imatrix import ImportanceMatrix
from qllama.quant import dequantize, quantize
from qllama.quant.mixes import EMBEDDINGS
from qllama.quantize.plan import FLOATS, Plan, Step
from qllama.quantize.source import Source
from qllama.split import part_paths

CHUNK = 16 << 20  # values that are read, encoded and written at a time
SAMPLE = 64  # rows of a chunk at most whose error is measured

_VIEWS: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Progress:
    """Where quantizing is: the step that is worked on, and bytes of the source that are done."""

    step: Step
    index: int  # of the step, from 0
    n_steps: int
    done: int
    total: int
    seconds: float


@dataclass
class TypeReport:
    """What became of the tensors that got one type."""

    n_tensors: int = 0
    n_weights: int = 0
    nbytes: int = 0
    squares: float = 0.0  # of the errors
    sampled: int = 0  # weights whose error was measured

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared error of the weights that were sampled; None where nothing was rounded."""
        return float(np.sqrt(self.squares / self.sampled)) if self.sampled else None


@dataclass
class Report:
    """What was done."""

    path: str
    file_type: str
    nbytes_in: int
    nbytes_out: int  # of the tensors, as nbytes_in
    n_weights: int
    n_fallbacks: int
    seconds: float = 0.0
    types: dict[str, TypeReport] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        types = {
            name: {"tensors": t.n_tensors, "weights": t.n_weights, "bytes": t.nbytes, "rmse": t.rmse,
                   "rmse_weights": t.sampled}
            for name, t in self.types.items()
        }  # fmt: skip
        return {
            "path": self.path, "file_type": self.file_type, "bytes_in": self.nbytes_in, "bytes_out": self.nbytes_out,
            "weights": self.n_weights, "bits_per_weight": 8 * self.nbytes_out / max(1, self.n_weights),
            "fallbacks": self.n_fallbacks, "seconds": self.seconds, "types": types,
        }  # fmt: skip


def quantize_file(
    source: Source, out: str | os.PathLike[str], plan: Plan, imatrix: ImportanceMatrix | None = None, *,
    n_threads: int | None = None, force: bool = False, progress: Callable[[Progress], None] | None = None,
) -> Report:  # fmt: skip
    """Write the model that `plan` describes to `out`, or to its parts when the plan keeps the split.

    `out` appears whole or not at all (see atomic.OutputFiles, also for what is refused). An encoder without a choice
    gives the same bytes whatever `n_threads` is. Raises InputError, naming tensor and row, for a value that is not
    finite or too large for its new type, and for a tensor that cannot do without an importance matrix.
    """
    needy = next((s for s in plan.steps if s.needs_imatrix), None) if imatrix is None else None
    if needy is not None:
        raise InputError(f"{plan.file_type} needs an importance matrix (--imatrix): {printable(needy.target.name)} "
                         f"becomes {needy.target.type.name}")  # fmt: skip
    paths = part_paths(out, len(plan.heads)) if plan.keep_split else [os.fspath(out)]
    report = _new_report(os.fspath(out), plan)
    inputs = [*source.inputs, *([imatrix.path] if imatrix is not None and imatrix.path else [])]
    start, done = time.monotonic(), 0
    with OutputFiles(paths, [part.nbytes for part in plan.heads], inputs, force) as files:
        for file, part in zip(files.files, plan.heads, strict=True):
            file.write(part.data)
        for index, step in enumerate(plan.steps):
            file = files.files[plan.part(step)]
            for n_read, blocks in _encoded(source, step, imatrix, n_threads, report):
                file.write(blocks.data)
                done += n_read
                if progress:
                    where = index, len(plan.steps), done, report.nbytes_in, time.monotonic() - start
                    progress(Progress(step, *where))
            file.write(plan.heads[plan.part(step)].padding(step.target.nbytes))
    report.seconds = time.monotonic() - start
    return report


def _new_report(path: str, plan: Plan) -> Report:
    nbytes_in, nbytes_out = plan.sizes
    n_weights = sum(s.source.n_rows * (s.source.shape or (1,))[0] for s in plan.steps)
    report = Report(path, plan.file_type, nbytes_in, nbytes_out, n_weights, sum(s.fell_back for s in plan.steps))
    for step in plan.steps:
        found = report.types.setdefault(step.target.type.name, TypeReport())
        found.n_tensors += 1
        found.n_weights += step.source.n_rows * (step.source.shape or (1,))[0]
        found.nbytes += step.target.nbytes
    return report


def _encoded(
    source: Source, step: Step, imatrix: ImportanceMatrix | None, n_threads: int | None, report: Report
) -> Iterator[tuple[int, np.ndarray]]:
    """The new bytes of a tensor, chunk by chunk, and the bytes of the source that each took."""
    importance = _importance(step, imatrix)
    for first, n_rows, matrix in _chunks(step):
        raw = source.rows(step.source, first, n_rows)
        try:
            if step.changes:
                rows = _values(raw, step.source.type.name)
                weights = None if importance is None else importance[matrix]
                blocks = quantize(rows, step.target.type.name, weights, n_threads=n_threads, first_row=first)
                _measure(rows, blocks, report.types[step.target.type.name], step.target.type.name)
            else:
                blocks = raw
                _check_finite(raw, step.source.type.name, first)
        except FileError:
            raise
        except InputError as error:
            raise InputError(f"{printable(source.path)}: {printable(step.source.name)}: {error}") from None
        yield raw.nbytes, blocks


def _importance(step: Step, imatrix: ImportanceMatrix | None) -> np.ndarray | None:
    """(n_matrices, n) float32, or None; that of an embedding, which is looked up in, may have another size."""
    if imatrix is None or not step.changes:
        return None
    try:
        return imatrix.importance(step.source.name, step.source.shape)
    except FileError:
        if step.source.name in EMBEDDINGS:
            return None
        raise


def _chunks(step: Step) -> Iterator[tuple[int, int, int]]:
    """(first row, number of rows, index of the matrix), at most CHUNK values each and never of two matrices."""
    shape = step.source.shape or (1,)
    height = shape[1] if len(shape) > 1 else 1
    at_a_time = max(1, CHUNK // shape[0])
    for first in range(0, step.source.n_rows, height):
        for row in range(first, first + height, at_a_time):
            yield row, min(at_a_time, first + height - row), first // height


def _values(raw: np.ndarray, type_name: str) -> np.ndarray:
    """Rows as `quantize` takes them."""
    if type_name in _VIEWS:
        return raw.view(_VIEWS[type_name])
    return dequantize(raw, type_name).reshape(len(raw), -1)


def _measure(rows: np.ndarray, blocks: np.ndarray, found: TypeReport, type_name: str) -> None:
    """Add the errors of some rows, evenly spread: decoding all of them would take longer than encoding."""
    if type_name == "F32":
        return
    step = -(-len(rows) // SAMPLE)
    kept = np.ascontiguousarray(rows[::step])
    before = (kept.astype(np.uint32) << 16).view(np.float32) if kept.dtype == np.uint16 else kept
    after = dequantize(np.ascontiguousarray(blocks[::step]), type_name, before.shape)
    errors = (after - before.astype(np.float32)).astype(np.float64).reshape(-1)
    found.squares += float(errors @ errors)
    found.sampled += errors.size


def _check_finite(raw: np.ndarray, type_name: str, first: int) -> None:
    """Of what is copied; encoders check what they encode."""
    if type_name not in FLOATS:
        return
    values = raw.view(_VIEWS[type_name])
    finite = (values & 0x7F80 != 0x7F80) if type_name == "BF16" else np.isfinite(values)
    bad = np.flatnonzero(~finite.all(axis=1))
    if bad.size:
        raise InputError(f"NaN or infinity in row {first + bad[0]}")
