"""What goes into each matrix of a model: sums of squares by column, taken between two operations of a step."""

import numpy as np

from qllama.imatrix import Sums
from qllama.kernels.layouts import BLOCK_Q8, F32
from qllama.plan import BoundPlan, Buffer, Weight
from qllama.team import Team

_BLOCK = np.dtype([("d", "<f4"), ("sums", "<i4", 2), ("dsum", "<f4"), ("q", "i1", 32)])
assert _BLOCK.itemsize == BLOCK_Q8


class Collector:
    """Runs a plan's steps, as a stopwatch does, and adds up the inputs of its matrices.

    `sums` has the squares by tensor; inputs that a kernel reads as 8-bit blocks are taken as it reads them.
    """

    def __init__(self, bound: BoundPlan) -> None:
        self._bound, self.sums = bound, dict[str, Sums]()
        self._tape = bound.tape.copy()
        self._tape[:, 2] = 1  # all threads meet after each operation

    def run(self, team: Team) -> None:
        """Execute the step that the bound plan is set to."""
        start, plan = 0, self._bound.plan
        for i, op in enumerate(plan.ops):
            weight, x = op.args.get("w"), op.args.get("x")
            if isinstance(weight, Weight) and isinstance(x, Buffer):
                self._execute(team, start, i)
                self._add(weight, self._inputs(x))
                start = i
        self._execute(team, start, len(plan.ops))

    def _execute(self, team: Team, start: int, stop: int) -> None:
        if stop > start:
            team.run(self._tape[start:stop].copy(), self._bound.arguments[start:stop], self._bound.step)

    def _inputs(self, x: Buffer) -> np.ndarray:
        """(n_rows, n) float32."""
        n_rows = self._bound.rows(x.rows)
        if x.kind == F32:
            return self._bound.view(x.name, n_rows)
        blocks = self._bound.raw(x.name, n_rows).view(_BLOCK)
        return (blocks["d"][..., None] * blocks["q"]).reshape(n_rows, -1)

    def _add(self, weight: Weight, x: np.ndarray) -> None:
        found = self.sums.setdefault(weight.name, Sums(np.zeros((1, weight.n_in)), np.zeros(1)))
        found.sums += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        found.counts += len(x)
