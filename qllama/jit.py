"""From a Python function to machine code that threads call by address, and the cache of it.

A kernel is a plain function over the SIMD vocabulary (`qllama/kernels`). Numba compiles it in a process of its own;
what is kept is the object file, which LLVM loads in about a millisecond. A process whose kernels are all cached never
imports Numba. The cache folder's name is a hash of every kernel source, the versions and the target, so that a stale
kernel cannot be used. This is the only place that knows compile options.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import inspect
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from qllama import cpu, tuned
from qllama.errors import QllamaError

log = logging.getLogger("qllama")

# What changes from step to step; every other parameter of a kernel is fixed when the plan is bound.
STEP = ("n_tokens", "n_past", "n_out", "tokens", "kv_blocks")

# Where kernels come from: an inference engine's, and those of `qllama.quant`, whose names begin with "encode.".
KERNELS, ENCODERS = "qllama.kernels", "qllama.quant.encoders"

# Kernels whose module is not the first part of their name.
MODULES = {
    "f32": "floats", "f16": "floats", "bf16": "floats",
    "iq4_nl": "iq4", "iq4_xs": "iq4", "mxfp4": "iq4", "q8_1": "q8_0",
    "iq1_s": "iq", "iq1_m": "iq", "iq2_xxs": "iq", "iq2_xs": "iq", "iq2_s": "iq", "iq3_xxs": "iq", "iq3_s": "iq",
    "book8": "books", "book16": "books", "q1_0": "twos", "q2_0": "twos", "tq1_0": "twos", "tq2_0": "twos",
}  # fmt: skip

# An operation's arguments in memory, in int64: the counter of its rows (alone on a cache line), the place in the step
# block of its number of rows, then its fields.
COUNTER, ROWS, FIELDS = 0, 8, 9


MAX_CODE = 1 << 26  # bytes; a kernel has some thousands


@dataclass(frozen=True)
class Kernel:
    """Machine code: `fields` are (name, "i64" or "f32") in the order of an operation's arguments."""

    name: str
    address: int
    fields: tuple[tuple[str, str], ...]
    nbytes: int  # of the object file
    seconds: float = 0.0  # that compiling it took
    compiled: bool = False  # in this process, not taken from the cache


@dataclass(frozen=True)
class Code:
    """What the compiler makes of a kernel, and what the cache keeps."""

    name: str
    fields: tuple[tuple[str, str], ...]
    object: bytes
    seconds: float = 0.0  # that compiling took

    def pack(self) -> bytes:
        """A line with length and checksum, a line of JSON, the object file."""
        header = {"name": self.name, "fields": self.fields, "seconds": self.seconds}
        body = json.dumps(header).encode() + b"\n" + self.object
        return f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode() + body

    @classmethod
    def read(cls, file: BinaryIO) -> "Code":
        """The next code in `file`. Raises ValueError when it is damaged, EOFError at the end."""
        line = file.readline(100)
        if not line:
            raise EOFError
        length, checksum = line.split()
        body = file.read(min(int(length), MAX_CODE))
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            raise ValueError("checksum does not match")
        header, code = body.split(b"\n", 1)
        values = json.loads(header)
        fields = tuple((name, kind) for name, kind in values["fields"])
        return cls(values["name"], fields, code, values["seconds"])


# ---- compiling: only here, and in the modules of kernels, is Numba imported

