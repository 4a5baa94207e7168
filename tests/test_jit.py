"""The kernel cache: what is kept, what is trusted, and that nothing about it ever stops a run.

One kernel, the smallest, stands for all. Most tests replace the compiler by one that hands out its finished code.
"""

import errno
import functools
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from qllama import cpu, jit
from qllama.errors import QllamaError
from qllama.kernels import ctl
from qllama.plan import OUTPUTS, BoundPlan, Plan
from qllama.team import aligned

NAME = "ffn.last_rows"
OTHER = jit.Code("ffn.other", (), b"")


@pytest.fixture(scope="module")
def code() -> jit.Code:
    """NAME, compiled once for this module."""
    (made,) = jit._compile_all([NAME])
    return made


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a process that has loaded nothing yet and whose cache is empty; gives the cache's root."""
    root = tmp_path / "cache"
    monkeypatch.setenv("QLLAMA_CACHE", str(root))
    monkeypatch.setattr(jit, "_loaded", {})
    monkeypatch.setattr(jit, "engine", functools.cache(jit.engine.__wrapped__))
    jit.cache_folder.cache_clear()
    yield root
    jit.cache_folder.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, code: jit.Code) -> list[str]:
    """The names that were given to the compiler, which is replaced."""
    names: list[str] = []

    def compile_all(wanted: list[str]) -> Iterator[jit.Code]:
        names.extend(wanted)
        yield code

    monkeypatch.setattr(jit, "_compile_all", compile_all)
    return names


def file_of(root: Path) -> Path:
    return root / "kernels" / jit.cache_key() / f"{NAME}.o"


def put(root: Path, content: bytes) -> Path:
    """`content` where the cache keeps NAME."""
    path = file_of(root)
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(content)
    return path


def copies_rows(kernel: jit.Kernel) -> bool:
    """Whether NAME works: the last 2 of 3 rows."""
    x, out = np.arange(48, dtype=np.float32).reshape(3, 16), np.zeros((2, 16), np.float32)
    plan = Plan()
    plan.add(NAME, rows=OUTPUTS, x=x, out=out, n=16, ld=64)
    bound = BoundPlan(plan, 0, {NAME: kernel})
    bound.set_step(n_tokens=3, n_out=2)
    control, result = aligned(ctl.size(2) // 8, np.int64), np.zeros(2, np.int64)
    at = result.ctypes.data
    call = jit.callable_at(kernel.address)
    status = call(at, at + 8, bound.arguments[0].ctypes.data, bound.step.ctypes.data, control.ctypes.data, 1)
    return status == 0 and np.array_equal(out, x[1:])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "qllama" and r.levelno >= logging.WARNING]


# ---- loading


def test_what_was_compiled_is_kept_and_needs_no_compiler_again(fresh, monkeypatch, caplog):
    progress: list[tuple[int, int]] = []
    kernel = jit.load([NAME], lambda *done: progress.append(done))[NAME]
    assert copies_rows(kernel)
    assert progress == [(0, 1), (1, 1)]
    assert kernel.compiled and kernel.seconds > 0
    assert [p.name for p in file_of(fresh).parent.iterdir()] == [f"{NAME}.o"]
    assert not file_of(fresh).parent.stat().st_mode & 0o077
    script = (
        f"import sys; from qllama import jit; k = jit.load(['{NAME}'])['{NAME}']\n"
        "print('numba' in sys.modules, k.compiled, k.seconds)"
    )
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (second.stdout.strip(), second.stderr) == (f"False False {kernel.seconds}", "")
    assert warnings(caplog) == []


def test_a_kernel_is_loaded_once(fresh, compiled):
    assert jit.load([NAME]) == jit.load([NAME, NAME])
    assert compiled == [NAME]


def test_code_is_the_same_after_writing_and_reading(code):
    stream = io.BytesIO(code.pack() + OTHER.pack())
    assert (jit.Code.read(stream), jit.Code.read(stream)) == (code, OTHER)
    with pytest.raises(EOFError):
        jit.Code.read(stream)


# ---- damage

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "cut in the object": lambda good: good[:-1],
    "cut in the header": lambda good: good[:20],
    "garbage": lambda good: bytes(range(256)) * 8,
    "another kernel": lambda good: OTHER.pack(),
    "a flipped bit": lambda good: good[:-100] + bytes([good[-100] ^ 1]) + good[-99:],
    "not an object": lambda good: b"[]\n",
    "keys are missing": lambda good: b"{}\n",
    "a size beyond all memory": lambda good: b'{"size": 1000000000000000000, "name": "x"}\n',
    "a size beyond 64 bits": lambda good: b'{"size": 1' + b"0" * 30 + b', "name": "x"}\n',
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_one_warning_and_compiled_again(how, fresh, compiled, caplog, code):
    path = put(fresh, DAMAGE[how](code.pack()))
    assert copies_rows(jit.load([NAME])[NAME])
    assert compiled == [NAME]
    (warning,) = warnings(caplog)
    assert NAME in warning and "\n" not in warning
    assert path.read_bytes() == code.pack(), "and is right from now on"


def test_no_flipped_bit_of_the_header_is_taken_for_the_truth(fresh, code):
    """It has the names of the arguments. (The object has a checksum.)"""
    good = code.pack()
    path = put(fresh, good)
    for i in range(good.index(b"\n") + 1):
        for bit in range(8):
            bad = good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :]
            path.write_bytes(bad)
            assert jit._cached(NAME) in (None, code), bad[max(0, i - 20) : i + 20]


