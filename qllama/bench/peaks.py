"""What this machine can do at most, measured: read memory, multiply int8, multiply float32. See kernels/peak.py."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllama import cpu, jit
from qllama.plan import BoundPlan, Plan
from qllama.team import Team, aligned

PATIENCE = 0.5  # s for each of the three: short runs until then, of which the best counts
READ_BYTES = 1 << 30  # beyond any cache
ROW = 1 << 16  # bytes
N_UNIT, N_ROUND = 64, 500  # of arithmetic: some milliseconds
UNIT_BYTES = 2048  # for what a unit writes


@dataclass(frozen=True)
class Peaks:
    """By n_threads together: reads in GB/s (10^9 bytes), arithmetic in GOP/s (multiplications and additions).

    `cores` is the CPU time the threads got per second: with less than n_threads, something else kept the machine busy.
    """

    n_threads: int
    read: float
    int8: float
    f32: float
    cores: float


def measure_peaks(n_threads: int) -> Peaks:
    meter = Meter(n_threads)
    try:
        read = _read(meter)
        int8 = _arithmetic(meter, "peak.int8", np.ones(4096, np.uint8))
        f32 = _arithmetic(meter, "peak.f32", np.ones(1024, np.float32))
        return Peaks(n_threads, read, int8, f32, meter.cpu_seconds / meter.seconds)
    finally:
        meter.team.close()


class Meter:
    """Runs single operations and takes their time; adds up the time that passed and the CPU time that was used."""

    def __init__(self, n_threads: int) -> None:
        self.team = Team(n_threads)
        self.seconds, self.cpu_seconds = 0.0, 0.0

    def best(self, kernel: str, step: Mapping[str, int] | None = None, **args: Any) -> float:
        """The shortest time of an operation in s: whatever else the machine does only makes it longer."""
        plan = Plan()
        plan.add(kernel, **args)
        bound = BoundPlan(plan, 0, jit.load([kernel]))
        bound.set_step(**(step or {}))
        best, begin, cpu_begin = float("inf"), time.perf_counter(), time.process_time()
        while (start := time.perf_counter()) < begin + PATIENCE or best == float("inf"):  # once at least
            self.team.run(bound.tape, bound.arguments, bound.step)
            best = min(best, time.perf_counter() - start)
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu_begin
        return best


def _read(meter: Meter) -> float:
    n_row = max(64, min(READ_BYTES, cpu.available_memory() // 4) // ROW)
    memory = np.frombuffer(cpu.allocate(n_row * ROW), np.float32)
    memory[:] = 1  # pages that were never written are all the same page
    seconds = meter.best("peak.read", src=memory, out=aligned(64 * n_row), n_row=n_row, row=ROW)
    return n_row * ROW / seconds / 1e9


def _arithmetic(meter: Meter, kernel: str, data: np.ndarray) -> float:
    n_unit = N_UNIT * meter.team.n_threads
    out = aligned(UNIT_BYTES // 8 * n_unit, np.int64).reshape(n_unit, -1)
    seconds = meter.best(kernel, data=data, out=out, n_unit=n_unit, n_round=N_ROUND, ld_out=UNIT_BYTES)
    return float(out[:, 0].sum()) / seconds / 1e9