_kernels: dict[str, Callable[..., Any]] = {}


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare an operation of the plan; its name is `module.function`.

    Parameters named in STEP come from the step, `n_rows` is the number of rows the operation was bound to, `job`
    goes to `take`, `tid` is the thread; the others are int64, or float32 where annotated `float`.
    """
    register(f"{function.__module__.rpartition('.')[2]}.{function.__name__}", function)
    return function


def register(name: str, function: Callable[..., Any]) -> None:
    """Declare a kernel under a name of its own, as the ones that `matmul.layout_kernels` makes."""
    _kernels[name] = function


def function(f: Callable[..., Any]) -> Any:
    """Compile a helper that kernels call."""
    import numba

    return numba.njit(error_model="numpy")(f)


def inlined(f: Callable[..., Any]) -> Any:
    """Compile a helper into each of its callers: what it takes and gives stays in registers."""
    import numba

    return numba.njit(error_model="numpy", forceinline=True)(f)


def _fields(f: Callable[..., Any]) -> tuple[tuple[str, str], ...]:
    skip = (*STEP, "job", "ctl", "tid", "n_rows")
    parameters = inspect.signature(f).parameters.values()
    return tuple((p.name, "f32" if p.annotation is float else "i64") for p in parameters if p.name not in skip)


def _entry(f: Callable[..., Any]) -> Callable[..., Any]:
    """`op(args, step, ctl, tid)`, which loads the parameters of `f` and calls it."""
    fields = [name for name, _ in _fields(f)]
    kinds = dict(_fields(f))
    values = []
    for name in inspect.signature(f).parameters:
        if name == "job":
            values.append("(args, ctl, tid)")
        elif name in ("ctl", "tid"):
            values.append(name)
        elif name == "n_rows":
            values.append(f"load_i64(step + load_i64(args + {8 * ROWS}))")
        elif name in STEP:
            values.append(f"load_i64(step + {8 * STEP.index(name)})")
        else:
            values.append(f"load_{kinds[name]}(args + {8 * (FIELDS + fields.index(name))})")
    source = f"def op(args, step, ctl, tid):\n    f({', '.join(values)})\n    return 0\n"
    from qllama.simd import load_f32, load_i64

    scope: dict[str, Any] = {"f": function(f), "load_i64": load_i64, "load_f32": load_f32}
    exec(source, scope)  # the text is made of parameter names alone
    return scope["op"]


def compile_kernel(name: str) -> Code:
    """Compile one kernel in this process."""
    import numba

    start = time.perf_counter()
    module = name.partition(".")[0]
    importlib.import_module(ENCODERS if module == "encode" else f"{KERNELS}.{MODULES.get(module, module)}")
    f = _kernels[name]
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Any = numba.njit("int64(int64, int64, int64, int64)", **options)(_entry(f))
    (result,) = compiled.overloads.values()
    code = _object(result.library, result.fndesc.llvm_func_name, name)
    return Code(name, _fields(f), code, round(time.perf_counter() - start, 3))


def _object(library: Any, entry: str, name: str) -> bytes:
    """The object file of a compiled library."""
    return bytes(library.codegen._tm.emit_object(_entry_alone(library, entry, name)))


def _entry_alone(library: Any, entry: str, name: str) -> Any:
    """The library's module. The entry becomes its only visible symbol, called as the kernel."""
    module = library._final_module
    for value in [*module.functions, *module.global_variables]:
        if value.name == entry:
            value.name = name
        elif not value.is_declaration:
            value.linkage = "internal"
    return module


def _target_environment() -> dict[str, str]:
    """Numba's settings for the process that compiles."""
    name, features = cpu.llvm_target()
    return {
        "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "QLLAMA_ISA": cpu.isa().name,
        "QLLAMA_TILES": tuned.as_text(tuned.tiles()),
    }  # fmt: skip


def _serve(names: list[str]) -> None:
    """The compiling process: code on standard output, one kernel after the other."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for name in names:
        out.write(compile_kernel(name).pack())
        out.flush()


def _read_all(process: "subprocess.Popen[bytes]", into: "queue.Queue[Code | None]") -> None:
    try:
        while True:
            into.put(Code.read(process.stdout))  # type: ignore[arg-type]
    except (EOFError, ValueError, OSError):
        into.put(None)


def _compile_all(names: list[str]) -> Generator[Code, None, None]:
    """Compile in as many processes as there are cores. Raises QllamaError with the compiler's last line."""
    n = min(len(names), cpu.default_threads(), 8)
    environment = {**os.environ, **_target_environment()}
    command = [sys.executable, "-P", "-m", "qllama.jit"]  # -P: nothing is imported from where the user stands
    done: queue.Queue[Code | None] = queue.Queue()
    processes = []
    try:
        with tempfile.TemporaryFile() as errors:
            for i in range(n):
                p = subprocess.Popen(
                    command + names[i::n],
                    stdout=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                    env=environment,
                )
                processes.append(p)
                threading.Thread(target=_read_all, args=(p, done), daemon=True).start()
            open_streams, missing = n, set(names)
            while open_streams:
                code = done.get()
                if code is None:
                    open_streams -= 1
                else:
                    missing.discard(code.name)
                    yield code
            if missing:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise QllamaError(f"compiling {min(missing)} failed: {lines[-1] if lines else 'the compiler died'}")
    finally:
        for p in processes:
            p.kill()
            p.wait()
            p.stdout.close()  # type: ignore[union-attr]


