"""Handing out rows: threads take the next few rows of an operation until none are left."""

from qllama.jit import function
from qllama.kernels.ctl import CLOCK, DEADLINE, N_THREADS, PAUSE
from qllama.simd import atomic_add, atomic_load, atomic_store, load_i64, monotonic_ns


@function
def is_over(ctl, tid):
    """Whether the step is to pause. Thread 0, the one Python waits for, looks at the clock for all."""
    if atomic_load(ctl + PAUSE) != 0:
        return True
    if tid == 0 and monotonic_ns(ctl + CLOCK) > load_i64(ctl + DEADLINE):
        atomic_store(ctl + PAUSE, 1)
        return True
    return False


@function
def take(job, n, grain):
    """The first of the next `grain` rows of `n`; at least `n` when none are left or the step is to pause.

    Past the deadline all threads stop taking rows; the operation goes on from its counter when the step is resumed.
    """
    counter, ctl, tid = job
    return n if is_over(ctl, tid) else atomic_add(counter, grain)


@function
def take_share(job, n):
    """(first, last) of the next rows of `n`, in shares that shrink; first is n when none are left or at a pause.

    A long run of rows is read from memory at full speed, and small last shares let a thread whose core was stolen
    stall the others little. Of what is left, half is cut into two shares a thread, then half of the rest, ...
    """
    counter, ctl, tid = job
    parts = 2 * load_i64(ctl + N_THREADS)
    while not is_over(ctl, tid):
        k = atomic_add(counter, 1)
        left = n >> min(k // parts, 62)
        if left == 0:
            break
        size, part = left - (left >> 1), k % parts
        first = n - left + size * part // parts
        last = n - left + size * (part + 1) // parts
        if first < last:
            return first, last
    return n, n
