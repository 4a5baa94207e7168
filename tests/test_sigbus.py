"""A file that is cut off or changed while it is in use: one line, and what there was stays."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shared
from fault_probe import hostile

from qllama.atomic import OutputFiles
from qllama.errors import FileError
from qllama.llm import LLM
from qllama.session import Session


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copy(shared("models/books-5m-f16.gguf"), tmp_path / "model\x1b.gguf"))


@pytest.fixture(autouse=True)
def writable(model) -> None:
    model.chmod(0o644)


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut off there")
@pytest.mark.parametrize("what", ["cut", "write"])
def test_while_the_weights_are_read(model, what) -> None:
    result = hostile(f"{what}:{model}", "qllama.weights:_pack_one", "run", model, "-p", "a", "-n", 1, "-q")
    reason = "was cut off while" if what == "cut" else "was changed by another program"
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("qllama: error: ") and "model\\x1b.gguf" in line and reason in line


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut off there")
@pytest.mark.parametrize("what", ["cut", "write"])
def test_while_it_is_quantized(model, what) -> None:
    out = model.with_name("out.gguf")
    out.write_text("what the user had")
    args = ("quantize", "--force", model, out, "Q4_0")
    result = hostile(f"{what}:{model}", "qllama.quantize.run:_measure", *args)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert out.read_text() == "what the user had"


def test_a_part_of_a_split_is_among_those_named(tmp_path, model) -> None:
    from qllama.gguf import open_gguf
    from qllama.split import plan_split, write_parts

    with open_gguf(model) as gguf:
        write_parts(gguf, plan_split(gguf, str(tmp_path / "m"), 20))
    first = min(tmp_path.glob("m-00001-*"))
    result = hostile(f"cut:{first}", "qllama.weights:_pack_one", "run", first, "-p", "a", "-n", 1, "-q")
    assert result.returncode == 2 and "m-00001-of-" in result.stderr and "another of its parts" in result.stderr


def test_a_library_takes_no_signal() -> None:
    script = "import os, signal; from qllama.llm import LLM\nLLM(); os.kill(os.getpid(), signal.SIGBUS)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert result.returncode == -7 or result.returncode == -10  # Linux's number, macOS's
    assert b"qllama: error" not in result.stderr


def test_a_changed_model_is_told_once_between_turns(tmp_path) -> None:
    path = Path(shutil.copy(shared("models/stories260K-f32.gguf"), tmp_path))
    path.chmod(0o644)
    llm = LLM(path, chat_template="chatml")
    session = Session(llm, n_predict=2)
    list(session.ask("one"))
    assert session.history.warnings == []
    before = llm.eval([1, 2, 3])
    with path.open("r+b") as file:
        file.truncate(5000)
    list(session.ask("two"))
    list(session.ask("three"))
    (warning,) = session.history.warnings
    assert str(path) in warning and "has changed" in warning
    assert (llm.eval([1, 2, 3]) == before).all()


def test_a_changed_input_leaves_the_old_output(tmp_path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    out.write_text("old")
    source.write_text("in")
    with pytest.raises(FileError, match="was changed by another program"), OutputFiles([out], [1], [source], True):
        source.write_text("in two")
    assert out.read_text() == "old" and {p.name for p in tmp_path.iterdir() if p.name in ("in", "out")} == {"in", "out"}
    assert not [p for p in tmp_path.iterdir() if "qllama-tmp" in p.name]


def test_a_new_file_in_the_place_of_an_input_is_no_matter(tmp_path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    source.write_text("in")
    with OutputFiles([out], [1], [source], False) as files:
        files.files[0].write(b"x")
        (tmp_path / "new").write_text("another")
        (tmp_path / "new").replace(source)
    assert out.read_bytes() == b"x"
