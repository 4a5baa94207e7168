"""Loading a model for a command: progress and warnings on stderr, one line each."""

import contextlib
import logging
import shutil
import sys
import time
from typing import Any

from qllama.errors import printable


class Line:
    """A progress line that is overwritten on a terminal; elsewhere it is printed once, when `patience` s are over."""

    def __init__(self, text: str, patience: float = 0.0) -> None:
        self.text, self.patience = text, patience
        self.started, self.shown = 0.0, False

    def __call__(self, done: int, total: int) -> None:
        self.started = self.started or time.monotonic()
        if sys.stderr is None or time.monotonic() - self.started < self.patience:
            return
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{self.text} {100 * done // max(1, total)} %", end=end, file=sys.stderr, flush=True)
        elif not self.shown:
            print(self.text, file=sys.stderr, flush=True)
        self.shown = True


class Meter:
    """What long work on a file is at: overwritten on a terminal a few times a second, silent elsewhere."""

    def __init__(self) -> None:
        self.width, self.shown = 0, 0.0

    def quantize(self, at: Any) -> None:
        """Show a quantize.Progress: tensor, types, speed, time left."""
        rate = at.done / max(at.seconds, 1e-9)
        left = (at.total - at.done) / max(rate, 1.0)
        types = f"{at.step.source.type.name} -> {at.step.target.type.name}"
        where = f"[{at.index + 1}/{at.n_steps}] {printable(at.step.target.name)}  {types}"
        speed = f"{100 * at.done // max(1, at.total):>3} %  {rate / 1e6:.0f} MB/s  {clock(left)} left"
        self.show(f"{where}  {speed}", last=at.done == at.total)

    def show(self, text: str, last: bool = False) -> None:
        """Put `text` in place of the line that is there."""
        now = time.monotonic()
        if sys.stderr is None or not sys.stderr.isatty() or (now - self.shown < 0.1 and not last):
            return
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:columns]:<{min(self.width, columns)}}", end="", file=sys.stderr, flush=True)
        self.width, self.shown = len(text), now

    def close(self) -> None:
        """Leave the line."""
        if self.width:
            print(file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Warnings(logging.Handler):
    """Prints `qllama: warning: ...`, control bytes escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError):  # a full disk is no reason not to run
                print(f"qllama: warning: {printable(record.getMessage())}", file=sys.stderr, flush=True)


def show_warnings() -> None:
    log = logging.getLogger("qllama")
    if not any(isinstance(h, Warnings) for h in log.handlers):
        log.addHandler(Warnings())
        log.propagate = False


def load(quiet: bool = False, **options: Any) -> Any:
    """The LLM that the model options describe (see options.model_options)."""
    from qllama.llm import LLM
    from qllama.model import Progress

    show_warnings()
    progress = Progress()
    if not quiet:
        compiling = Line("compiling kernels for this CPU (once)")
        progress = Progress(compiling, Line("loading weights", patience=1.0))
    return LLM(**options, progress=progress)
