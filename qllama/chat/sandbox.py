"""The process in which chat templates run: Jinja in a sandbox, as transformers sets it up, under limits of the system.

A template comes with a model from a stranger. Jinja's sandbox keeps Python out of its reach; that it may neither hang,
nor fill memory, nor crash the program is seen to here: the process has a budget of memory and processor time for each
text, and can be lost. render.py starts it and talks to it over pipes.
"""

import json
import signal
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LENGTH = struct.Struct("<Q")  # before each message
SECONDS = 1.5  # of processor time for a text
MEMORY = 64 << 20  # bytes for a text, besides what its messages need
MEMORY_PER_BYTE = 24  # of the messages
MAX_ERROR = 500  # characters


class Generation(Extension):
    """`{% generation %}`, with which templates mark the model's own text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


ENVIRONMENT = _environment()
_compiled = lru_cache(4)(ENVIRONMENT.from_string)


def render(template: str, variables: dict[str, Any], now: str | None) -> str:
    """The text of `template`; `now` in ISO 8601, None for this moment."""
    moment = datetime.now() if now is None else datetime.fromisoformat(now)
    return _compiled(template).render(**variables, strftime_now=moment.strftime)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": ...}` with the kind of the exception and its message."""
    try:
        return {"text": render(**request)}
    except RecursionError:
        return {"error": "RecursionError: the template nests too deep", "fatal": "yes"}
    except MemoryError:
        return {"error": f"MemoryError: the template needs more than {MEMORY >> 20} MiB", "fatal": "yes"}
    except SecurityError as error:
        return {"error": f"SecurityError: {error}"[:MAX_ERROR]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]}


def _limit_memory(nbytes: int) -> None:
    """Allow `nbytes` more than are in use. Systems that cannot do it have the deadline only."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + nbytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


def _limit_seconds(seconds: float) -> None:
    """End this process when it has worked for so long; 0: no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, not caught, kills even within a long C function


def _forbid_files() -> None:
    try:
        import resource

        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (0, 0))
    except (ImportError, OSError, ValueError):
        pass


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message; lone surrogates survive."""
    body = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    """Answer requests until there are none, or one has used up what it may."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _forbid_files()
    send(sink, {"ready": True})
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        _limit_memory(MEMORY + MEMORY_PER_BYTE * length)
        request = json.loads(source.read(length))
        _limit_seconds(SECONDS)
        reply = answer(request)
        _limit_seconds(0)
        send(sink, reply)
        if "fatal" in reply:
            return


if __name__ == "__main__":
    main()
