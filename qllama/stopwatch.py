"""A plan's operations timed one by one: the same tape and team, with a stamp of the clock between two operations."""

import numpy as np

from qllama import jit
from qllama.plan import BoundPlan, Plan
from qllama.team import Team, aligned

STAMP = "peak.stamp"


class Stopwatch:
    """Totals over the steps that it ran, one element an operation, in the plan's order.

    `seconds` (n_ops,) float64, the meeting of the threads after the operation included; `rows` (n_ops,) int64 that it
    was to compute, `steps` (n_ops,) int64 in which there were any.
    """

    def __init__(self, bound: BoundPlan) -> None:
        self._bound, self.ops = bound, bound.plan.ops
        n = len(self.ops)
        self.seconds, self.rows, self.steps = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._stamps = aligned(8 * (n + 1), np.int64).reshape(n + 1, 8)  # a cache line each, the time first
        plan = Plan()
        for line in self._stamps:
            plan.add(STAMP, out=line)
        self._clock = BoundPlan(plan, 0, jit.load([STAMP]))
        self._tape = np.ones((2 * n + 1, 3), np.int64)  # column 2: threads meet after each operation
        self._tape[0::2, :2] = self._clock.tape[:, :2]
        self._tape[1::2, :2] = bound.tape[:, :2]

    def run(self, team: Team) -> None:
        """Execute the step that the bound plan is set to."""
        self._clock.arguments[:, jit.COUNTER] = 0
        team.run(self._tape, self._bound.arguments, self._bound.step)
        self.seconds += np.diff(self._stamps[:, 0]) / 1e9
        rows = np.array([self._bound.step[jit.STEP.index(op.rows)] for op in self.ops])
        self.rows += rows
        self.steps += rows > 0
