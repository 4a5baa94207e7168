"""What can go wrong, each with its exit code. One line per error; the CLI prints it, nothing else does."""

from pathlib import Path


def printable(text: object) -> str:
    """`text` on one line: control bytes, escapes and lone surrogates from a stranger's file come out escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class QllamaError(Exception):
    """Something failed that is not the user's input; the message is one line. Exit code 1."""

    exit_code = 1


class InputError(QllamaError):
    """Bad usage or bad input: says what was found and what was needed. Exit code 2."""

    exit_code = 2


class FileError(InputError):
    """A file that cannot be used.

    The message is `FILE: KEY=VALUE: reason`, or `FILE: reason` without a key; everything quoted is escaped.
    """

    def __init__(self, path: object, reason: str, key: str | None = None, value: object = None) -> None:
        self.path, self.key, self.value, self.reason = str(path), key, value, reason
        where = "" if key is None else f" {printable(key)}={printable(value)}:"
        super().__init__(f"{printable(path)}:{where} {reason}")


def read_file(path: object, what: str) -> bytes:
    """All bytes of a user's file, which is `what` ("the prompt"). Raises FileError when it cannot be read."""
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot read {what}: {error.strerror}") from error
