"""Models in parts and whole again: the same tensors, llama-gguf-split's names and keys."""

import os
from itertools import pairwise

import pytest
from conftest import shared
from gguf_maker import LLAMA, LLAMA_TENSORS, model, write

from qllama.cli import main
from qllama.errors import InputError
from qllama.gguf import open_gguf
from qllama.split import plan_split


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "in.gguf", model(LLAMA, LLAMA_TENSORS))


def run(capsys, *args) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("args", [(), ("--max-tensors", 7), ("--max-size", "1M"), ("--no-tensor-first-split",)])
def test_split_and_merged_is_the_same_file(tmp_path, capsys, args):
    source = shared("models/books-5m-Q4_0.gguf")
    code, out, err = run(capsys, "split", *args, source, tmp_path / "m")
    parts = sorted(os.listdir(tmp_path))
    assert code == 0 and err == "" and len(out.splitlines()) == len(parts)
    assert parts == [f"m-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    with open_gguf(tmp_path / parts[-1]) as gguf:
        keys = ("split.no", "split.count", "split.tensors.count")
        assert [gguf.metadata.type_of(k) for k in keys] == ["u16", "u16", "i32"]
        assert gguf.metadata["split.tensors.count"] == len(gguf.tensors)
    assert run(capsys, "merge", tmp_path / parts[0], tmp_path / "whole.gguf")[0] == 0
    assert (tmp_path / "whole.gguf").read_bytes() == source.read_bytes()


def test_limits_hold(small, tmp_path):
    with open_gguf(small) as gguf:
        by_number = plan_split(gguf, "m", max_tensors=6)
        assert [len(p.tensors) for p in by_number] == [6, 6, 6, 2]
        parts = [[t.nbytes for t in p.tensors] for p in plan_split(gguf, "m", max_size=25_000)]
        assert len(parts) > 1 and max(map(sum, parts)) <= 25_000
        assert all(sum(part) + after[0] > 25_000 for part, after in pairwise(parts))  # the next did not fit
        empty = plan_split(gguf, "m", no_tensor_first_split=True)
        assert [len(p.tensors) for p in empty] == [0, 20]


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
    code, out, _ = run(capsys, "split", "--dry-run", "--max-tensors", 10, small, tmp_path / "m.gguf")
    assert code == 0 and "m-00001-of-00002.gguf: 10 tensors" in out
    assert os.listdir(tmp_path) == ["in.gguf"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-size", "1X"), "found 1X"),
        (("--max-size", "100"), "a part may have 100"),
        (("--max-tensors", "0"), "needed 1 or more"),
        (("--max-tensors", "1", "--max-size", "1M"), "needed one of them"),
    ],
)
def test_limits_that_are_refused(small, tmp_path, capsys, args, message):
    code, _, err = run(capsys, "split", *args, small, tmp_path / "m")
    assert code == 2 and message in err and os.listdir(tmp_path) == ["in.gguf"]


def test_what_is_not_split_or_there_is_refused(small, tmp_path, capsys):
    code, _, err = run(capsys, "merge", small, tmp_path / "o.gguf")
    assert code == 2 and "is not split" in err
    assert run(capsys, "split", small, tmp_path / "m")[0] == 0
    assert run(capsys, "split", small, tmp_path / "m")[0] == 2
    assert run(capsys, "split", "--force", small, tmp_path / "m")[0] == 0
    part = tmp_path / "m-00001-of-00001.gguf"
    code, _, err = run(capsys, "merge", "--force", part, part)
    assert code == 2 and "is the same file" in err


def test_more_parts_than_a_file_can_count(small, monkeypatch):
    with open_gguf(small) as gguf:
        monkeypatch.setattr("qllama.split._by_number", lambda gguf, most: [[]] * 65_536)
        with pytest.raises(InputError, match="the most are 65535"):
            plan_split(gguf, "m")
