"""Handing out rows: threads take the next few rows of an operation until none are left."""

from qllama.jit import function
from qllama.kernels.ctl import CLOCK, DEADLINE, PAUSE
from qllama.simd import atomic_add, atomic_load, atomic_store, load_i64, monotonic_ns


@function
def take(job, n, grain):
    """The first of the next `grain` rows of `n`; at least `n` when none are left or the step is to pause.

    Thread 0, the one Python waits for, looks at the clock; past the deadline all threads stop taking rows, and the
    operation goes on from its counter when the step is resumed.
    """
    counter, ctl, tid = job
    if atomic_load(ctl + PAUSE) != 0:
        return n
    if tid == 0 and monotonic_ns(ctl + CLOCK) > load_i64(ctl + DEADLINE):
        atomic_store(ctl + PAUSE, 1)
        return n
    return atomic_add(counter, grain)
