"""A model in memory: opened, checked, packed, and run on tokens.

Token ids in, logits out. Text and sampling are other modules' business.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qllama import cpu, jit, tuned, weights
from qllama.activations import Collector
from qllama.arch import ARCHS
from qllama.atomic import file_status
from qllama.builder import Builder, Tensors
from qllama.errors import FileError, InputError, printable
from qllama.gguf import GGUF, open_gguf
from qllama.hparams import HParams
from qllama.kernels.layouts import GROWTH, LAYOUTS, POSITIONS
from qllama.kv_cache import KVCache, check_type
from qllama.plan import BoundPlan, Plan
from qllama.stopwatch import Stopwatch
from qllama.team import KERNELS as TEAM_KERNELS
from qllama.team import Team

# What layers are made of, apart from the layouts' kernels and attention.
OPERATIONS = (
    "norm.rms_f32", "norm.rms_q8", "norm.rms_heads", "ffn.swiglu_f32", "ffn.swiglu_q8", "ffn.quantize", "ffn.add_bias",
    "ffn.scaled", "ffn.last_rows", "rope.table", "rope.interleaved", "rope.neox", "attention.merge",
)  # fmt: skip

MARGIN = 64 << 20  # bytes that are left to everything else
N_BATCH = 512  # tokens of a step

Path = str | os.PathLike[str]


@dataclass
class Declared:
    """A file's model before it has memory: what it computes, what it needs, what is wrong with it."""

    hparams: HParams
    plan: Plan
    tensors: Tensors
    cache: KVCache
    warnings: list[str]


def declare(gguf: GGUF, type_k: str = "f16", type_v: str = "f16", n_threads: int = 1) -> Declared:
    """The plan of a file; its cache has no positions yet.

    Raises FileError for what cannot be understood; what is wrong with tensors is in `tensors.problems`.
    """
    hparams = HParams.from_metadata(gguf.metadata, tuple(ARCHS), gguf.tensors)
    cache = KVCache(hparams.n_layer, hparams.n_head, hparams.n_head_kv, hparams.head_dim, 0, type_k, type_v)
    tensors = Tensors(gguf)
    plan = Builder(ARCHS[hparams.architecture], hparams, tensors, cache, n_threads).build()
    warnings = [*gguf.warnings, *hparams.warnings]
    unused = sorted(set(gguf.tensors) - tensors.used)
    if unused:
        names = ", ".join(printable(n) for n in unused[:3]) + (", ..." if len(unused) > 3 else "")
        warnings.append(f"{gguf.path}: {len(unused)} tensors are not part of the model and are ignored: {names}")
    for name in unused:
        if name.endswith(".scale"):  # leaving it out would change the results
            tensors.problems.append(f"tensor {name} scales nothing that is known")
    warnings += _growth(tensors)
    return Declared(hparams, plan, tensors, cache, warnings)


def _growth(tensors: Tensors) -> list[str]:
    """A line on the types whose weights take more memory than in the file, when there are any."""
    layouts = {w.layout.type.name: w.layout for w in tensors.weights.values()}
    grown = [
        f"{name} {layout.bits:.2f} bits each instead of {layout.type.bits:.2f}"
        for name, layout in sorted(layouts.items())
        if layout.bits > GROWTH * layout.type.bits
    ]
    return [f"weights take more memory than in the file: {', '.join(grown)}"] if grown else []


def missing_support(gguf: GGUF) -> list[str]:
    """What keeps a file from running, one line each; empty when it runs."""
    try:
        return declare(gguf).tensors.problems
    except FileError as error:
        return [str(error)]


def describe_plan(path: Path) -> str:
    """The plan of a file, printed."""
    with open_gguf(path) as gguf:
        return str(_checked(declare(gguf), gguf).plan)


def kernel_names(declared: Declared) -> set[str]:
    """Every kernel that running the model needs."""
    return declared.plan.kernels() | weights.pack_kernels(declared.tensors.weights.values()) | set(TEAM_KERNELS)


