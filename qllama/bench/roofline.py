"""Where the time of a test goes, by operation, and how far each stands from what the machine can do.

Bytes are those that must be moved: weights and cached keys and values once a step, activations once. Operations are
multiplications and additions; an exponential, a root or a quotient counts as one. (Williams, Waterman and Patterson,
"Roofline", 2009.) How it is shown is the business of report.py, chart.py and plot.py.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qllama.bench.measure import Checked, Options, Report, Runner, each_test
from qllama.bench.parameters import Instance, Parameters
from qllama.bench.peaks import Peaks, measure_peaks
from qllama.bench.results import About
from qllama.kernels.layouts import POSITIONS, Q8
from qllama.kv_cache import KVCache
from qllama.plan import Buffer, Op, Weight
from qllama.stopwatch import Stopwatch

# Operations for each value that is written, of the kernels that work value by value.
PER_VALUE = {
    "norm.rms_f32": 4, "norm.rms_q8": 6, "ffn.swiglu_f32": 4, "ffn.swiglu_q8": 6, "ffn.quantize": 2, "ffn.add_bias": 1,
    "norm.rms_heads": 4, "rope.table": 2, "rope.interleaved": 3, "rope.neox": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What an operation must do: move bytes, and compute. `arithmetic` names the peak that this is compared with."""

    nbytes: float = 0.0
    n_ops: float = 0.0
    arithmetic: str = "f32"  # or "int8"


@dataclass(frozen=True)
class Row:
    """All operations of a kind in a test. `weights` is their format, empty where there are none."""

    kind: str
    weights: str
    seconds: float
    work: Work

    @property
    def label(self) -> str:
        return f"{self.kind} {self.weights}".strip()

    @property
    def gbps(self) -> float:
        return self.work.nbytes / self.seconds / 1e9

    @property
    def gops(self) -> float:
        return self.work.n_ops / self.seconds / 1e9

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.work.n_ops / self.work.nbytes

    def at_peak(self, peaks: Peaks) -> dict[str, float]:
        """Seconds that reading and computing would take at the machine's peaks, each alone."""
        computing = self.work.n_ops / getattr(peaks, self.work.arithmetic) / 1e9
        return {"read": self.work.nbytes / peaks.read / 1e9, self.work.arithmetic: computing}

    def of_roof(self, peaks: Peaks) -> float:
        """The longer of the two as a share of the time it took: 1 is the roof. Data in a cache can be above it."""
        return max(self.at_peak(peaks).values()) / self.seconds

    def bound(self, peaks: Peaks) -> str:
        """Which peak is the roof here."""
        times = self.at_peak(peaks)
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Roofline:
    """A test: its time as it runs (s), and the time of each kind of operation when the threads meet after every one."""

    test: Instance
    about: About
    peaks: Peaks
    seconds: float
    rows: tuple[Row, ...]  # the longest first

    @property
    def apart(self) -> float:
        """Seconds of all operations, timed one by one."""
        return sum(row.seconds for row in self.rows)


@dataclass(frozen=True)
class Attended:
    """What attention has to do in a test, in each layer."""

    pairs: int  # (token, position it looks at)
    n_read: int  # positions whose keys and values are read, once in each step
    position_bytes: float  # of the keys and values of a position

    @classmethod
    def of(cls, test: Instance, n_step: int, cache: KVCache) -> "Attended":
        """n_step is the most tokens of a step."""
        n, d = test.n_tokens, test.n_depth
        ends = [min(first + n_step, test.n_prompt) for first in range(0, test.n_prompt, n_step)]
        ends += range(test.n_prompt + 1, n + 1)
        return cls(n * d + n * (n + 1) // 2, sum(ends) + d * len(ends), cache.layer_bytes / POSITIONS)


def rooflines(parameters: Parameters, checked: dict[str, Checked], options: Options) -> Iterator[Roofline]:
    """One for each test, as they come. The machine is measured first, once for each number of threads."""
    peaks = {}
    for n_threads in dict.fromkeys(parameters.n_threads):
        options.report(f"measuring the machine with {n_threads} threads")
        peaks[n_threads] = measure_peaks(n_threads)
    for test, runner, report in each_test(parameters, checked, options):
        yield _roofline(test, runner, checked[test.model].about, peaks[test.n_threads], options, report)


def _roofline(
    test: Instance, runner: Runner, about: About, peaks: Peaks, options: Options, report: Report
) -> Roofline:  # fmt: skip
    """The test as it is, and with the stopwatch: of both the best repetition."""
    seconds, model = min(runner.run(test, options, report)) / 1e9, runner.model
    attended = Attended.of(test, model.n_batch, model.cache)
    watches = []
    for i in range(options.repetitions):
        report(f"operations {i + 1}/{options.repetitions}")
        watches.append(model.stopwatch())
        runner.time(test, watches[-1])
    best = min(watches, key=lambda watch: watch.seconds.sum())
    return Roofline(test, about, peaks, seconds, rows_of(best, attended))


def rows_of(stopwatch: Stopwatch, attended: Attended) -> tuple[Row, ...]:
    """The operations by kind and format, the longest first."""
    found: dict[tuple[str, str], list[tuple[float, Work]]] = defaultdict(list)
    totals = zip(stopwatch.ops, stopwatch.seconds, stopwatch.rows, stopwatch.steps, strict=True)
    for op, seconds, n_rows, n_steps in totals:
        weight = weight_of(op)
        kind = (op.kernel.partition(".")[2], weight.layout.type.name) if weight else (op.kernel, "")
        found[kind].append((float(seconds), work_of(op, int(n_rows), int(n_steps), attended)))
    rows = [Row(*kind, sum(s for s, _ in parts), _total([w for _, w in parts])) for kind, parts in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _total(works: list[Work]) -> Work:
    return Work(sum(w.nbytes for w in works), sum(w.n_ops for w in works), works[0].arithmetic)


def weight_of(op: Op) -> Weight | None:
    return next((value for value in op.args.values() if isinstance(value, Weight)), None)


def work_of(op: Op, n_rows: int, n_steps: int, attended: Attended) -> Work:
    """Of an operation that computed n_rows rows in n_steps steps."""
    activations = n_rows * sum(value.ld for value in op.args.values() if isinstance(value, Buffer))
    weight = weight_of(op)
    if weight is None:
        if "q" in op.args:
            return _attention(op, activations, attended)
        return Work(activations, n_rows * PER_VALUE.get(op.kernel, 0) * _n_values(op))
    if op.kernel.endswith(".lookup"):
        return Work(activations + n_rows * weight.nbytes / weight.n_out, n_rows * weight.n_in)
    n_ops = 2 * weight.n_in * weight.n_out * n_rows
    return Work(activations + n_steps * weight.nbytes, n_ops, "int8" if weight.layout.activation == Q8 else "f32")


def _n_values(op: Op) -> int:
    """Values of a row of what an operation writes."""
    written: Any = op.args.get("out", op.args.get("x"))
    return written.n if isinstance(written, Buffer) else 0


def _attention(op: Op, activations: int, attended: Attended) -> Work:
    """Products of queries with keys, and of weights with values."""
    sizes: list[Any] = [op.args[name] for name in ("n_head_kv", "group", "head_dim")]
    n_values = math.prod(sizes)
    return Work(activations + attended.n_read * attended.position_bytes, 4 * n_values * attended.pairs)
