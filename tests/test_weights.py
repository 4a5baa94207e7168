"""Packing the tensors of a file: every slice of every type, by any number of threads, and the memory it takes."""

import mmap
from functools import cache
from itertools import cycle
from pathlib import Path

import naive
import numpy as np
import pytest
from gguf_maker import auto, gguf, tensor, write
from kernel_runner import lookup, pack, team
from test_kernels import RARE, random_blocks

from qllama import cpu, weights
from qllama.errors import QllamaError
from qllama.gguf import GGUF, open_gguf
from qllama.kernels.layouts import LAYOUTS
from qllama.plan import Weight

# Rows that fill the last panel of 32, leave one row for it, and are fewer than one.
HEIGHTS = dict(zip(LAYOUTS, cycle([64, 33, 7, 129, 100, 200]), strict=False))
N_IN = 512


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one matrix of each type, named as its type."""
    entries, data = [], b""
    for name, blocks in matrices().items():
        entries.append(tensor(name, (N_IN, len(blocks)), name, len(data)))
        data += blocks.tobytes() + bytes(-blocks.nbytes % 32)
    content = gguf([auto("general.architecture", "llama")], entries, data)
    return write(tmp_path_factory.mktemp("weights") / "types.gguf", content)


@cache
def matrices() -> dict[str, np.ndarray]:
    return {name: random_blocks(name, n_out, N_IN) for name, n_out in HEIGHTS.items()}


def declared() -> list[Weight]:
    return [Weight(name, LAYOUTS[name], n_out, N_IN) for name, n_out in HEIGHTS.items()]


def check(packed: list[Weight]) -> None:
    """Every row of every matrix is what gguf-py reads."""
    assert len(packed) == len(LAYOUTS)
    for weight in packed:
        got = lookup(weight.name, weight, N_IN, list(range(weight.n_out)))
        expected = naive.weights(matrices()[weight.name], weight.name)
        assert got.tobytes() == np.ascontiguousarray(expected, np.float32).tobytes(), weight.name


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("slice_bytes", [1, 50_000, weights.SLICE])
def test_packed_weights_have_the_values_of_the_file(n_threads, slice_bytes, path, monkeypatch):
    monkeypatch.setattr(weights, "SLICE", slice_bytes)
    with open_gguf(path) as gguf:
        packed = declared()
        memory = weights.pack(gguf, packed, team(n_threads))
    check(packed)  # the file is closed: nothing of it is used any more
    assert memory.nbytes >= weights.total_bytes(packed)


def test_progress_counts_the_bytes_of_the_file(path, monkeypatch):
    monkeypatch.setattr(weights, "SLICE", 50_000)
    seen: list[tuple[int, int]] = []
    with open_gguf(path) as gguf:
        weights.pack(gguf, declared(), team(1), lambda *done: seen.append(done))
    total = sum(blocks.nbytes for blocks in matrices().values())
    done = [d for d, _ in seen]
    assert {t for _, t in seen} == {int(total)}
    assert done == sorted(set(done)) and done[-1] == total and len(done) > len(HEIGHTS)


def test_weights_lie_one_after_the_other_on_cache_lines(path):
    packed = declared()
    with open_gguf(path) as gguf:
        memory = weights.pack(gguf, packed, team(1))
    start = memory.ctypes.data
    for weight in packed:
        assert weight.address % 64 == 0
        assert weight.address == start
        start += -(-weight.nbytes // 64) * 64
    assert start - memory.ctypes.data == weights.total_bytes(packed)


def test_memory_is_that_of_the_file_to_a_few_percent(path):
    """Whole panels of 32 rows cost what is left of the last; matrices of models are multiples of 32, or large."""
    for name, layout in LAYOUTS.items():
        for n_out in (4096, 32001):
            growth = Weight(name, layout, n_out, N_IN).nbytes / (n_out * N_IN * layout.bits / 8)
            assert 1 <= growth <= 1.01
            assert layout.bits <= 1.06 * layout.type.bits or name in RARE


def test_pages_of_the_file_are_let_go_behind_it(path, monkeypatch):
    """The mapped file can be read again all the same, from the system's cache."""
    released = 0

    class Buffer:
        def __init__(self, buffer: mmap.mmap) -> None:
            self.buffer = buffer

        def madvise(self, advice: int, start: int, nbytes: int) -> None:
            nonlocal released
            assert advice == mmap.MADV_DONTNEED and start % mmap.PAGESIZE == 0 and nbytes % mmap.PAGESIZE == 0
            released += nbytes
            self.buffer.madvise(advice, start, nbytes)

    def locate(self: GGUF, name: str) -> tuple[Buffer, int, int]:
        buffer, *where = original(self, name)
        return Buffer(buffer), *where

    original = GGUF.locate
    with open_gguf(path) as gguf:
        before = {name: gguf.data(name).tobytes() for name in HEIGHTS}
        monkeypatch.setattr(GGUF, "locate", locate)
        monkeypatch.setattr(GGUF, "data", lambda self, name: np.frombuffer(before[name], np.uint8))
        weights.pack(gguf, declared(), team(1))
        monkeypatch.undo()
        assert {name: gguf.data(name).tobytes() for name in HEIGHTS} == before
    total = sum(map(len, before.values()))
    if hasattr(mmap, "MADV_DONTNEED"):
        assert total - 2 * mmap.PAGESIZE * len(HEIGHTS) <= released <= total


def test_too_little_memory_is_one_line(path, monkeypatch):
    def none(nbytes: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(cpu, "allocate", none)
    packed = declared()
    with open_gguf(path) as gguf, pytest.raises(QllamaError, match=f"needs? {weights.total_bytes(packed)} bytes"):
        weights.pack(gguf, packed, team(1))


def test_extreme_scales_are_packed_as_they_are():
    """Zero, both signs, the ends of f16, subnormals; a group's scale of one byte is -128."""
    scales = np.array([0.0, -0.0, 65504, -65504, 6e-8, -6e-8, 1, 2**-14], np.float16)
    for name in [name for name in naive.PARTS if name in LAYOUTS]:
        size, parts = LAYOUTS[name].type.nbytes, naive.PARTS[name]
        blocks = np.random.default_rng(1).integers(0, 256, (len(scales), size), np.uint8)
        for at in [at for at in (parts.d, parts.dmin) if at is not None]:
            blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
        for at, ones in parts.scales.items():
            blocks[:, at : at + len(ones)] = 128
        got = lookup(name, pack(name, blocks), LAYOUTS[name].type.block, list(range(len(scales))))
        assert got.tobytes() == np.ascontiguousarray(naive.weights(blocks, name)).tobytes()