# ---- nowhere to keep


def a_file_in_the_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.write_text("not a folder")


def a_folder_for_reading_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(root).parent.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write whatever the mode


def a_folder_that_cannot_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)


def a_folder_that_others_can_write(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(root).parent.mkdir(parents=True)
    file_of(root).parent.chmod(0o777)


def a_folder_in_one_that_others_can_write(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could put a folder of theirs in its place while we run."""
    (root / "kernels").mkdir(parents=True)
    (root / "kernels").chmod(0o777)


def a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)


NOWHERE = [
    a_file_in_the_way,
    a_folder_for_reading_only,
    a_folder_that_cannot_be_made,
    a_folder_that_others_can_write,
    a_folder_in_one_that_others_can_write,
    a_full_disk,
]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX owners and modes here")
@pytest.mark.parametrize("make", NOWHERE, ids=lambda f: f.__name__)
def test_a_cache_that_cannot_be_used_is_one_warning(make, fresh, compiled, caplog, monkeypatch):
    make(fresh, monkeypatch)
    assert copies_rows(jit.load([NAME])[NAME])
    jit.load([NAME])
    assert compiled == [NAME]
    (warning,) = warnings(caplog)
    assert "cache" in warning and "\n" not in warning
    assert not list(fresh.rglob("*.tmp")) and not list(fresh.rglob("*.o"))


def test_a_kernel_that_others_could_have_put_there_is_not_run(fresh, compiled, caplog):
    path = put(fresh, b"")
    path.parent.chmod(0o777)
    jit.load([NAME])
    assert compiled == [NAME]
    assert path.read_bytes() == b""


def test_a_second_place_is_taken_when_the_first_cannot_be_used(fresh, compiled, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cpu, "cache_roots", lambda: [tmp_path / "file", fresh])
    jit.load([NAME])
    assert file_of(fresh).exists()
    assert warnings(caplog) == []


# ---- the key


def key(*package: str) -> str:
    return jit.cache_key.__wrapped__(*package)


def test_the_key_tells_isas_apart(monkeypatch):
    found = set()
    for isa in cpu.ISAS:
        monkeypatch.setattr(cpu, "isa", lambda isa=isa: isa)
        found.add(key())
    assert len(found) == len(cpu.ISAS)


def test_the_key_tells_features_of_a_cpu_apart(monkeypatch):
    monkeypatch.setattr(cpu, "isa", lambda: cpu.ISAS[0])
    name, features = cpu.host()
    before = key()
    monkeypatch.setattr(cpu, "host", lambda: (name, {**features, "sse4a": not features.get("sse4a")}))
    assert key() != before


@pytest.mark.parametrize("package", ["numba", "llvmlite", "numpy"])
def test_the_key_tells_versions_apart(package, monkeypatch):
    before, version = key(), jit.version
    monkeypatch.setattr(jit, "version", lambda p: "0.0" if p == package else version(p))
    assert key() != before


# ggml.py has the sizes of blocks, which kernels multiply with.
SOURCES = ["jit.py", "simd/avx2.py", "kernels/q8_0.py", "kernels/layouts.py", "kernels/ctl.py", "ggml.py"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_key_tells_sources_apart(source, monkeypatch, tmp_path):
    shutil.copytree(Path(jit.__file__).parent, tmp_path / "qllama", ignore=shutil.ignore_patterns("__pycache__"))
    before = key()
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "qllama" / "jit.py"))
    assert key() == before
    with open(tmp_path / "qllama" / source, "a") as file:
        file.write("\n")
    assert key() != before


def test_the_key_of_encoders_depends_on_their_sources_and_that_of_kernels_does_not(monkeypatch, tmp_path):
    copy = tmp_path / "encoders"
    shutil.copytree(jit._sources(jit.ENCODERS), copy, ignore=shutil.ignore_patterns("__pycache__"))
    before, kernels = key(jit.ENCODERS), key()
    monkeypatch.setattr(jit, "_sources", lambda package: copy)
    assert key(jit.ENCODERS) == before
    with open(copy / "fits.py", "a") as file:
        file.write("\n")
    assert key(jit.ENCODERS) != before
    assert key() == kernels


# ---- the compiler


@pytest.mark.parametrize("name", ["ffn.nothing", "nothing.at_all"])
def test_a_kernel_that_does_not_compile_is_one_line(name, fresh):
    with pytest.raises(QllamaError) as caught:
        jit.load([name])
    message = str(caught.value)
    assert message.startswith(f"compiling {name} failed: ") and "\n" not in message
    assert caught.value.exit_code == 1


def test_a_compiler_that_dies_is_one_line(fresh, monkeypatch, tmp_path):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(QllamaError, match=f"^compiling {NAME} failed: the compiler died$"):
        jit.load([NAME])


def test_files_where_the_user_stands_are_not_run(fresh, monkeypatch, tmp_path):
    """A folder of model files may hold a queue.py that has nothing to do with us, or with anything good."""
    for name in ("queue", "numba", "llvmlite"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')\n")
    monkeypatch.chdir(tmp_path)
    assert copies_rows(jit.load([NAME])[NAME])


def test_a_folder_of_sources_that_cannot_be_listed_gives_no_key(monkeypatch) -> None:
    """A key without the sources would fit kernels of any version."""

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse)
    jit.cache_key.cache_clear()
    with pytest.raises(PermissionError):
        jit.cache_key()