# ---- the cache


def _sources(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _python_files(folder: Path) -> list[Path]:
    """Raises OSError when the folder cannot be read; `glob` would find nothing, and the key would fit any source."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".py")


@cache
def cache_key(package: str = KERNELS) -> str:
    """Of all that decides what the machine code of a package's kernels is."""
    key = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for path in [
        here / "jit.py",
        here / "ggml.py",  # kernels import its sizes
        here / "grids.py",
        *_python_files(here / "simd"),
        *_python_files(here / "kernels" if package == KERNELS else _sources(package)),
    ]:
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    parts = [
        sys.version,
        *(version(p) for p in ("numba", "llvmlite", "numpy")),
        cpu.isa().name,
        *cpu.llvm_target(),
        tuned.as_text(tuned.tiles()),
    ]
    key.update("\0".join(parts).encode())
    return key.hexdigest()[:24]


@cache
def cache_folder(package: str = KERNELS) -> Path | None:
    """The folder of this target's kernels, made when needed; None (with a warning) when there is nowhere to write."""
    reasons = []
    for root in cpu.cache_roots():
        folder = root / "kernels" / cache_key(package)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not cpu.is_private(folder):
                reasons.append(f"{folder} can be written by others")
            elif os.access(folder, os.W_OK | os.R_OK):
                return folder
            else:
                reasons.append(f"{folder} is not writable")
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    log.warning("kernels are not cached and will be compiled at each run: %s", "; ".join(reasons))
    return None


def _folder(name: str) -> Path | None:
    return cache_folder(ENCODERS if name.startswith("encode.") else KERNELS)


def _cached(name: str) -> Code | None:
    folder = _folder(name)
    if folder is None:
        return None
    try:
        with open(folder / f"{name}.o", "rb") as file:
            code = Code.read(file)
        if code.name != name:
            raise ValueError("it is another kernel")
        return code
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("damaged kernel %s in the cache is compiled again: %s", name, str(error) or "it is empty")
        return None


def _keep(code: Code) -> bool:
    """Put `code` into the cache by an atomic rename; False, with one warning, when it cannot be written."""
    folder = _folder(code.name)
    if folder is None:
        return True
    temporary = folder / f"{code.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(code.pack())
        os.replace(temporary, folder / f"{code.name}.o")
        return True
    except OSError as error:
        log.warning("kernels cannot be cached: %s: %s", folder, error.strerror)
        temporary.unlink(missing_ok=True)
        return False


# ---- loading


@cache
def engine() -> Any:
    """LLVM's, which makes machine code of this process callable. Raises QllamaError when memory is short."""
    cpu.check_memory()
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


_loaded: dict[str, Kernel] = {}


def _link(codes: Collection[Code], compiled: Collection[str]) -> None:
    """Make kernels of `codes`; `compiled` are the names of those that the cache did not have."""
    from llvmlite import binding

    llvm = engine()
    for code in codes:
        llvm.add_object_file(binding.ObjectFileRef.from_data(code.object))
    llvm.finalize_object()
    for code in codes:
        _loaded[code.name] = Kernel(
            code.name, llvm.get_function_address(code.name), code.fields, len(code.object), code.seconds,
            code.name in compiled,
        )  # fmt: skip


def load(names: Iterable[str], progress: Callable[[int, int], None] | None = None) -> dict[str, Kernel]:
    """The kernels `names` ("module.function"), compiled if the cache lacks them.

    `progress(done, total)` is called while kernels compile. Raises QllamaError when one does not compile.
    """
    wanted = sorted(set(names))
    codes = {n: c for n in wanted if n not in _loaded and (c := _cached(n)) is not None}
    missing = [n for n in wanted if n not in _loaded and n not in codes]
    if missing:
        keep, report = True, progress or (lambda done, total: None)
        report(0, len(missing))
        with closing(_compile_all(missing)) as compiled:
            for i, code in enumerate(compiled, 1):
                codes[code.name] = code
                keep = keep and _keep(code)
                report(i, len(missing))
    if codes:
        _link(codes.values(), missing)
    return {n: _loaded[n] for n in wanted}


def callable_at(address: int) -> Any:
    """A compiled kernel as a ctypes function `(0, 0, args, step, ctl, tid)`; calling it releases the GIL."""
    return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 4)(address)


if __name__ == "__main__":
    from qllama import jit  # the kernels register there, not in __main__

    jit._serve(sys.argv[1:])
