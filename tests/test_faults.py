"""Faults of operation, as a user meets them: each ends in a normal run or in one line, and nothing is lost."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import shared
from fault_probe import hostile
from soak import growth, soak
from test_run import QLLAMA, error_line, qllama, stories

resource = pytest.importorskip("resource", reason="no POSIX limits here")

TEXT = ("-n", "3", "--temp", "0", "-q")
MIB = 1 << 20


def books() -> Path:
    return shared("models/books-5m-f16.gguf")


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.fixture
def out(tmp_path) -> Path:
    """Where something is already."""
    path = tmp_path / "out.gguf"
    path.write_text("what the user had")
    return path


def is_clean(errors: str) -> bool:
    """No traceback, and one line of an error at most."""
    return "Traceback" not in errors and errors.count("error:") <= 1 and "internal error" not in errors


# ---- Ctrl-C, kill -9, a full disk, the end of memory, in each phase of each command

RUN = ("run", "MODEL", "-p", "Once", *TEXT)
PHASES = [
    ("qllama.gguf:_open_part", RUN),
    ("qllama.jit:_compile_all", RUN),
    ("qllama.weights:_pack_one", RUN),
    ("qllama.model:Model._step", RUN),
    ("qllama.sampling.chain:SamplerChain.sample", RUN),
    ("qllama.model:Model._step", ("chat", "MODEL", "-p", "a", "-st", "--chat-template", "chatml", *TEXT[:2])),
    ("qllama.model:Model._step", ("bench", "-m", "MODEL", "-p", "8", "-n", "4", "-r", "1")),
    ("qllama.model:Model._step", ("perplexity", "-m", "MODEL", "-f", "TEXT", "-c", "32", "--chunks", "1")),
    ("qllama.quantize.run:_measure", ("quantize", "--force", "BOOKS", "OUT", "Q8_0")),
    ("qllama.atomic:_create", ("quantize", "--force", "BOOKS", "OUT", "Q8_0")),
    ("qllama.split:_pieces", ("split", "--split-max-tensors", "20", "BOOKS", "PREFIX")),
]
IDS = [f"{args[0]}-{place.rpartition(':')[2]}" for place, args in PHASES]


def filled(args: tuple[str, ...], tmp_path: Path) -> list[str]:
    """The arguments with paths in them."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. " * 20)
    paths = {"MODEL": stories(), "BOOKS": books(), "TEXT": text, "OUT": tmp_path / "out.gguf", "PREFIX": tmp_path / "p"}
    return [str(paths.get(arg, arg)) for arg in args]


@pytest.mark.parametrize("fault", ["interrupt", "full", "memory"])
@pytest.mark.parametrize(("place", "args"), PHASES, ids=IDS)
def test_a_fault_in_each_phase(place, args, fault, out, tmp_path) -> None:
    fresh = {"QLLAMA_CACHE": str(tmp_path / "cache")} if "jit" in place else {}
    environment = {**os.environ, "QLLAMA_DATA": str(tmp_path / "data"), **fresh}
    result = hostile(fault, place, *filled(args, tmp_path), env=environment)
    assert result.returncode == 130 if fault == "interrupt" else result.returncode in (1, 2), result
    assert is_clean(result.stderr), result.stderr
    if fault != "interrupt":
        assert result.stderr.splitlines()[-1].startswith("qllama: error: "), result.stderr
    assert out.read_text() == "what the user had"
    assert {path.name for path in tmp_path.iterdir()} <= {"out.gguf", "text.txt", "cache", "data"}


def test_a_killed_quantize_leaves_the_old_file_and_the_next_one_cleans_up(out, tmp_path) -> None:
    args = ("quantize", "--force", books(), out, "Q8_0")
    assert hostile("kill", "qllama.quantize.run:_measure", *args).returncode == -9
    assert out.read_text() == "what the user had" and len(list(tmp_path.iterdir())) == 2
    assert qllama(*args).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_file_that_may_not_grow_leaves_the_old_one(out, tmp_path) -> None:
    limit = limited(resource.RLIMIT_FSIZE, MIB)
    line = error_line(qllama("quantize", "--force", books(), out, "Q8_0", preexec_fn=limit))
    assert str(out) in line and "cannot be written: File too large" in line
    assert out.read_text() == "what the user had" and len(list(tmp_path.iterdir())) == 1


# ---- memory


# From none at all to just enough: where it ends depends on the machine, that it ends well does not.
@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of the address space")
@pytest.mark.parametrize("mib", [60, 160, 240, 300, 320, 400])
def test_little_memory(mib, tmp_path) -> None:
    result = qllama(*filled(RUN, tmp_path), preexec_fn=limited(resource.RLIMIT_AS, mib * MIB))
    errors = result.stderr.decode()
    assert result.returncode in (0, 1, 2) and is_clean(errors), errors
    assert len(errors.splitlines()) == (result.returncode != 0)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of the address space")
def test_a_context_beyond_the_limit_says_what_fits() -> None:
    limit = limited(resource.RLIMIT_AS, 1024 * MIB)
    line = error_line(qllama("run", stories(), "-p", "a", *TEXT, "-c", 50_000_000, preexec_fn=limit))
    assert "the largest context that fits is " in line
    fits = line.rsplit(" ", 1)[1]
    assert qllama("run", stories(), "-p", "a", *TEXT, "-c", fits, preexec_fn=limit).returncode == 0


