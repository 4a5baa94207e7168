"""Keys and values on disk: bits come back, damage is noticed, and only what changed is written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st

from qllama.kv_file import KVFile, _q8_0, prune
from qllama.llm import LLM
from qllama.model import Model
from qllama.quant.q8_0 import decode

STORIES = "models/stories260K-f32.gguf"
TOKENS = [1, *((7 * i) % 509 + 3 for i in range(299))]
NEXT = [5, 6, 7]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Logits after NEXT, without an interruption."""
    model = Model(shared(STORIES), n_threads=1)
    model.forward(TOKENS, 0)
    logits = model.forward(NEXT, len(TOKENS), 3)
    model.close()
    return logits


@pytest.fixture
def model():
    made = Model(shared(STORIES), n_threads=2)
    yield made
    made.close()


def with_cache(kind: str) -> Model:
    """The model with a cache of this type."""
    return LLM(shared(STORIES), n_threads=2, type_k=kind, type_v=kind).model


def save(path: Path, exact: bool, kind: str = "f16") -> KVFile:
    """The state of a model after TOKENS, in a file."""
    model = with_cache(kind)
    model.forward(TOKENS, 0)
    kv = KVFile(path, model, exact)
    kv.save()
    model.close()
    return kv


def test_exact_state_gives_the_same_bits(tmp_path: Path, model: Model, expected: np.ndarray) -> None:
    save(tmp_path / "a.kv", exact=True)
    assert KVFile(tmp_path / "a.kv", model, exact=True).load() == 300
    assert model.cached == TOKENS
    np.testing.assert_array_equal(model.forward(NEXT, 300, 3), expected)


def test_eight_bits_are_half_as_large_and_near(tmp_path: Path, model: Model, expected: np.ndarray) -> None:
    save(tmp_path / "exact.kv", exact=True)
    save(tmp_path / "a.kv", exact=False)
    assert KVFile(tmp_path / "a.kv", model).load() == 300
    logits = model.forward(NEXT, 300, 3)
    assert 0 < np.abs(logits - expected).max() < 0.1
    ratio = (tmp_path / "a.kv").stat().st_size / (tmp_path / "exact.kv").stat().st_size
    assert ratio == pytest.approx(34 / 64)


def test_f32_caches(tmp_path: Path) -> None:
    for exact in (True, False):
        save(tmp_path / "a.kv", exact, "f32")
        model = with_cache("f32")
        assert KVFile(tmp_path / "a.kv", model, exact).load() == 300
        model.close()
        other = Model(shared(STORIES), n_threads=2)
        assert KVFile(tmp_path / "a.kv", other, exact).load() == 0  # of another kind of cache
        other.close()


def test_q8_0_caches_keep_their_bits_in_any_case(tmp_path: Path) -> None:
    tokens = [1, *range(300, 320)]
    first = LLM(type_k="q8_0", type_v="q8_0", n_threads=2)
    first.model.forward(tokens, 0)
    KVFile(tmp_path / "a.kv", first.model).save()
    expected = first.model.forward(NEXT, len(tokens), 3)
    second = LLM(type_k="q8_0", type_v="q8_0", n_threads=2)
    assert KVFile(tmp_path / "a.kv", second.model).load() == len(tokens)
    np.testing.assert_array_equal(second.model.forward(NEXT, len(tokens), 3), expected)
    third = LLM(type_k="q8_0", type_v="f16", n_threads=2)
    assert KVFile(tmp_path / "a.kv", third.model).load() == 0
    for llm in (first, second, third):
        llm.close()


def test_only_blocks_that_changed_are_written(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.forward(TOKENS, 0)
    kv = KVFile(tmp_path / "a.kv", model, exact=True)
    kv.save()
    written = []
    encoded = kv._encoded
    monkeypatch.setattr(kv, "_encoded", lambda block: written.append(block) or encoded(block))
    model.forward(NEXT, 300)
    kv.save()
    assert len(written) == 1  # the second of two
    model.forward(NEXT, 10)
    kv.save()
    assert len(written) == 2 and (tmp_path / "a.kv").stat().st_size == sum(nbytes for _, _, nbytes in model.cache.parts)
    fresh = Model(shared(STORIES), n_threads=2)
    assert KVFile(tmp_path / "a.kv", fresh, exact=True).load() == 13
    assert fresh.cached == TOKENS[:10] + NEXT
    fresh.close()


def test_damage_costs_what_is_behind_it(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "a.kv"
    save(path, exact=True)
    good = path.read_bytes()
    block = len(good) // 2
    for content, n in (
        (good[:block] + b"x" + good[block + 1 :], 256),
        (good[:-1], 256),
        (b"x" + good[1:], 0),
        (b"", 0),
        (good + b"more", 300),
    ):
        path.write_bytes(content)
        assert KVFile(path, model, exact=True).load() == n
        assert model.cached == TOKENS[:n]
    path.unlink()
    assert KVFile(path, model, exact=True).load() == 0


def test_what_does_not_fit_counts_as_not_there(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.kv"
    assert KVFile(path, model).load() == 0
    kv = save(path, exact=True)
    assert KVFile(path, model, exact=False).load() == 0
    other = LLM()  # another model
    assert KVFile(path, other.model, exact=True).load() == 0
    other.close()
    with monkeypatch.context() as patch:
        patch.setattr("qllama.jit.cache_key", lambda: "other kernels")
        assert KVFile(path, model, exact=True).load() == 0
    header = json.loads(kv.index.read_bytes())
    for change in (
        {"tokens": "x"},
        {"tokens": [1.5]},
        {"checksums": []},
        {"format": 2},
        {"model": None},
        {"parts": []},
    ):
        kv.index.write_text(json.dumps(header | change))
        assert KVFile(path, model, exact=True).load() == 0
    for text in ("", "[]", "{}", "[" * 100_000):
        kv.index.write_text(text)
        assert KVFile(path, model, exact=True).load() == 0
    assert model.cached == []


def test_a_smaller_context_takes_what_fits(tmp_path: Path) -> None:
    save(tmp_path / "a.kv", exact=True)
    small = Model(shared(STORIES), n_ctx=280, n_threads=2)
    assert KVFile(tmp_path / "a.kv", small, exact=True).load() == 280
    small.close()


def test_old_states_are_deleted(tmp_path: Path) -> None:
    for i in range(7):
        for name in (f"{i}.kv", f"{i}.kv.json", f"{i}.jsonl"):
            (tmp_path / name).write_text("")
        os.utime(tmp_path / f"{i}.kv", (i, i))
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.kv")) == [f"{i}.kv" for i in range(2, 7)]
    assert len(list(tmp_path.glob("*.kv.json"))) == 5 and len(list(tmp_path.glob("*.jsonl"))) == 7
    prune(tmp_path / "none")


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=32, max_size=32))
def test_eight_bits(values: list[float]) -> None:
    rows = np.array([values], np.float32)
    again = decode(_q8_0(rows.copy()))
    scale = np.abs(rows).max() / 127
    assert np.abs(again - rows).max() <= scale * (0.5 + 127 / 1024) + 2**-24 * 127


def test_what_is_not_finite_is_stored_as_zero() -> None:
    rows = np.full((1, 32), np.nan, np.float32)
    rows[0, :2] = np.inf, 1
    assert decode(_q8_0(rows))[0].tolist() == pytest.approx([0.0, 1.0] + [0.0] * 30, rel=1e-3)
