"""A terminal with a program in it: keys go in, and the screen as a person sees it comes out."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import pexpect
import pyte

SECONDS = 240.0  # until something must have appeared, on a busy machine


class Terminal:
    """Runs `command`; `screen` is what it shows, `raw` all bytes it wrote."""

    def __init__(self, command: list[str], env: Mapping[str, str], columns: int = 180, lines: int = 40) -> None:
        self.display = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.display)
        self.raw = b""
        environment = {**os.environ, "TERM": "xterm", **env}
        self.child = pexpect.spawn(
            command[0], command[1:], env=environment, dimensions=(lines, columns), timeout=SECONDS
        )

        self.display.write_process_input = self.type  # where the cursor is, when it is asked for

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self.display.display).rstrip()

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def enter(self, text: str) -> None:
        """A line; keys that come too fast would be a paste."""
        self.type(text)
        self.type("\r")

    def until(self, pattern: str, count: int = 1) -> str:
        """Wait until the screen has `pattern`, `count` times; returns the screen."""
        deadline = time.monotonic() + SECONDS
        while len(re.findall(pattern, self.screen, re.MULTILINE)) < count:
            assert time.monotonic() < deadline, f"no {pattern!r} on the screen:\n{self.screen}"
            self._read()
        return self.screen

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + SECONDS
        while self.child.isalive():
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen}"
            self._read()
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus

    def resize(self, columns: int, lines: int) -> None:
        self.display.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    def _read(self) -> None:
        try:
            data = self.child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            time.sleep(0.01)
            return
        self.raw += data
        self._stream.feed(data)

    def close(self) -> None:
        self.child.close(force=True)


def script(path: Path, lines: str) -> Path:
    """An executable shell script."""
    path.write_text("#!/bin/sh\n" + lines)
    path.chmod(0o755)
    return path
