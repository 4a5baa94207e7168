"""From the tensors of a file to packed weights in memory, by all threads; the file's pages are let go behind it."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from qllama import cpu, jit
from qllama.errors import QllamaError
from qllama.gguf import GGUF
from qllama.kernels.layouts import PANEL
from qllama.plan import BoundPlan, Plan, Weight
from qllama.team import Team

SLICE = 64 << 20  # bytes of a file that are mapped at a time: the most that is in memory twice

Progress = Callable[[int, int], None]


def total_bytes(weights: Iterable[Weight]) -> int:
    """Bytes of the packed weights in memory."""
    return sum(_rounded(w.nbytes) for w in weights)


def pack_kernels(weights: Iterable[Weight]) -> set[str]:
    return {w.layout.pack for w in weights}


def pack(gguf: GGUF, weights: list[Weight], team: Team, progress: Progress | None = None) -> np.ndarray:
    """Pack `weights` and set their addresses; returns the memory that holds them, to be kept as long as they are used.

    `progress(done, total)` is called with bytes of the file. Raises QllamaError when there is not enough memory.
    """
    need = total_bytes(weights)
    try:
        arena = np.frombuffer(cpu.allocate(need), np.uint8)
    except OSError as error:
        raise QllamaError(f"out of memory: the weights need {need} bytes") from error
    kernels = jit.load(pack_kernels(weights))
    at, done, total = arena.ctypes.data, 0, sum(gguf.tensors[w.name].nbytes for w in weights)
    for weight in weights:
        weight.address = at
        at += _rounded(weight.nbytes)
        for nbytes in _pack_one(gguf, weight, team, kernels):
            done += nbytes
            if progress:
                progress(done, total)
    return arena


def _rounded(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _pack_one(gguf: GGUF, weight: Weight, team: Team, kernels: dict[str, jit.Kernel]) -> Iterator[int]:
    """Pack one tensor slice by slice; yields the bytes of the file that each slice took."""
    source = gguf.data(weight.name)
    n_block = weight.layout.file_blocks(weight.n_in)
    row_bytes = n_block * weight.layout.type.nbytes
    step = max(1, SLICE // (row_bytes * PANEL))
    n_panel = weight.layout.panels(weight.n_out)
    for first in range(0, n_panel, step):
        panels = min(step, n_panel - first)
        height = min(weight.n_out - first * PANEL, panels * PANEL)
        start = first * PANEL * row_bytes
        rows = source[start : start + height * row_bytes]
        plan = Plan()
        plan.add(
            weight.layout.pack,
            src=rows,
            dst=weight.address + first * weight.layout.panel_bytes(weight.n_in),
            height=height,
            n_block=n_block,
            n_panel=panels,
        )
        bound = BoundPlan(plan, 0, kernels)
        team.run(bound.tape, bound.arguments, bound.step)
        gguf.release(weight.name, start, len(rows))
        yield len(rows)
