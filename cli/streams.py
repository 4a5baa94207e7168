"""The standard streams of a command, any of which may be closed. What is written there is the commands' business."""

import sys

from qllama.errors import InputError


def need_stdout(what: str) -> None:
    """Raises InputError when there is nowhere to write `what`: before any work is done, not after it."""
    if sys.stdout is None:
        raise InputError(f"stdout is closed: there is nowhere to write {what}")