def warm_up(
    path: Path | None, type_k: str = "f16", type_v: str = "f16", progress: Callable[[int, int], None] | None = None
) -> list[jit.Kernel]:
    """Compile what a file needs (None: what every supported file needs); returns the kernels by name."""
    if path is None:
        names = {f"{layout.kernels}.{k}" for layout in LAYOUTS.values() for k in ("matmul", "lookup")}
        names |= {layout.pack for layout in LAYOUTS.values()}
        types = f"{check_type(type_k)}_{check_type(type_v, option='type_v')}"
        names |= {*OPERATIONS, *TEAM_KERNELS, f"attention.{types}", f"kv.store_{types}"}
    else:
        with open_gguf(path) as gguf:
            names = kernel_names(_checked(declare(gguf, type_k, type_v), gguf))
    return list(jit.load(names, progress).values())


def _checked(declared: Declared, gguf: GGUF) -> Declared:
    problems = declared.tensors.problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise FileError(gguf.path, printable(problems[0]) + more)
    return declared


@dataclass(frozen=True)
class Progress:
    """Who wants to know how loading goes: each is called with (done, total)."""

    kernels: Callable[[int, int], None] | None = None
    weights: Callable[[int, int], None] | None = None


class Model:
    """A model ready to run; one conversation at a time. Not to be used by two threads at once.

    source: a file's path, or an opened one, which stays open and is no longer needed afterwards.
    n_ctx None takes the context of training, or what memory allows; a wished one that does not fit is refused.
    n_threads None takes the physical cores this process may use, or what `qllama tune` found. n_batch is the most
    tokens of a step.
    """

    def __init__(
        self, source: GGUF | Path, n_ctx: int | None = None, n_threads: int | None = None, n_batch: int = N_BATCH,
        type_k: str = "f16", type_v: str = "f16", progress: Progress | None = None,
    ) -> None:  # fmt: skip
        progress = progress or Progress()
        n_threads = _in_range("threads", tuned.default_threads() if n_threads is None else n_threads, cpu.max_threads())
        self.n_batch = _in_range("batch size", n_batch, 1 << 16)
        opened = contextlib.nullcontext(source) if isinstance(source, GGUF) else open_gguf(source)
        with opened as gguf:
            declared = _checked(declare(gguf, type_k, type_v, n_threads), gguf)
            self.n_ctx = self._fitting_context(gguf.path, declared, n_ctx)
            declared.cache.resize(self.n_ctx)
            kernels = jit.load(kernel_names(declared), progress.kernels)
            self.team = Team(n_threads)
            weakref.finalize(self, self.team.close)  # threads would outlive a model that nobody closed
            packed = list(declared.tensors.weights.values())
            self._memory = weights.pack(gguf, packed, self.team, progress.weights)
            gguf.check_unchanged()
            self._files = {part.path: part.status for part in gguf.parts}
            self.path, self.hparams, self.warnings = gguf.path, declared.hparams, declared.warnings
        if n_threads > cpu.processors():
            self.warnings.append(f"{n_threads} threads on {cpu.processors()} processors are slower than fewer")
        self.plan, self.cache = declared.plan, declared.cache
        self.n_batch = min(self.n_batch, self.n_ctx)
        self._bound = BoundPlan(declared.plan, self.n_batch, kernels)
        self._tokens = np.zeros(self.n_batch, np.int32)
        self.cached: list[int] = []  # the tokens at positions 0, 1, ... whose keys and values are there
        self._bound.set_step(tokens=self._tokens.ctypes.data, kv_blocks=self.cache.table.ctypes.data)

    def _fitting_context(self, path: str, declared: Declared, n_ctx: int | None) -> int:
        """The context to use. Raises InputError, with the largest that fits, when the wished one does not."""
        wish = declared.hparams.n_ctx_train if n_ctx is None else _in_range("context", n_ctx, 1 << 31)
        n_rows = min(self.n_batch, wish)
        fixed = weights.total_bytes(declared.tensors.weights.values()) + declared.plan.nbytes(n_rows) + MARGIN
        free = cpu.available_memory() - fixed
        fits = free // declared.cache.block_bytes * POSITIONS
        if wish <= fits:
            return wish
        if n_ctx is None and fits > 0:
            return fits
        need, have = fixed + declared.cache.nbytes(wish), free + fixed
        advice = f"the largest context that fits is {fits}" if fits > 0 else "the model does not fit"
        raise InputError(
            f"{printable(path)}: a context of {wish} needs {_gib(need)}, available are {_gib(have)}: {advice}"
        )

    def forward(
        self, tokens: Sequence[int] | np.ndarray, n_past: int, n_out: int = 1,
        stopwatch: Stopwatch | Collector | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Run `tokens` at positions n_past, n_past+1, ...; positions before must have been run.

        Returns the logits after each of the last n_out tokens: (n_out, n_vocab) float32, a copy. A `stopwatch` of this
        model takes the time of each operation.
        Raises InputError for ids that are not in the vocabulary and for what does not fit the context.
        """
        ids = self._ids(tokens)
        if n_past < 0 or n_past + len(ids) > self.n_ctx:
            raise InputError(f"{n_past + len(ids)} tokens do not fit the context of {self.n_ctx}")
        if not 0 <= n_out <= len(ids):
            raise InputError(f"logits of {n_out} tokens were asked for, there are {len(ids)}")
        self.cache.reserve(n_past + len(ids))
        del self.cached[n_past:]
        logits = np.empty((n_out, self.hparams.n_vocab), np.float32)
        for first in range(0, len(ids), self.n_batch):
            batch = ids[first : first + self.n_batch]
            wanted = max(0, first + len(batch) - (len(ids) - n_out))  # of this batch's last tokens
            wanted = min(wanted, len(batch))
            self._step(batch, n_past + first, wanted, stopwatch)
            self.cached += batch.tolist()
            if wanted:
                at = first + len(batch) - wanted - (len(ids) - n_out)
                logits[at : at + wanted] = self._bound.view("logits", wanted)
        return logits

    def changed_files(self) -> list[str]:
        """Files that are not any more what was loaded; each is told once. The model in memory stays as it was."""
        changed = [path for path, status in self._files.items() if file_status(path) != status]
        for path in changed:
            del self._files[path]
        return changed

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many of the first of `tokens` need not be run again; not the last one, whose logits are wanted."""
        return common_prefix(self.cached, tokens[:-1])

    def stopwatch(self) -> Stopwatch:
        """A new one, for `forward`."""
        return Stopwatch(self._bound)

    def collector(self) -> Collector:
        """A new one, for `forward` in place of a stopwatch."""
        return Collector(self._bound)

    def _step(self, batch: np.ndarray, n_past: int, n_out: int, stopwatch: Stopwatch | Collector | None) -> None:
        self._tokens[: len(batch)] = batch
        self._bound.set_step(n_tokens=len(batch), n_past=n_past, n_out=n_out)
        if stopwatch is not None:
            stopwatch.run(self.team)
        else:
            self.team.run(self._bound.tape, self._bound.arguments, self._bound.step)

    def _ids(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
            raise InputError(f"tokens must be a list of integers, got {ids.dtype} of shape {list(ids.shape)}")
        wrong = ids[(ids < 0) | (ids >= self.hparams.n_vocab)]
        if len(wrong):
            raise InputError(f"token id {wrong[0]} is not in the vocabulary (0 to {self.hparams.n_vocab - 1})")
        return ids.astype(np.int32)

    def close(self) -> None:
        """Stop the threads."""
        self.team.close()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _in_range(what: str, value: int, high: int) -> int:
    if not 1 <= value <= high:
        raise InputError(f"{what}: {value} is not between 1 and {high}")
    return value


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
