"""The threads that execute a plan. Python hands over a tape and gets the step back done; in between no Python runs.

Workers wait for a step by spinning for about a millisecond, then sleep on a lock. A step is run in slices of
SLICE_NS: between two of them Python can deliver Ctrl-C, and the step goes on from its row counters.
"""

import _thread
import ctypes
import functools
from collections.abc import Callable

import numpy as np

from qllama import cpu, jit
from qllama.errors import QllamaError
from qllama.kernels import ctl

SLICE_NS = 50_000_000
KERNELS = ("tape.call", "tape.lead", "tape.rest", "tape.work", "tape.dismiss")


def aligned(n: int, dtype: type = np.uint8, alignment: int = 64) -> np.ndarray:
    """n zeros of `dtype` that begin on a multiple of `alignment` bytes."""
    raw = np.zeros(n * np.dtype(dtype).itemsize + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + n * np.dtype(dtype).itemsize].view(dtype)


class Team:
    """`n_threads` threads, the calling one included. Not to be used by two threads at once.

    Ctrl-C may come between any two instructions of Python in here, and nothing may hang or be lost by it. Three things
    see to that: threads start, wake and end by single steps of `_thread` (those of `threading` are many, and leave a
    lock taken when they are interrupted); a slice begins in compiled code only; and every set of workers has a control
    block of its own, so that those of a start or an end that was interrupted cannot come to the barrier of others.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        kernels = jit.load(KERNELS)
        self._call = {name: jit.callable_at(k.address) for name, k in kernels.items()}
        self._ctl = self._new_block()
        self._ctl[ctl.GO // 8] = -1  # there are no workers
        self._workers: list[Worker] = []

    def run(self, tape: np.ndarray, arguments: np.ndarray, step: np.ndarray) -> None:
        """Execute `tape` (n, 3) int64 with the `step` block; column 0 of `arguments` has the row counters.

        Raises KeyboardInterrupt between two slices; the counters are rewound then, and the team is ready again.
        """
        if self._get(ctl.GO) < 0:
            self._start()
        arguments[:, jit.COUNTER] = 0
        self._set(ctl.TAPE, tape.ctypes.data)
        self._set(ctl.N_OPS, len(tape))
        self._set(ctl.STEP_AT, step.ctypes.data)
        self._set(ctl.INDEX, 0)
        self._set(ctl.FAILED, 0)
        try:
            while self._get(ctl.INDEX) < len(tape):
                self._set(ctl.DEADLINE, cpu.now_ns() + SLICE_NS)
                self._call_workers()
                self._native("tape.lead")
                if self._get(ctl.FAILED):
                    raise QllamaError(f"operation {self._get(ctl.FAILED) - 1} of the plan failed")
        except BaseException:
            self._native("tape.rest")
            raise

    def close(self) -> None:
        """Send the workers home. Interrupted, it can be done again; `run` starts new ones."""
        self._dismiss(self._ctl, self._workers)
        self._workers = []

    def _new_block(self) -> np.ndarray:
        block = aligned(ctl.size(self.n_threads) // 8, np.int64)
        block[ctl.N_THREADS // 8] = self.n_threads
        return block

    def _start(self) -> None:
        self.close()  # what is left of an end that was interrupted
        block = self._new_block()
        workers = [Worker(self._caller("tape.work", tid, block), block) for tid in range(1, self.n_threads)]
        try:
            for worker in workers:
                worker.start()
            self._workers, self._ctl = workers, block
        except BaseException as error:  # a barrier would wait for ever for the threads that are not there
            self._dismiss(block, workers)
            if isinstance(error, RuntimeError):
                raise QllamaError(f"cannot start {self.n_threads} threads: {error}") from error
            raise

    def _dismiss(self, block: np.ndarray, workers: "list[Worker]") -> None:
        """End the workers of a block, sleeping ones too. One whose start was interrupted goes as soon as it comes."""
        self._caller("tape.dismiss", 0, block)()
        for worker in workers:
            worker.wake()
        for worker in workers:
            worker.join()

    def _call_workers(self) -> None:
        """Wake the workers that sleep. Ctrl-C may come at any place in here: a slice begins in tape.lead only."""
        self._native("tape.call")
        for tid, worker in enumerate(self._workers, 1):
            if self._get(ctl.SLEEPERS + 64 * tid + 16):
                worker.wake()

    def _native(self, name: str) -> None:
        self._caller(name, 0, self._ctl)()

    def _caller(self, name: str, tid: int, block: np.ndarray) -> Callable[[], int]:
        """A compiled function with its arguments, so that a worker that calls it needs no memory."""
        function, block_at = self._call[name], block.ctypes.data
        scratch = (ctypes.c_int64 * 2)()  # Numba's result and exception slots
        result, exception = ctypes.byref(scratch), ctypes.byref(scratch, 8)
        return functools.partial(function, result, exception, 0, 0, block_at, tid)

    def _get(self, at: int) -> int:
        return int(self._ctl[at // 8])

    def _set(self, at: int, value: int) -> None:
        self._ctl[at // 8] = value


class Worker:
    """A thread: compiled code until it has waited too long, then sleep, until the block says that it is over."""

    def __init__(self, work: Callable[[], int], block: np.ndarray) -> None:
        self._work, self._block = work, block
        self._sleep, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._started = False
        self._sleep.acquire()

    def start(self) -> None:
        """Raises RuntimeError when the system gives no thread."""
        self._ended.acquire()
        _thread.start_new_thread(self._run, ())
        self._started = True

    def _run(self) -> None:
        while True:
            self._work()
            if self._block[ctl.GO // 8] < 0:
                break
            self._sleep.acquire()
        self._ended.release()

    def wake(self) -> None:
        """Now, or as soon as it wants to sleep. Only the leader does so: a lock that is open stays open until then."""
        if self._sleep.locked():
            self._sleep.release()

    def is_alive(self) -> bool:
        return self._started and self._ended.locked()

    def join(self) -> None:
        """Wait for the end."""
        if self._started:
            with self._ended:
                pass
