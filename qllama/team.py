"""The threads that execute a plan. Python hands over a tape and gets the step back done; in between no Python runs.

Workers wait for a step by spinning for about a millisecond, then sleep on a semaphore. A step is run in slices of
SLICE_NS: between two of them Python can deliver Ctrl-C, and the step goes on from its row counters.
"""

import ctypes
import threading

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
    """`n_threads` threads, the calling one included. Not to be used by two threads at once."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        kernels = jit.load(KERNELS)
        self._call = {name: jit.callable_at(k.address) for name, k in kernels.items()}
        self._ctl = aligned(ctl.size(n_threads) // 8, np.int64)
        self._set(ctl.N_THREADS, n_threads)
        self._wake = [threading.Semaphore(0) for _ in range(n_threads)]
        self._threads: list[threading.Thread] = []

    def run(self, tape: np.ndarray, arguments: np.ndarray, step: np.ndarray) -> None:
        """Execute `tape` (n, 3) int64 with the `step` block; column 0 of `arguments` has the row counters.

        Raises KeyboardInterrupt between two slices; the counters are rewound then, and the team is ready again.
        """
        if not self._threads:
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
                self._native("tape.lead", 0)
                if self._get(ctl.FAILED):
                    raise QllamaError(f"operation {self._get(ctl.FAILED) - 1} of the plan failed")
        except BaseException:
            self._native("tape.rest", 0)
            raise

    def close(self) -> None:
        """Send the workers home."""
        if self._threads:
            self._call_workers()
            self._native("tape.dismiss", 0)
            for thread in self._threads:
                thread.join()
            self._threads = []

    def _start(self) -> None:
        self._set(ctl.GO, 0)
        self._set(ctl.AWAKE, 0)
        self._ctl[ctl.SLEEPERS // 8 :] = 0
        try:
            for tid in range(1, self.n_threads):
                thread = threading.Thread(target=self._work, args=(tid,), name=f"qllama-{tid}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException as error:  # a barrier would wait for ever for the threads that are not there
            self.close()
            if isinstance(error, RuntimeError):
                raise QllamaError(f"cannot start {self.n_threads} threads: {error}") from error
            raise

    def _work(self, tid: int) -> None:
        while True:
            self._native("tape.work", tid)
            if self._get(ctl.GO) < 0:
                return
            self._wake[tid].acquire()

    def _call_workers(self) -> None:
        """Wake the workers that sleep. Ctrl-C may come at any place in here: a slice begins in tape.lead only."""
        self._native("tape.call", 0)
        for tid in range(1, self.n_threads):
            if self._get(ctl.SLEEPERS + 64 * tid + 16):
                self._wake[tid].release()

    def _native(self, name: str, tid: int) -> None:
        scratch = (ctypes.c_int64 * 2)()  # Numba's result and exception slots
        at = ctypes.addressof(scratch)
        self._call[name](at, at + 8, 0, 0, self._ctl.ctypes.data, tid)

    def _get(self, at: int) -> int:
        return int(self._ctl[at // 8])

    def _set(self, at: int, value: int) -> None:
        self._ctl[at // 8] = value