# ---- streams

COMMANDS = [
    ("info", "MODEL"),
    ("tokenize", "MODEL", "hello"),
    ("bench", "-m", "MODEL", "-p", "8", "-n", "4", "-r", "1"),
    ("perplexity", "-m", "MODEL", "-f", "TEXT", "-c", "32", "--chunks", "1"),
    ("chat", "MODEL", "-p", "a", "-st", "--chat-template", "chatml", "-n", "2"),
    ("run", "MODEL", "-p", "a", "-n", "2"),
]


@pytest.mark.parametrize("args", COMMANDS, ids=lambda args: args[0])
@pytest.mark.parametrize(
    ("where", "code"),
    [(">&-", 2), ("> /dev/full", 1), ("2>&-", 0), ("<&-", 0), ("| true", 141)],
)
def test_streams_that_are_closed_or_full(args, where, code, tmp_path) -> None:
    if where == "> /dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    command = f"{shlex.join([*QLLAMA, *filled(args, tmp_path)])} {where}"
    command += "; exit ${PIPESTATUS[0]}" if "|" in where else ""
    environment = {**os.environ, "QLLAMA_DATA": str(tmp_path / "data")}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == code, result
    assert is_clean(result.stderr)
    if code in (1, 2):
        assert result.stderr.splitlines()[-1].startswith("qllama: error: ")


# ---- text that is no UTF-8, other locales


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_bytes_go_through_in_any_locale(locale) -> None:
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    prompt = b"caf\xc3\xa9 \xff"
    command = [arg.encode() for arg in [*QLLAMA, "run", str(stories()), "--echo", *TEXT, "-p"]]
    result = subprocess.run([*command, prompt], capture_output=True, env=environment, timeout=60)
    assert result.returncode == 0 and result.stderr == b"" and result.stdout.startswith(prompt)
    missing = [*[arg.encode() for arg in [*QLLAMA, "info"]], b"/none/\xff\x1b[2J.gguf"]
    result = subprocess.run(missing, capture_output=True, env=environment, timeout=60)
    assert b"\x1b" not in result.stderr and "No such file" in error_line(result)


# ---- the context, absurd options


def test_a_full_context_ends_the_text_and_says_so() -> None:
    result = qllama("run", stories(), "-p", "a", "-n", "-1", "-c", "64", "--ignore-eos")
    assert result.returncode == 0 and b"the context is full" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "-5"),
        ("-t", "100000"),
        ("-t", "99999999999999999999"),
        ("-c", "99999999999999999999"),
        ("-b", "99999999999"),
        ("-n", "-99"),
        ("--temp", "inf"),
        ("--top-p", "nan"),
        ("--seed", "x"),
        ("--keep", "-1"),
        ("--override-kv", "llama.block_count=int:99999999999999999999"),
    ],
    ids="".join,
)
def test_absurd_options_are_refused(options) -> None:
    error_line(qllama("run", stories(), "-p", "a", *TEXT, *options))


# ---- where there is little of everything


def test_one_core_gives_the_same_text(tmp_path) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    core = min(os.sched_getaffinity(0))
    alone = qllama(*filled(RUN, tmp_path), preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert alone.returncode == 0 and alone.stdout == qllama(*filled(RUN, tmp_path)).stdout


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc", ""])
def test_no_home(home, tmp_path) -> None:
    from qllama import jit

    folder = jit.cache_folder()
    assert folder is not None
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    environment |= {"QLLAMA_CACHE": str(folder.parent.parent), **({} if home is None else {"HOME": home})}
    chat = ("chat", stories(), "-p", "a", "-st", "--chat-template", "chatml", "-n", "2", "-q")
    for args in (filled(RUN, tmp_path), chat):
        result = qllama(*args, env=environment)
        assert result.returncode == 0 and is_clean(result.stderr.decode()), result


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs a file system that cannot be written")
def test_a_file_system_that_cannot_be_written() -> None:
    error_line(qllama("quantize", books(), "/proc/out.gguf", "Q8_0"))
    environment = {**os.environ, "QLLAMA_DATA": "/proc/data"}
    chat = ("chat", stories(), "-i", "--chat-template", "chatml", "-n", "2", "-q")
    result = qllama(*chat, stdin=b"hello\n", env=environment)
    assert result.returncode == 0 and b"cannot keep the conversation" in result.stdout


def test_few_descriptors(tmp_path) -> None:
    for n in (6, 10, 20):
        result = qllama(*filled(RUN, tmp_path), preexec_fn=limited(resource.RLIMIT_NOFILE, n))
        assert result.returncode in (0, 1, 2) and is_clean(result.stderr.decode()), result


def test_two_processes_that_compile_at_once(tmp_path) -> None:
    script = "from qllama import jit; print(jit.load(['norm.rms_f32'])['norm.rms_f32'].nbytes)"
    environment = {**os.environ, "QLLAMA_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0] == results[1] and results[0][1] == b""
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".o"]


# ---- a long conversation


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_long_conversation_takes_no_more_and_more(tmp_path) -> None:
    samples = soak(stories(), 100, 50, tmp_path, 10)
    rss, descriptors, threads = growth(samples)
    assert len(samples) == 10 and abs(descriptors) <= 1 and threads == 0
    assert rss < 4096  # KiB; the logits of every token, kept by mistake, would be 10 MiB
