"""What a plain read of memory reaches, the yardstick of decoding: NumPy's maximum over a large array."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

NBYTES = 1 << 30  # far beyond any cache
N_PASSES = 4
N_PIECES = 64  # taken by the threads as they come, so that a thread that loses its core does not hold up the rest


class PlainRead:
    """1 GiB of memory, and threads to read it. NumPy releases the GIL while it reads."""

    def __init__(self, n_threads: int, nbytes: int = NBYTES) -> None:
        self.nbytes = nbytes
        self._pieces = np.array_split(np.ones(nbytes // 8, np.uint64), N_PIECES)
        self._pool = ThreadPoolExecutor(n_threads)

    def gbps(self) -> float:
        """GB/s (10^9 bytes) of a few passes over all of it."""
        start = time.perf_counter()
        list(self._pool.map(np.max, self._pieces * N_PASSES))
        return self.nbytes * N_PASSES / (time.perf_counter() - start) / 1e9


if __name__ == "__main__":
    from qllama.cpu import default_threads

    for n in range(1, default_threads() + 1):
        read = PlainRead(n)
        read.gbps()
        print(f"{n} threads: {max(read.gbps() for _ in range(5)):.1f} GB/s")
