"""Chat templates to text. The template runs in a process of its own (sandbox.py), which is kept warm between texts."""

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qllama.errors import InputError, QllamaError

MAX_TEMPLATE = 1 << 20  # bytes
MAX_TEXT = 256 << 20  # bytes of an answer
START_SECONDS = 60.0  # until the process is ready, on a busy machine
WALL_SECONDS = 10.0  # for a text whose process is not even running; the process itself has 1.5 s of work

_LENGTH = struct.Struct("<Q")


class TemplateError(InputError):
    """A chat template that cannot be used, or that refuses these messages."""


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True, bos_token: str | None = None, eos_token: str | None = None,
    now: datetime | str | None = None, **kwargs: Any,
) -> str:  # fmt: skip
    """The prompt that a Jinja chat template makes of `messages`, as transformers' apply_chat_template does.

    messages: dicts with "role" and "content", as OpenAI's interface has them. tools, documents (a keyword) and all
    other keywords go to the template. now: what `strftime_now` tells, a datetime or ISO 8601; None for the present.
    Raises TemplateError, saying what Jinja said, also for a template that works for 1.5 s or takes 64 MiB.
    """
    _check(template)
    variables = {"messages": list(messages), "tools": tools, "documents": None, **kwargs}
    variables["add_generation_prompt"] = add_generation_prompt
    variables |= {k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v is not None}
    moment = now.isoformat() if isinstance(now, datetime) else now
    request = {"template": template, "variables": variables, "now": moment}
    try:
        body = json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"messages, tools and template variables must be plain JSON data: {error}") from None
    reply = _renderer.ask(body)
    if "error" in reply:
        raise TemplateError(f"chat template: {reply['error']}")
    return reply["text"]


def warm_up() -> None:
    """Start the process that renders, without waiting for it."""
    _renderer.start()


def _check(template: str) -> None:
    nbytes = len(template.encode(errors="surrogatepass"))
    if nbytes > MAX_TEMPLATE:
        raise TemplateError(f"chat template: has {nbytes} bytes, must have at most {MAX_TEMPLATE}")


class Renderer:
    """One sandbox process; another one is started when it is lost. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process if there is none."""
        with self._lock:
            self._started()

    def ask(self, body: bytes) -> dict[str, str]:
        """The answer to a request. Raises TemplateError when it takes too long or takes the process down."""
        with self._lock:
            process = self._started()
            try:
                if not self._ready:
                    self._receive(process, time.monotonic() + START_SECONDS)
                    self._ready = True
                self._send(process, _LENGTH.pack(len(body)) + body)
                reply = self._receive(process, time.monotonic() + WALL_SECONDS)
            except BaseException:  # also Ctrl-C: what is still to come would be taken for the next answer
                self._stop()
                raise
            if "fatal" in reply:
                self._stop()
            return reply

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            command = [sys.executable, "-P", "-m", "qllama.chat.sandbox"]
            try:
                self._process = subprocess.Popen(  # a session of its own: Ctrl-C is not for it
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise QllamaError(f"cannot start the process that renders chat templates: {error}") from error
            self._ready = False
        return self._process

    def _send(self, process: "subprocess.Popen[bytes]", data: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except OSError as error:
            raise QllamaError(f"the process that renders chat templates died: {error}") from error

    def _receive(self, process: "subprocess.Popen[bytes]", deadline: float) -> dict[str, str]:
        (length,) = _LENGTH.unpack(self._read(process, _LENGTH.size, deadline))
        if length > MAX_TEXT:
            raise TemplateError(f"chat template: makes a text of {length} bytes, at most {MAX_TEXT} are taken")
        return json.loads(self._read(process, length, deadline))

    def _read(self, process: "subprocess.Popen[bytes]", size: int, deadline: float) -> bytes:
        assert process.stdout is not None
        handle, data = process.stdout.fileno(), b""
        while len(data) < size:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TemplateError("chat template: takes too long")
            part = os.read(handle, min(size - len(data), 1 << 20))
            if not part:
                raise self._lost(process)
            data += part
        return data

    def _lost(self, process: "subprocess.Popen[bytes]") -> QllamaError:
        code = process.wait()
        if not self._ready:
            return QllamaError(f"the process that renders chat templates cannot start (exit code {code})")
        if code == -signal.SIGPROF:
            return TemplateError("chat template: takes longer than 1.5 s")
        return TemplateError(f"chat template: crashed the process that renders it (exit code {code})")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """End the process. The next request starts another."""
        with self._lock:
            self._stop()


_renderer = Renderer()
atexit.register(_renderer.close)
