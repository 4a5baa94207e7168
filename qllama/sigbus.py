"""One line instead of a crash when a mapped file loses its bytes: another program cut it off, or its disk failed.

The system sends SIGBUS to the instruction that reads such a page. No Python can run then, so the handler is machine
code that writes a line made beforehand and ends the process. Only a program of our own may do so: `install` is called
by the command line, never by the library.
"""

import ctypes
import signal
import sys
from typing import Any

from qllama.errors import printable

MAX_TEXT = 1 << 15  # bytes: a path has up to 4096, each of which may be escaped as four

# Several threads may come at once: the first takes the line's length and leaves none, the others wait for its end.
_HANDLER = """
define void @on_sigbus(i32 %signal) {{
  br label %again
again:
  %n = atomicrmw xchg ptr inttoptr (i64 {length} to ptr), i64 0 seq_cst
  %first = icmp ne i64 %n, 0
  br i1 %first, label %tell, label %again
tell:
  %done = call i64 inttoptr (i64 {write} to ptr)(i32 2, ptr inttoptr (i64 {text} to ptr), i64 %n)
  call void inttoptr (i64 {leave} to ptr)(i32 2)
  ret void
}}
"""

_wanted = _taken = False
_text, _length = ctypes.create_string_buffer(MAX_TEXT), ctypes.c_int64(0)


def install() -> None:
    """End this process with one line on stderr and exit code 2 on SIGBUS, from the first `watch` on."""
    global _wanted
    _wanted = hasattr(signal, "SIGBUS") and sys.platform != "win32"


def watch(files: str) -> None:
    """Name what is mapped now, as the line will."""
    if not _wanted:
        return
    line = f"qllama: error: {printable(files)}: was cut off while it was read, or its disk failed\n"
    raw = line.encode(errors="replace")[:MAX_TEXT]
    ctypes.memmove(_text, raw, len(raw))
    _length.value = len(raw)
    if not _taken:
        _take_signal()


def _take_signal() -> None:
    global _taken
    from llvmlite import binding

    from qllama import jit  # not above: `qllama --help` pays for nothing

    libc, llvm = ctypes.CDLL(None), jit.engine()
    source = _HANDLER.format(
        length=ctypes.addressof(_length), text=ctypes.addressof(_text), write=_address(libc.write),
        leave=_address(libc._exit),
    )  # fmt: skip
    llvm.add_module(binding.parse_assembly(source))
    llvm.finalize_object()
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGBUS, llvm.get_function_address("on_sigbus"))
    _taken = True


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
