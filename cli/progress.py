"""Loading a model for a command: progress and warnings on stderr, one line each."""

import logging
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


class Warnings(logging.Handler):
    """Prints `qllama: warning: ...`, control bytes escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
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
