"""A plan: the flat list of operations that computes a step, over named activation buffers. Plain data, printable.

Building a plan touches neither weights nor kernels; a BoundPlan gives its buffers memory and is a tape for the team.
What the operations mean is the kernels' business, which of them a model needs is qllama.model's.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qllama import cpu, jit
from qllama.kernels.layouts import F32, MAX_TILE, PANEL, Layout, row_bytes
from qllama.team import aligned

GUARD = 256  # bytes after each buffer: a kernel may read a whole vector where a row's last values are

TOKENS, OUTPUTS = "n_tokens", "n_out"  # what a buffer has one row of: tokens of the step, or wanted outputs


@dataclass(frozen=True)
class Buffer:
    """Activations: a row of `n` values per token. `kind` is "f32" or "q8" (int8 blocks, see kernels/layouts.py)."""

    name: str
    n: int
    rows: str = TOKENS
    kind: str = F32

    @property
    def ld(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.kind, self.n)


@dataclass
class Weight:
    """A packed matrix of n_out rows and n_in columns; `address` is set when it is packed."""

    name: str
    layout: Layout
    n_out: int
    n_in: int
    address: int = 0

    @property
    def nbytes(self) -> int:
        return self.layout.size(self.n_out, self.n_in)

    @property
    def n_block(self) -> int:
        return self.n_in // self.layout.block


Argument = int | float | Buffer | Weight | np.ndarray


@dataclass(frozen=True)
class Op:
    """One operation: a kernel, its arguments by name, and whether all threads meet after it."""

    kernel: str
    rows: str
    args: Mapping[str, Argument]
    meet: bool = True

    def __str__(self) -> str:
        shown = (f"{k}={_describe(v)}" for k, v in self.args.items() if not k.startswith("ld_") and k != "grain")
        return f"{self.kernel:<22} {' '.join(shown)}{'' if self.meet else ' &'}"


def _describe(value: Argument) -> str:
    if isinstance(value, Buffer | Weight):
        return value.name
    if isinstance(value, np.ndarray):
        return f"[{len(value)}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass
class Plan:
    """Operations and the buffers they use. `&` after an operation in print: threads go on without meeting."""

    ops: list[Op] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def buffer(self, name: str, n: int, rows: str = TOKENS, kind: str = F32) -> Buffer:
        """The buffer `name`, made when it is new. Layers share buffers: same name, same shape."""
        wanted = Buffer(name, n, rows, kind)
        assert self.buffers.setdefault(name, wanted) == wanted, f"two shapes for buffer {name}"
        return wanted

    def add(self, kernel: str, rows: str = TOKENS, meet: bool = True, **args: Argument) -> None:
        self.ops.append(Op(kernel, rows, args, meet))

    def kernels(self) -> set[str]:
        return {op.kernel for op in self.ops}

    def nbytes(self, n_rows: int) -> int:
        """Bytes of all buffers for steps of up to n_rows tokens."""
        return sum(_span(b, n_rows) for b in self.buffers.values())

    def __str__(self) -> str:
        lines = [f"{len(self.ops)} operations, {len(self.buffers)} buffers"]
        lines += [f"{b.name:<14} {b.kind} [{b.rows}, {b.n}]" for b in self.buffers.values()]
        lines += [f"{i:>4}  {op}" for i, op in enumerate(self.ops)]
        return "\n".join(lines)


def _span(buffer: Buffer, n_rows: int) -> int:
    """Bytes of a buffer: the last tile of a matmul may have rows of its own behind the step's."""
    return -(-((n_rows + MAX_TILE - 2) * buffer.ld + GUARD) // 64) * 64


class BoundPlan:
    """A plan with memory and machine code: `tape` and `arguments` for the team, `view` for the curious."""

    def __init__(self, plan: Plan, n_rows: int, kernels: Mapping[str, jit.Kernel]) -> None:
        self.plan, self.n_rows = plan, n_rows
        self.step = aligned(len(jit.STEP), np.int64)
        # Anonymous memory: rows that are never used never become resident.
        self._arena = np.frombuffer(cpu.allocate(plan.nbytes(n_rows) + GUARD), np.uint8)
        self._at: dict[str, int] = {}
        at = self._arena.ctypes.data
        for b in plan.buffers.values():
            self._at[b.name] = at
            at += _span(b, n_rows)
        width = max((len(kernels[op.kernel].fields) for op in plan.ops), default=0) + jit.FIELDS
        width = -(-width // 8) * 8
        self.arguments = aligned(len(plan.ops) * width, np.int64).reshape(-1, width)
        self.tape = np.zeros((len(plan.ops), 3), np.int64)
        for i, op in enumerate(plan.ops):
            kernel = kernels[op.kernel]
            self.arguments[i, jit.ROWS] = 8 * jit.STEP.index(op.rows)
            for j, (name, kind) in enumerate(kernel.fields):
                self.arguments[i, jit.FIELDS + j] = self._word(op.args[name], kind)
            assert len(op.args) == len(kernel.fields), (
                f"{op.kernel} takes {[n for n, _ in kernel.fields]}, got {list(op.args)}"
            )
            self.tape[i] = kernel.address, self.arguments[i].ctypes.data, op.meet

    def _word(self, value: Argument, kind: str) -> int:
        """An argument as the int64 that a kernel reads."""
        if kind == "f32":
            assert isinstance(value, float | int)
            return int(struct.unpack("<q", struct.pack("<fi", value, 0))[0])
        if isinstance(value, Buffer):
            return self._at[value.name]
        if isinstance(value, Weight):
            assert value.address, f"{value.name} is not packed"
            return value.address
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous
            return value.ctypes.data
        assert isinstance(value, int)
        return value

    def set_step(self, **values: int) -> None:
        for name, value in values.items():
            self.step[jit.STEP.index(name)] = value

    def view(self, name: str, n_rows: int) -> np.ndarray:
        """The first n_rows rows of an f32 buffer: (n_rows, n) float32, the memory itself."""
        b = self.plan.buffers[name]
        assert b.kind == F32
        return self.raw(name, n_rows).view(np.float32)[:, : b.n]

    def raw(self, name: str, n_rows: int) -> np.ndarray:
        """The first n_rows rows of any buffer: (n_rows, bytes of a row) uint8, the memory itself."""
        b = self.plan.buffers[name]
        assert n_rows <= self.n_rows
        start = self._at[name] - self._arena.ctypes.data
        return self._arena[start : start + n_rows * b.ld].reshape(n_rows, b.ld)

    def rows(self, name: str) -> int:
        """How many rows the step has of what a buffer has one row of."""
        return int(self.step[jit.STEP.index(name)])


def padded_vector(values: np.ndarray) -> np.ndarray:
    """float32 values with zeros up to whole panels, as the row kernels read them."""
    out = aligned(-(-len(values) // PANEL) * PANEL, np.float32)
    out[: len(values)] = values
    return out
