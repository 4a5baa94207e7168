"""The command line with a fault at one place: `python fault_probe.py FAULT MODULE:FUNCTION [ARGUMENTS OF QLLAMA]`.

The fault happens when the function is first called: `cut:PATH` and `write:PATH` change a file, `interrupt` is Ctrl-C,
`kill` cannot be caught, `full` is a full disk, `memory` is the end of memory.
"""

import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def _write(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"0000")
    os.utime(path, (1, 1))


def _raise(error: BaseException) -> None:
    raise error


FAULTS: dict[str, Callable[[str], Any]] = {
    "cut": lambda path: os.truncate(path, 4096),
    "write": _write,
    "interrupt": lambda _: os.kill(os.getpid(), signal.SIGINT),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "full": lambda _: _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "memory": lambda _: _raise(MemoryError()),
}


def hostile(fault: str, place: str, *args: object, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run qllama with a fault; see above."""
    command = [sys.executable, __file__, fault, place, *map(str, args)]
    options = {"capture_output": True, "text": True, "timeout": 120, "stdin": subprocess.DEVNULL, **kwargs}
    return subprocess.run(command, **options)


def put(fault: str, place: str) -> None:
    """Let the fault happen when `place` is called for the first time."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for part in outer:
        holder = getattr(holder, part)
    function, (kind, _, argument) = getattr(holder, name), fault.partition(":")

    def faulty(*args: Any, **kwargs: Any) -> Any:
        setattr(holder, name, function)
        FAULTS[kind](argument)
        return function(*args, **kwargs)

    setattr(holder, name, faulty)


if __name__ == "__main__":
    from qllama.cli import main

    put(*sys.argv[1:3])
    main(sys.argv[3:])
