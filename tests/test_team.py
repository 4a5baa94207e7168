"""The threads that run a plan: every row once, threads meet where they should, pauses and Ctrl-C leave no trace."""

import _thread
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from qllama import jit, team
from qllama.errors import QllamaError
from qllama.kernels import ctl
from qllama.model import Model
from qllama.plan import OUTPUTS, BoundPlan, Plan
from qllama.team import Team, aligned

N_ROWS, N = 40, 96


@pytest.fixture(params=[1, 2, 4])
def workers(request: pytest.FixtureRequest) -> Iterator[Team]:
    made = Team(request.param)
    yield made
    made.close()


class Counting:
    """A plan that adds 1 to every value of x `n_ops` times, so that a row left out or done twice shows.

    Between threads that do not wait for each other, `shown[i]` gets other rows of x than it should.
    """

    def __init__(self, n_ops: int, n_shown: int = 0, n: int = N) -> None:
        self.x = aligned(N_ROWS * n, np.float32).reshape(N_ROWS, n)
        self.shown = [aligned((N_ROWS - 7) * n, np.float32).reshape(-1, n) for _ in range(n_shown)]
        self.n_ops = n_ops
        plan, ones = Plan(), np.ones(n, np.float32)
        for i in range(n_ops):
            plan.add("ffn.add_bias", x=self.x, bias=ones, n=n, ld_x=4 * n)
            if i < n_shown:
                plan.add("ffn.last_rows", rows=OUTPUTS, x=self.x, out=self.shown[i], n=n, ld=4 * n)
        self.bound = BoundPlan(plan, 0, jit.load(plan.kernels()))
        self.bound.set_step(n_tokens=N_ROWS, n_out=N_ROWS - 7)

    def run(self, by: Team) -> None:
        self.x[:] = 0
        by.run(self.bound.tape, self.bound.arguments, self.bound.step)

    def check(self, by: Team) -> None:
        self.run(by)
        assert (self.x == self.n_ops).all()


def test_many_short_steps(workers):
    counting = Counting(3)
    for _ in range(300):
        counting.check(workers)


def test_threads_meet_after_an_operation(workers):
    counting = Counting(100, n_shown=100)
    for _ in range(5):
        counting.check(workers)
        assert all((shown == i + 1).all() for i, shown in enumerate(counting.shown))


def test_operations_that_do_not_meet_are_all_done(workers):
    """Each operation's arguments have a row counter of their own; they write apart, as two may be at work at once."""
    n_ops, ones = 50, np.ones(N, np.float32)
    arrays = [aligned(N_ROWS * N, np.float32).reshape(N_ROWS, N) for _ in range(n_ops)]
    plan = Plan()
    for i, x in enumerate(arrays):
        plan.add("ffn.add_bias", x=x, bias=ones, n=N, ld_x=4 * N, meet=i == n_ops - 1)
    bound = BoundPlan(plan, 0, jit.load(plan.kernels()))
    bound.set_step(n_tokens=N_ROWS)
    for n_done in range(1, 20):
        workers.run(bound.tape, bound.arguments, bound.step)
        assert all((x == n_done).all() for x in arrays)


def test_a_step_of_no_operations(workers):
    workers.run(np.zeros((0, 3), np.int64), np.zeros((0, 16), np.int64), np.zeros(8, np.int64))


def asleep(by: Team, tid: int) -> bool:
    return by._get(ctl.SLEEPERS + 64 * tid) == 1


def test_workers_fall_asleep_and_are_woken(workers):
    counting = Counting(3)
    for _ in range(3):
        counting.check(workers)
        deadline = time.monotonic() + 30
        while not all(asleep(workers, tid) for tid in range(1, workers.n_threads)):
            assert time.monotonic() < deadline, "a worker does not go to sleep"
            time.sleep(0.001)
        counting.check(workers)


def test_close_ends_the_threads_and_a_closed_team_starts_again(workers):
    counting = Counting(3)
    for _ in range(3):
        counting.check(workers)
        threads = list(workers._workers)
        assert len(threads) == workers.n_threads - 1
        workers.close()
        assert not any(t.is_alive() for t in threads)
    workers.close()


def test_closing_a_team_whose_workers_sleep(workers):
    Counting(3).check(workers)
    threads = list(workers._workers)
    time.sleep(0.05)
    workers.close()
    assert not any(t.is_alive() for t in threads)


