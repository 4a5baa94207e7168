"""Runs the tests as llama-bench does: random tokens, no sampling, a fresh context. Returns times, prints nothing."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

import numpy as np

from qllama import cpu
from qllama.bench.parameters import Instance, Parameters
from qllama.bench.results import About, Result, about
from qllama.errors import FileError, InputError, printable
from qllama.gguf import open_gguf
from qllama.kv_cache import check_type
from qllama.model import Model, Progress, declare
from qllama.stopwatch import Stopwatch
from qllama.tokenizer import load_tokenizer

log = logging.getLogger("qllama")

SEED = 1

Report = Callable[[str], None]


@dataclass(frozen=True)
class Checked:
    """A file that runs: what it is, and the token that a text begins with (None: there is none)."""

    about: About
    bos: int | None


@dataclass(frozen=True)
class Options:
    """How tests are run. `report` is told what happens; `progress` makes what a model's loading is told to."""

    repetitions: int = 5
    warmup: bool = True
    delay: float = 0.0  # s before each test
    report: Report = lambda message: None
    progress: Callable[[], Progress] = Progress


def check(parameters: Parameters) -> dict[str, Checked]:
    """Model -> what it is. Raises InputError for whatever would fail later, when other tests have taken their time."""
    for k in parameters.type_k:
        check_type(k, option="-ctk")
    for v in parameters.type_v:
        check_type(v, option="-ctv")
    if not parameters.tests:
        raise InputError("there is nothing to measure: -p and -n are 0 and no -pg is given")
    return {model: _check(model) for model in parameters.model}


def _check(path: str) -> Checked:
    with open_gguf(path) as gguf:
        declared = declare(gguf)
        for warning in declared.warnings:
            log.warning("%s", warning)
        if declared.tensors.problems:
            raise FileError(path, printable(declared.tensors.problems[0]))
        try:
            tokenizer = load_tokenizer(gguf.metadata)
            bos = tokenizer.bos if tokenizer.add_bos else None
        except FileError:
            bos = None  # speed can be measured without a vocabulary
        return Checked(about(gguf, declared.hparams), bos)


def measure(parameters: Parameters, checked: dict[str, Checked], options: Options) -> Iterator[Result]:
    """The results, as they come."""
    for test, runner, report in each_test(parameters, checked, options):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        samples = runner.run(test, options, report)
        yield Result(test, checked[test.model].about, cpu_info(), now, samples, parameters.foreign)


def each_test(
    parameters: Parameters, checked: dict[str, Checked], options: Options
) -> Iterator[tuple[Instance, "Runner", Report]]:  # fmt: skip
    """Every test with its loaded model, which stays for all tests that differ in nothing but tokens."""
    instances = parameters.instances
    for _, group in groupby(enumerate(instances, 1), key=lambda item: loaded_with(item[1])):
        tests = list(group)
        with closing(Runner([test for _, test in tests], checked, options.progress())) as runner:
            for i, test in tests:
                report = _prefixed(options.report, f"benchmark {i}/{len(instances)}: ")
                report("starting")
                time.sleep(options.delay)
                yield test, runner, report


def loaded_with(test: Instance) -> tuple[str, int, str, str, int]:
    """Tests that have this in common share a loaded model."""
    return test.model, test.n_step, test.type_k, test.type_v, test.n_threads


def cpu_info() -> str:
    """The CPU as LLVM calls it, and what the kernels were compiled for."""
    return f"{cpu.host()[0]} ({cpu.isa().name})"


def _prefixed(report: Report, prefix: str) -> Report:
    return lambda message: report(prefix + message)


class Runner:
    """A loaded model and how far its context is filled; `tests` are those that it is loaded for."""

    def __init__(self, tests: Sequence[Instance], checked: dict[str, Checked], progress: Progress) -> None:
        first = tests[0]
        n_ctx = max(test.n_ctx for test in tests)
        self.model = Model(first.model, n_ctx, first.n_threads, first.n_step, first.type_k, first.type_v, progress)
        self.bos = checked[first.model].bos
        self.random = np.random.default_rng(SEED)
        self.n_filled = 0  # positions that have tokens of a depth

    def run(self, test: Instance, options: Options, report: Report) -> list[int]:
        """ns of each repetition."""
        self.fill(test.n_depth, report)
        if options.warmup:
            report("warmup")
            self.prompt(test)
            if test.n_gen:
                self.model.forward(self.tokens(1), test.n_depth + test.n_prompt)
        samples = []
        for i in range(options.repetitions):
            report(f"run {i + 1}/{options.repetitions}")
            samples.append(self.time(test))
        return samples

    def fill(self, n_depth: int, report: Report) -> None:
        """Put n_depth tokens into the context, as far as they are not there; what is behind them does not count."""
        if self.n_filled < n_depth:
            report(f"filling the context to {n_depth}")
            self.model.forward(self.tokens(n_depth)[self.n_filled :], self.n_filled)
        self.n_filled = n_depth

    def time(self, test: Instance, stopwatch: Stopwatch | None = None) -> int:
        """ns of the test, once. It begins at n_depth; there is no need to clear what is behind."""
        generated = self.tokens(test.n_gen)
        start = time.perf_counter_ns()
        self.prompt(test, stopwatch)
        for i in range(test.n_gen):
            self.model.forward(generated[i : i + 1], test.n_depth + test.n_prompt + i, stopwatch=stopwatch)
        return time.perf_counter_ns() - start

    def prompt(self, test: Instance, stopwatch: Stopwatch | None = None) -> None:
        if test.n_prompt:
            self.model.forward(self.tokens(test.n_prompt), test.n_depth, stopwatch=stopwatch)

    def tokens(self, n: int) -> np.ndarray:
        """n random ids (int64) after BOS, if the model wants it."""
        ids = self.random.integers(0, self.model.hparams.n_vocab, n)
        if self.bos is not None:
            ids[:1] = self.bos
        return ids

    def close(self) -> None:
        """Give the model's memory back, whoever still holds the runner: the next one needs it."""
        self.model.close()
        del self.model
