"""Running a plan's operations: the barrier, the walk along the tape, the waiting of a worker. See `qllama.team`.

A tape entry is three int64: the kernel's address, its arguments' address, and whether threads meet after it. Entries up
to the next meeting are a group: they are independent, and a thread goes on to the next as soon as rows run out.

Who sees what, whatever the machine reorders (simd/machine.py says what orders at all):
- What Python wrote for a slice (tape, arguments, counters at 0): thread 0 releases GO after it, a worker acquires GO.
- What a group computed: every thread adds to ARRIVED after its rows, and the last one's addition acquires what the
  others released (additions to one word are one chain). It then writes INDEX, STOP and ARRIVED, and releases
  GENERATION; whoever acquires the new GENERATION sees all of it. A thread acquires GENERATION before it arrives, so it
  cannot take the new one for the old.
- PAUSE is set at most once a slice. A thread that left rows because it saw PAUSE arrives after that, so the last one to
  arrive sees it as well, and stops all: no operation with rows left is taken for a finished one.
- Row counters say which rows are whose, and carry no data.
- A worker adds to LEFT when it touches nothing any more; thread 0 acquires that before Python goes on.
"""

from qllama.jit import function, kernel
from qllama.kernels.ctl import (
    ARRIVED,
    AWAKE,
    FAILED,
    GENERATION,
    GO,
    INDEX,
    LEFT,
    N_OPS,
    N_THREADS,
    PAUSE,
    SLEEPERS,
    STEP_AT,
    STOP,
    TAPE,
)
from qllama.simd import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_store,
    call_kernel,
    load_i64,
    pause,
    store_i64,
    yield_core,
)

SPINS = 2000  # about 50 us; then the core is offered to others, as a team larger than the machine needs
IDLE_SPINS = 20000  # about a millisecond of waiting for the next step, then a worker sleeps in Python


@function
def wait_for_change(at, old, limit):
    """Until the int64 at `at` is not `old`; False when `limit` looks were not enough (0: no limit)."""
    n = 0
    while atomic_load(at) == old:
        n += 1
        if limit != 0 and n > limit:
            return False
        if n > SPINS:
            yield_core()
        else:
            pause()
    return True


@function
def finish_group(ctl, last):
    """By the last thread to arrive, while the others wait: move on, or stop if paused."""
    if atomic_load(ctl + PAUSE) != 0:
        store_i64(ctl + STOP, 1)
    else:
        store_i64(ctl + INDEX, last + 1)


@function
def walk(ctl, tid):
    """Run the tape from INDEX until its end or a pause. All threads of the team do this together.

    Only the last to arrive at a barrier writes INDEX and STOP, and it does so before it opens the barrier (a release
    that the others' acquiring look pairs with); they cannot change again until every thread has arrived at the next.
    """
    tape, n, n_threads = load_i64(ctl + TAPE), load_i64(ctl + N_OPS), load_i64(ctl + N_THREADS)
    step = load_i64(ctl + STEP_AT)
    first = load_i64(ctl + INDEX)
    while first < n:
        i = first
        while True:
            if call_kernel(load_i64(tape + 24 * i), load_i64(tape + 24 * i + 8), step, ctl, tid) != 0:
                store_i64(ctl + FAILED, i + 1)
            if load_i64(tape + 24 * i + 16) != 0:
                break
            i += 1
        generation = atomic_load(ctl + GENERATION)
        if atomic_add(ctl + ARRIVED, 1) == n_threads - 1:
            finish_group(ctl, i)
            store_i64(ctl + ARRIVED, 0)
            atomic_store(ctl + GENERATION, generation + 1)
        else:
            wait_for_change(ctl + GENERATION, generation, 0)
        if load_i64(ctl + STOP) != 0:
            return
        first = load_i64(ctl + INDEX)


@kernel
def call(ctl, tid):
    """The first half of starting a slice: workers stay awake from now on.

    The third word of a worker's line then says whether it sleeps and has to be woken from Python. If Ctrl-C comes
    before the second half, nothing is lost: the workers only wait.
    """
    atomic_exchange(ctl + AWAKE, 1)
    for t in range(1, load_i64(ctl + N_THREADS)):
        mine = ctl + SLEEPERS + 64 * t
        store_i64(mine + 16, atomic_add(mine, 0))


@kernel
def rest(ctl, tid):
    """Workers may sleep again."""
    atomic_store(ctl + AWAKE, 0)


@kernel
def dismiss(ctl, tid):
    """Workers go home."""
    atomic_store(ctl + GO, -1)


@kernel
def lead(ctl, tid):
    """Thread 0's part of a slice: let the workers go, walk, and wait until every worker has left the tape."""
    store_i64(ctl + STOP, 0)
    atomic_store(ctl + PAUSE, 0)
    atomic_store(ctl + GO, load_i64(ctl + GO) + 1)
    walk(ctl, tid)
    workers = load_i64(ctl + N_THREADS) - 1
    n = 0
    while atomic_load(ctl + LEFT) != workers:
        n += 1
        if n > SPINS:
            yield_core()
        else:
            pause()
    store_i64(ctl + LEFT, 0)
    atomic_store(ctl + AWAKE, 0)


@kernel
def work(ctl, tid):
    """A worker: slices as they come, until it has waited too long (then it must sleep, in Python) or is dismissed.

    A wake-up cannot be missed: the worker sets its sleeping flag and looks at AWAKE after that, the leader sets AWAKE
    and looks at the flags after that, all by sequentially consistent read-modify-writes. One of them sees the other. A
    wake-up too many only makes a later sleep short.
    """
    mine = ctl + SLEEPERS + 64 * tid
    atomic_exchange(mine, 0)
    while True:
        seen = load_i64(mine + 8)
        while not wait_for_change(ctl + GO, seen, IDLE_SPINS):
            if atomic_load(ctl + AWAKE) == 0:
                atomic_exchange(mine, 1)
                if atomic_add(ctl + AWAKE, 0) == 0:
                    return
                atomic_exchange(mine, 0)
        go = atomic_load(ctl + GO)
        if go < 0:
            return
        store_i64(mine + 8, go)
        walk(ctl, tid)
        atomic_add(ctl + LEFT, 1)