# ---- pauses


def test_a_step_cut_into_slices_does_every_row_once(workers, monkeypatch):
    """A slice ends between two rows of an operation; the next goes on there."""
    slices = 0

    def call_workers() -> None:
        nonlocal slices
        slices += 1
        Team._call_workers(workers)

    counting = Counting(3, n=1 << 16)
    monkeypatch.setattr(team, "SLICE_NS", 200_000)
    monkeypatch.setattr(workers, "_call_workers", call_workers)
    for _ in range(5):
        counting.check(workers)
    assert slices > 5, "no step was cut"


def interrupt_when(condition, limit: float = 60) -> threading.Thread:
    """A thread that sends Ctrl-C as soon as `condition()`."""

    def wait() -> None:
        deadline = time.monotonic() + limit
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_ctrl_c_in_the_middle_of_a_long_step(workers):
    """And the same plan, the beginning of it, runs as if nothing had been."""
    counting = Counting(10_000, n=1 << 14)  # a second at the very least
    sender = interrupt_when(lambda: workers._get(ctl.INDEX) > 100)
    with pytest.raises(KeyboardInterrupt):
        counting.run(workers)
    sender.join()
    assert 0 < workers._get(ctl.INDEX) < 10_000, "it was stopped half-way"
    counting.x[:] = 0
    workers.run(counting.bound.tape[:300], counting.bound.arguments, counting.bound.step)
    assert (counting.x == 300).all()


INTERRUPTED = """
import os, random, signal, threading
from qllama.team import Team
from test_team import Counting

random.seed(1)
workers, counting = Team(2), Counting(3)
counting.check(workers)
for _ in range(150):
    try:
        threading.Timer(random.random() / 500, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            counting.run(workers)
    except KeyboardInterrupt:
        pass
    counting.check(workers)
workers.close()
"""


def run_apart(*args: str) -> str:
    """What a Python process that could hang prints; its errors are shown when it fails."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, *args], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_ctrl_c_at_any_moment_leaves_a_team_that_works():
    """Between short steps too, when threads are being told of one and Python code runs."""
    run_apart("-X", "faulthandler", "-c", INTERRUPTED)


def test_ctrl_c_at_every_place_leaves_a_team_that_works():
    """Of a step that wakes workers, of a first step, which starts them, and of their end."""
    n_places = [int(n) for n in run_apart("interrupt_probe.py").split()]
    assert len(n_places) == 3 and min(n_places) > 10


# ---- failures


def test_a_failed_operation_is_an_error_that_names_it(workers):
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 4)
    fail = kind(lambda *_: 1)
    counting = Counting(5)
    counting.bound.tape[3, 0] = ctypes.cast(fail, ctypes.c_void_p).value
    with pytest.raises(QllamaError, match="operation 3 of the plan failed"):
        counting.run(workers)
    Counting(3).check(workers)


def test_aligned():
    for n in (0, 1, 63, 1000):
        a = aligned(n, np.float32)
        assert a.shape == (n,) and a.dtype == np.float32 and not a.any()
        assert n == 0 or a.ctypes.data % 64 == 0


def test_threads_that_cannot_be_started_are_one_line(monkeypatch):
    """And the ones that were started go home: a barrier would wait for the others for ever."""
    real, started = _thread.start_new_thread, []

    def start(*args) -> int:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(args)
        return real(*args)

    monkeypatch.setattr(_thread, "start_new_thread", start)
    plan, n_before = Counting(1), _thread._count()
    with pytest.raises(QllamaError, match=r"^cannot start 3 threads: can't start new thread$"):
        plan.run(Team(3))
    assert len(started) == 1 and ended(n_before)


def ended(n_before: int) -> bool:
    """Whether no more threads are left than there were; one that has said so still needs a moment."""
    deadline = time.monotonic() + 30
    while _thread._count() > n_before and time.monotonic() < deadline:
        time.sleep(0.001)
    return _thread._count() <= n_before


def test_a_model_that_nobody_closes_takes_its_threads_along():
    m = Model(shared("models/stories260K-f32.gguf"), n_threads=3)
    m.forward([1], 0)
    threads = list(m.team._workers)
    assert len(threads) == 2 and all(t.is_alive() for t in threads)
    del m
    gc.collect()
    assert not any(t.is_alive() for t in threads)
