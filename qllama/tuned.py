"""What `qllama tune` found on this machine: how many threads, and how large the register tiles. It decides speed alone.

A small JSON file beside the kernel cache has an entry for each machine, CPU, instruction set and version. Whatever is
wrong with it, the defaults are used. How it is measured is the business of qllama.bench.tune.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qllama import cpu
from qllama.errors import InputError, QllamaError

log = logging.getLogger("qllama")

NAME = "tuned.json"
TILES = ("int8", "f32")  # the tiles that may be tuned, by kernels.tiles' names
MAX_TILE = 8  # tokens; kernels.layouts.MAX_TILE


@dataclass(frozen=True)
class Tuned:
    """`n_threads` None and tiles that are absent: the default."""

    n_threads: int | None = None
    tiles: dict[str, int] = field(default_factory=dict)  # tile -> tokens

    @classmethod
    def of(cls, entry: Any) -> "Tuned":
        """From JSON. Raises ValueError, KeyError or TypeError for what `qllama tune` does not write."""
        if (
            not isinstance(entry, dict)
            or entry.keys() != {"n_threads", "tiles"}
            or not isinstance(entry["tiles"], dict)
        ):
            raise ValueError("an entry is not one of qllama's")
        n, tiles = entry["n_threads"], entry["tiles"]
        if n is not None and (type(n) is not int or not 1 <= n <= cpu.max_threads()):
            raise ValueError(f"n_threads is {n!r}")
        return cls(n, _checked(tiles))


def _checked(tiles: dict[str, Any]) -> dict[str, int]:
    for name, tokens in tiles.items():
        if name not in TILES or type(tokens) is not int or not 1 <= tokens <= MAX_TILE:
            raise ValueError(f"tile {name!r} is {tokens!r}")
    return tiles


@cache
def machine() -> str:
    """What an entry holds for: another CPU, instruction set, number of cores or version has one of its own."""
    cores = f"{cpu.default_threads()} cores, {cpu.processors()} processors"
    return f"{cpu.host()[0]}, {cpu.isa().name}, {cores}, qllama {version('qllama')}"


def places() -> list[Path]:
    """Where the file may be, in order of preference."""
    return [root / NAME for root in cpu.cache_roots()]


def _find() -> Path | None:
    return next((path for path in places() if path.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    """Machine -> entry, unchecked. Raises ValueError, OSError."""
    machines = json.loads(path.read_text(encoding="utf-8"))["machines"]
    if not isinstance(machines, dict):
        raise ValueError("it is not one of qllama's")
    return machines


@cache
def saved() -> Tuned:
    """What is remembered of this machine; nothing, with a warning, when the file cannot be understood."""
    path = _find()
    if path is None:
        return Tuned()
    try:
        machines = _read(path)
        return Tuned.of(machines[machine()]) if machine() in machines else Tuned()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is ignored (qllama tune writes a new one): %s", path, error)
        return Tuned()


def default_threads() -> int:
    """Threads when the user says nothing: what was measured, else the physical cores that may be used."""
    return saved().n_threads or cpu.default_threads()


@cache
def tiles() -> dict[str, int]:
    """The tiles of this process that differ from the defaults.

    QLLAMA_TILES, such as `int8=5,f32=6` or nothing, stands for what is remembered: a process that compiles, and one
    that measures, is told them so. Raises InputError for another value.
    """
    text = os.environ.get("QLLAMA_TILES")
    if text is None:
        return saved().tiles
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return _checked({name: int(tokens) for name, tokens in pairs})
    except ValueError:
        needed = f"such as int8=4,f32=8, with {' or '.join(TILES)} and 1 to {MAX_TILE} tokens"
        raise InputError(f"QLLAMA_TILES={text}: needed tiles {needed}") from None


def as_text(values: dict[str, int]) -> str:
    """As QLLAMA_TILES has it."""
    return ",".join(f"{name}={tokens}" for name, tokens in sorted(values.items()))


def save(found: Tuned) -> Path:
    """Remember what was found on this machine; other machines' entries stay. Returns the file.

    Raises QllamaError when it cannot be written.
    """
    return _write({machine(): asdict(found)})


def reset() -> Path | None:
    """Forget what was found on this machine; returns the file, None when nothing was remembered."""
    path = _find()
    return None if path is None else _write({})


def _write(entry: dict[str, Any]) -> Path:
    path = _find() or places()[0]
    try:
        machines = _read(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        machines = {}
    machines.pop(machine(), None)
    temporary = path.with_name(f"{NAME}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"machines": machines | entry}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise QllamaError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if temporary.exists():
            temporary.unlink()
    saved.cache_clear()
    tiles.cache_clear()
    return path
