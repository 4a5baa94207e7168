"""The N-th call of a kind fails, for N = 1, 2, ...: whatever asks the system or takes memory, in one command.

By hand: `python tests/inject.py` tries every N of every kind and command; with numbers after it, only those. Each has a
process of its own, forked after the imports, where a call that Python makes fails, by an audit hook or a profile
function. The command must end by itself with exit code 0, 1 or 2 and one line of error at most, and what the user had
must be there.
"""

import errno
import importlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("QLLAMA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PATIENCE = 60  # seconds
OLD = "what the user had"

# kind: what fails (audit events, or names of built-in functions) and how
EVENTS: dict[str, tuple[set[str], int]] = {
    "open": ({"open"}, errno.EMFILE),
    "mmap": ({"mmap.__new__"}, errno.ENOMEM),
    "rename": ({"os.rename", "os.remove", "os.mkdir", "os.scandir", "os.listdir", "os.truncate"}, errno.EACCES),
    "start": ({"subprocess.Popen", "os.posix_spawn", "fcntl.flock"}, errno.EAGAIN),
}
CALLS: dict[str, tuple[set[str], int]] = {
    "read": ({"read", "readline", "readinto", "stat", "fstat", "lstat", "statvfs", "seek", "select"}, errno.EIO),
    "write": ({"write", "flush", "fsync", "truncate", "ftruncate", "close", "madvise"}, errno.ENOSPC),
    "memory": (
        {"empty", "zeros", "array", "frombuffer", "concatenate", "arange", "asarray", "ascontiguousarray", "fromiter"},
        errno.ENOMEM,
    ),
}
KINDS = (*EVENTS, *CALLS)

MODULES = (
    "run", "chat", "quantize", "repl", "progress", "prompt", "slash",
)  # fmt: skip
LIBRARIES = ("llvmlite.binding", "sentencepiece", "qllama.session", "qllama.quantize", "qllama.convert")

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "{model}", "-p", "Once", "-n", "4", "--temp", "0"),
    "chat": ("chat", "{model}", "-p", "a", "-st", "--chat-template", "chatml", "-n", "4", "--session", "one"),
    "quantize": ("quantize", "--force", "{model}", "{out}", "Q8_0"),
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `reached`: there was an N-th call, which failed."""

    reached: bool
    code: int  # negative: the signal
    errors: str
    lost: str  # what the user had and has no more

    def problem(self) -> str:
        """What is wrong with it; nothing if it is as promised."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}: {self.errors[-300:]!r}"
        if "Traceback" in self.errors or "internal error" in self.errors or self.errors.count("error: ") > 1:
            return self.errors[-600:]
        return self.lost


class Injector:
    """Lets the call number `n` of a kind fail."""

    def __init__(self, kind: str, n: int) -> None:
        self.names, self.errno = (EVENTS if kind in EVENTS else CALLS)[kind]
        self.left, self.done, self.off = n, False, False
        if kind in EVENTS:
            sys.addaudithook(self.audit)
        else:
            sys.setprofile(self.profile)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.off or event not in self.names:
            return
        path = args[0] if args and isinstance(args[0], str | bytes) else None
        if path is None or not os.fsdecode(path).endswith((".py", ".pyc")):
            self.count(path)

    def profile(self, frame: Any, event: str, function: Any) -> None:
        if event != "c_call" or self.off or frame.f_code.co_filename.startswith(("<frozen", __file__)):
            return
        if function.__name__ in self.names:
            self.count(None)

    def count(self, path: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.done = True
            if self.names is CALLS["memory"][0]:
                raise MemoryError
            raise OSError(self.errno, os.strerror(self.errno), path)


def attempt(kind: str, n: int, command: str, folder: Path) -> Outcome:
    """One command with one failure."""
    model, out, errors = SHARED / "models/stories260K-f32.gguf", folder / "out.gguf", folder / "errors"
    out.write_text(OLD)
    shutil.rmtree(folder / "data", ignore_errors=True)
    args = [arg.format(model=model, out=out) for arg in COMMANDS[command]]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(kind, n, args, folder, errors, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reached = pipe.read() == b"1"
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Outcome(reached, code, errors.read_text(errors="replace"), _lost(out, code, command))


def _child(kind: str, n: int, args: list[str], folder: Path, errors: Path, report: int) -> None:
    import signal

    signal.alarm(PATIENCE)
    os.environ["QLLAMA_DATA"] = str(folder / "data")
    for descriptor, path in ((0, os.devnull), (1, folder / "text"), (2, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    from qllama import cli

    injector = Injector(kind, n)
    code = 99
    try:
        code = cli._main(args)
    finally:
        injector.off = True
        sys.setprofile(None)
        if code == 99:
            import traceback

            traceback.print_exc()
        os.write(report, b"1" if injector.done else b"0")
        os._exit(code)


def _lost(out: Path, code: int, command: str) -> str:
    content = out.read_bytes()
    if content != OLD.encode() and (command != "quantize" or content[:4] != b"GGUF"):
        return f"the file is lost: {content[:40]!r}"
    if command == "quantize" and code == 0 and content == OLD.encode():
        return "success is told, the file is the old one"
    return ""


def outcomes(kind: str, command: str, folder: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Outcome]]:
    """Those N in `numbers`, until there are no more calls."""
    for n in numbers:
        outcome = attempt(kind, n, command, folder)
        if not outcome.reached:
            break
        yield n, outcome


def prepare() -> None:
    """Import what commands import, so that children need not."""
    for name in (*(f"qllama.cli.{module}" for module in MODULES), *LIBRARIES):
        importlib.import_module(name)


def report(numbers: list[int]) -> int:
    """Print a line for each command and kind, and what is wrong; the number of problems. No numbers: all of them."""
    bad = 0
    for command in COMMANDS:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                found = list(outcomes(kind, command, Path(folder), numbers or itertools.count(1)))
            problems = [f"  N={n}: {text}" for n, outcome in found if (text := outcome.problem())]
            ended = sum(outcome.code != 0 for _, outcome in found)
            row = f"{command:<9} {kind:<7} {len(found):>5} failures  {ended:>5} ended it  {len(problems):>3} problems"
            print("\n".join([row, *problems]), flush=True)
            bad += len(problems)
    return bad


if __name__ == "__main__":
    prepare()
    sys.exit(report([int(text) for text in sys.argv[1:]]) > 0)
