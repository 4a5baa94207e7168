"""The team's control block: byte offsets, each group of values on a cache line of its own. No Numba here."""

PAUSE = 0  # set by thread 0 past the deadline: take no more rows
DEADLINE = 64  # monotonic ns
CLOCK = 128  # 16 bytes for the C library's clock
ARRIVED, GENERATION = 192, 256  # the barrier
GO, AWAKE = 320, 328  # the number of the slice (negative: go home); whether workers must not sleep
LEFT = 384  # workers that have left the tape
TAPE, N_OPS, N_THREADS, STEP_AT = 448, 456, 464, 472  # the step, fixed while it runs
INDEX, STOP, FAILED = 512, 520, 528  # written by the last thread at a barrier
SLEEPERS = 576  # one line a thread: sleeping flag, last slice seen, has to be woken


def size(n_threads: int) -> int:
    """Bytes of the control block."""
    return SLEEPERS + 64 * n_threads
