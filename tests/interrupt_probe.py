"""Ctrl-C at every place of the team's Python code where Python can deliver it, one after the other.

A trace function counts these places (after a call, at the beginning of a function, at the end of a loop's round) in
team.py, and raises KeyboardInterrupt at the N-th, for N = 1, 2, ... Run as a program, as it would hang.
"""

import _thread
import dis
import faulthandler
import functools
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from test_team import Counting, asleep

from qllama import team
from qllama.team import Team

BREAKS = ("RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX", "CALL_KW")  # after these Python looks for signals
PATIENCE = 60.0


class Interrupt:
    """A trace function that raises KeyboardInterrupt at the place number `at`; `done` says whether it came so far."""

    def __init__(self, at: int) -> None:
        self.left, self.done = at, False
        self.last: dict[FrameType, str] = {}  # the instruction before, by frame

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != team.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.instruction

    def instruction(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and not self.done:
            if self.last.get(frame, "RESUME") in BREAKS:
                self.left -= 1
            self.last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if self.left == 0:
                self.done = True
                raise KeyboardInterrupt
        return self.instruction


def interrupted(function: Callable[[], None], at: int) -> bool:
    """Run `function` with Ctrl-C at a place; False when it has not so many."""
    interrupt = Interrupt(at)
    sys.settrace(interrupt)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupt.done


def nap(workers: Team) -> None:
    """Until all workers sleep."""
    deadline = time.monotonic() + PATIENCE
    while not all(asleep(workers, tid) for tid in range(1, workers.n_threads)):
        assert time.monotonic() < deadline, "a worker does not go to sleep"
        time.sleep(0.0005)


def everywhere(what: str, counting: Counting) -> int:
    """Interrupt a step that wakes sleepers, a first step, or an end, at all its places; returns how many these are."""
    at, workers = 0, Team(3)
    while True:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        if what == "first step":
            workers.close()
        else:
            counting.check(workers)
            nap(workers)
        at += 1
        function = workers.close if what == "end" else functools.partial(counting.run, workers)
        more = interrupted(function, at)
        for _ in range(3):
            counting.check(workers)
        if not more:
            break
    workers.close()
    deadline = time.monotonic() + PATIENCE
    while _thread._count():
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.001)
    return at - 1


if __name__ == "__main__":
    plan = Counting(3)
    print(*(everywhere(what, plan) for what in ("step", "first step", "end")))
