"""Measures threads and register tiles on this machine for some seconds. What is found is kept by qllama.tuned.

A process has one set of tiles, so each set is measured in a process of its own, which prints what it found as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qllama import cpu, tuned
from qllama.bench.peaks import Meter
from qllama.bench.report import IDLE
from qllama.errors import QllamaError
from qllama.kernels.layouts import LAYOUTS, row_bytes
from qllama.kernels.tiles import CHOICES, DEFAULTS
from qllama.team import aligned
from qllama.tuned import Tuned

ENOUGH = 1.03  # so many times as fast as the default must be what takes its place: less is noise
ROUNDS = 2  # of all sets of tiles, of which the better counts
REPRESENTS = {"int8": "Q4_K", "f32": "F16"}  # tile -> the format whose matmul is measured
N_IN, N_OUT, N_TOKENS = 2048, 2048, 240  # of a prompt; every tile divides the tokens
N_OUT_DECODE = 1 << 16  # 75 MB of Q4_K: beyond most caches

Report = Callable[[str], None]


@dataclass
class Measured:
    """By number of threads: GB/s for one token and GOP/s for a prompt; by tile and its tokens: GOP/s for a prompt."""

    decode: dict[int, float] = field(default_factory=dict)
    prefill: dict[int, float] = field(default_factory=dict)
    tiles: dict[str, dict[int, float]] = field(default_factory=lambda: {name: {} for name in REPRESENTS})
    busy: bool = False  # the threads got less than their cores

    def best(self) -> Tuned:
        """The defaults, but for what is clearly faster."""
        default = cpu.default_threads()
        speeds = {n: (self.decode[n] * self.prefill[n]) ** 0.5 for n in self.decode}
        n_threads = _clearly_best(speeds, default)
        tiles = {name: _clearly_best(speeds, DEFAULTS[name]) for name, speeds in self.tiles.items()}
        return Tuned(None if n_threads == default else n_threads, changed(tiles))


def _clearly_best(speeds: dict[int, float], default: int) -> int:
    best = max(speeds, key=lambda choice: speeds[choice])
    return best if speeds[best] > ENOUGH * speeds[default] else default


def thread_counts() -> list[int]:
    """The numbers that are compared: half of the physical cores, one less, all, and all hardware threads."""
    cores = cpu.default_threads()
    return sorted({max(1, cores // 2), max(1, cores - 1), cores, cpu.processors()})


def tile_sets() -> list[dict[str, int]]:
    """The defaults first."""
    return [DEFAULTS, *({"int8": int8, "f32": f32} for int8, f32 in CHOICES[cpu.isa().name])]


def changed(tiles: dict[str, int]) -> dict[str, int]:
    """Those that are not the default."""
    return {name: tokens for name, tokens in tiles.items() if tokens != DEFAULTS[name]}


def measure(report: Report) -> Measured:
    """All of it. `report` is told what happens. Raises QllamaError when a process that measures fails."""
    found = Measured()
    for n in thread_counts():
        report(f"{n} thread{'s' * (n > 1)}")
        meter = Meter(n)
        try:
            found.decode[n] = matmul_speed(meter, "Q4_K", N_OUT_DECODE, 1)[0]
            found.prefill[n] = matmul_speed(meter, "Q4_K", N_OUT, N_TOKENS)[1]
        finally:
            meter.team.close()
        found.busy |= meter.cpu_seconds < IDLE * min(n, cpu.default_threads()) * meter.seconds
    for _ in range(ROUNDS):
        for tiles in tile_sets():
            report(f"tiles of {tiles['int8']} tokens x 32 rows for int8, {tiles['f32']} for float32")
            for name, gops in _in_process(tiles).items():
                speeds = found.tiles[name]
                speeds[tiles[name]] = max(gops, speeds.get(tiles[name], 0.0))
    return found


def _in_process(tiles: dict[str, int]) -> dict[str, float]:
    """Tile -> GOP/s, with these tiles and the default number of threads."""
    environment = {**os.environ, "QLLAMA_TILES": tuned.as_text(changed(tiles)), "QLLAMA_ISA": cpu.isa().name}
    command = [sys.executable, "-P", "-m", "qllama.bench.tune"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    try:
        return {name: float(json.loads(done.stdout)[name]) for name in REPRESENTS}
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise QllamaError(f"measuring the tiles {tuned.as_text(tiles)} failed: {last[0]}") from None


def matmul_speed(meter: Meter, format_name: str, n_out: int, n_tokens: int) -> tuple[float, float]:
    """(GB/s of weights, GOP/s) of a matrix of N_IN columns times n_tokens."""
    layout = LAYOUTS[format_name]
    nbytes = layout.size(n_out, N_IN)
    weights, ld_x = np.frombuffer(cpu.allocate(nbytes), np.uint8), row_bytes(layout.activation, N_IN)
    weights[:] = 1  # pages that were never written are all the same page
    x, out = (
        np.tile(aligned(ld_x) + np.uint8(1), n_tokens + tuned.MAX_TILE),
        aligned((n_tokens + tuned.MAX_TILE) * 4 * n_out),
    )
    n_panel = layout.panels(n_out)
    seconds = meter.best(
        f"{layout.kernels}.matmul", {"n_tokens": n_tokens}, w=weights, x=x, out=out, n_block=N_IN // layout.block,
        n_panel=n_panel, ld_x=ld_x, ld_out=4 * n_out, add=0, grain=max(1, n_panel // (8 * meter.team.n_threads)),
    )  # fmt: skip
    return nbytes / seconds / 1e9, 2 * N_IN * n_out * n_tokens / seconds / 1e9


def _serve() -> None:
    """The process that measures: its tiles, on standard output."""
    meter = Meter(cpu.default_threads())
    try:
        speeds = {name: matmul_speed(meter, kind, N_OUT, N_TOKENS)[1] for name, kind in REPRESENTS.items()}
    finally:
        meter.team.close()
    print(json.dumps(speeds))


if __name__ == "__main__":
    _serve()
