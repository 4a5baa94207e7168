"""Conversations on disk: a file of JSON lines for each, written as it happens, so that a crash loses nothing.

The first line describes the conversation. Then comes a line for each message, for pieces of an answer while it is being
written, and for each change: "system" is the new system message, "keep" cuts the messages to so many, "forget" leaves
so many out of the prompt, "set" changes a setting. What a model makes of the messages is session.py's business.
"""

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qllama.errors import FileError, InputError, QllamaError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
SECONDS = 0.05  # at least, between pieces of an answer

Message = dict[str, Any]


def folder() -> Path:
    """Where conversations are: `chats` in $QLLAMA_DATA, or in qllama's own folder of the user's data."""
    root = os.environ.get("QLLAMA_DATA")
    if root is None:
        home = Path(os.path.expanduser("~"))
        data = home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
        root = str(Path(os.environ.get("XDG_DATA_HOME") or data) / "qllama")
    return Path(root) / "chats"


def saved() -> list[Path]:
    """The conversations there are, the latest first."""
    try:
        return sorted(folder().glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []


def path_of(name: str) -> Path:
    """The file of the conversation `name`. Raises InputError for what cannot be the name of a file."""
    if not name or name.startswith(".") or not name.isprintable() or any(c in name for c in '/\\:*?"<>|'):
        raise InputError(f"{name!r} cannot be the name of a conversation")
    return folder() / f"{name}.jsonl"


class History:
    """The messages of a conversation. What is done to them is in the file when the method returns.

    `about`: the first line, such as the model. `forgotten`: messages, after the system's, that prompts leave out.
    """

    def __init__(self, about: Mapping[str, Any] | None = None, path: Path | None = None) -> None:
        self.about = dict(about or {})
        self.path = path
        self.messages: list[Message] = []
        self.settings: dict[str, Any] = {}
        self.forgotten = 0
        self.warnings: list[str] = []
        self._handle: int | None = None
        self._piece, self._piece_time = "", 0.0  # of the answer, not yet written

    # ---- what happens in a conversation

    @property
    def system(self) -> str | None:
        """The system message."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Put the system message in the place of the one there is; None takes it away."""
        self._place_system(text)
        self._write({"system": text})

    def _place_system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def add(self, message: Message) -> None:
        """A message; an assistant's takes the place of the pieces that were written of it."""
        self.messages.append(message)
        self._piece = ""
        self._write(message)

    def add_piece(self, text: str) -> None:
        """A piece of an answer that is being written. Those that come in a twentieth of a second are one line."""
        self._piece += text
        if time.monotonic() - self._piece_time >= SECONDS:
            self._write({"role": "assistant", "piece": self._piece})
            self._piece, self._piece_time = "", time.monotonic()

    def keep(self, n: int) -> None:
        """Only the first n messages."""
        self._cut(n)
        self._write({"keep": n})

    def _cut(self, n: int) -> None:
        del self.messages[n:]
        self.forgotten = min(self.forgotten, len(self.messages) - (self.system is not None))

    def forget(self, n: int) -> None:
        """Leave n messages after the system's out of prompts. They stay in the file."""
        self.forgotten = n
        self._write({"forget": n})

    def set(self, name: str, value: Any) -> None:
        """Remember a setting; None takes it back."""
        self.settings[name] = value
        if value is None:
            del self.settings[name]
        self._write({"set": name, "value": value})

    def prompt(self) -> list[Message]:
        """The messages that are not forgotten, as a chat template takes them."""
        first = int(self.system is not None)
        kept = self.messages[:first] + self.messages[first + self.forgotten :]
        return [{key: value for key, value in message.items() if key != "finish"} for message in kept]

    # ---- the file

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.stem if self.path is not None else "unsaved"

    @property
    def is_open(self) -> bool:
        """Whether what happens is being written."""
        return self._handle is not None

    def open(self, path: Path | None = None) -> None:
        """Begin the file: a new one under a new name, or `path`. Raises QllamaError when it cannot be written.

        Everything there is goes into it. Raises InputError when `path` exists.
        """
        self.path = path or folder() / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}.jsonl"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise InputError(f"there is a conversation named {printable(self.path.stem)}") from None
        except OSError as error:
            raise QllamaError(f"{printable(self.path)}: cannot keep the conversation: {error.strerror}") from error
        self._lock()
        self._write({"qllama": FORMAT, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **self.about})
        for message in self.messages:
            self._write(message)
        for name, value in self.settings.items():
            self._write({"set": name, "value": value})
        if self.forgotten:
            self._write({"forget": self.forgotten})

    @classmethod
    def load(cls, path: Path) -> "History":
        """The conversation in a file, which is continued. Raises FileError when it is none or open elsewhere."""
        history = cls(path=path)
        try:
            history._handle = os.open(path, os.O_RDWR | os.O_APPEND)
            history._lock()
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise FileError(path, f"cannot read the conversation: {error.strerror}") from error
        if lines[-1]:  # the last line was being written when the process died
            os.write(history._handle, b"\n")
        for number, line in enumerate(lines, 1):
            if line:
                history._read(number, line, torn=number == len(lines))
        if "qllama" not in history.about:
            history.close()
            raise FileError(path, "is not a conversation of qllama")
        history._adopt_piece()
        return history

    def fork(self, path: Path | None = None) -> "History":
        """A copy with a file of its own."""
        copy = History(self.about)
        copy.messages, copy.settings = [*self.messages], dict(self.settings)
        copy.forgotten = self.forgotten
        copy.open(path)
        return copy

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _lock(self) -> None:
        if fcntl is not None and self._handle is not None:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise FileError(self.path, "the conversation is open in another qllama") from None
            except OSError:  # some file systems know no locks
                pass

    def _write(self, line: Mapping[str, Any]) -> None:
        """One line in one call; a disk that is full is told once and does not end the conversation."""
        if self._handle is None:
            return
        try:
            os.write(self._handle, json.dumps(line).encode() + b"\n")
        except OSError as error:
            self.warnings.append(f"{self.path}: the conversation is no longer saved: {error.strerror}")
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def _read(self, number: int, line: bytes, torn: bool) -> None:
        try:
            self._apply(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            what = "is incomplete" if torn else "cannot be understood"
            self.warnings.append(f"{self.path}: line {number} {what} and is left out")

    def _apply(self, line: Mapping[str, Any]) -> None:
        """Do again what a line says."""
        if not isinstance(line, dict):
            raise TypeError
        if "qllama" in line:
            self.about = dict(line)
        elif "piece" in line:
            self._piece += str(line["piece"])
        elif "role" in line:
            self._piece = "" if line["role"] == "assistant" else self._adopt_piece()
            if not isinstance(line["role"], str) or not isinstance(line.get("content"), str | None):
                raise ValueError
            self.messages.append(dict(line))
        elif "keep" in line:
            self._adopt_piece()
            self._cut(int(line["keep"]))
        elif "forget" in line:
            self.forgotten = int(line["forget"])
        elif "system" in line:
            self._adopt_piece()
            self._place_system(line["system"])
        elif "set" in line:
            self.settings[str(line["set"])] = line["value"]
            if line["value"] is None:
                del self.settings[line["set"]]
        else:
            raise KeyError

    def _adopt_piece(self) -> str:
        """An answer whose writing was cut off by the end of the process becomes a message."""
        if self._piece:
            self.messages.append({"role": "assistant", "content": self._piece, "finish": "killed"})
        self._piece = ""
        return ""
