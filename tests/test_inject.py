"""Failing calls, some of each kind; `python tests/inject.py` tries all."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shared
from inject import COMMANDS, KINDS, OLD, Outcome, _lost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks after importing, and asks Linux for limits")

NUMBERS = (1, 5, 31)


def test_calls_that_fail_end_in_one_line() -> None:
    shared("models/stories260K-f32.gguf")
    script = str(Path(__file__).with_name("inject.py"))
    result = subprocess.run([sys.executable, script, *map(str, NUMBERS)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len(rows) == len(COMMANDS) * len(KINDS)
    assert all(int(row[2]) > 0 for row in rows if row[1] != "start")
    assert sum(int(row[4]) for row in rows) > 10  # commands that ended by it


@pytest.mark.parametrize(
    ("code", "errors"),
    [(-7, ""), (134, ""), (1, "Traceback"), (2, "error: a\nerror: b"), (1, "qllama: error: internal error, ...")],
)
def test_what_counts_as_a_problem(code, errors) -> None:
    assert Outcome(True, code, errors, "").problem()
    assert not Outcome(True, 2, "qllama: error: one line\n", "").problem()


def test_what_counts_as_lost(tmp_path) -> None:
    out = tmp_path / "out"
    for content, code, command, lost in (
        (OLD, 2, "quantize", False), (OLD, 0, "quantize", True), ("GGUF...", 0, "quantize", False),
        ("", 2, "quantize", True), ("GGUF", 0, "run", True),
    ):  # fmt: skip
        out.write_text(content)
        assert bool(_lost(out, code, command)) is lost
