"""What is measured: llama-bench's parameters, their value lists, and the tests that they combine to.

Names and defaults are llama-bench's. Plain Python: nothing here knows a model or a clock.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from qllama.errors import InputError

MAX_VALUES = 1000  # of one option: more is a slip of the finger
MAX_INT = 2**31 - 1

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", re.ASCII)


@dataclass(frozen=True)
class Instance:
    """One line of the table: a test with one value for every parameter."""

    model: str
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    n_threads: int
    n_depth: int  # tokens in the context before the test begins
    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """As in the column "test": pp512, tg128, pp512+tg128, pp512 @ d4096."""
        parts = [f"{what}{n}" for what, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens whose time is taken."""
        return self.n_prompt + self.n_gen

    @property
    def n_ctx(self) -> int:
        """Tokens of context that the test needs."""
        return self.n_depth + self.n_tokens

    @property
    def n_step(self) -> int:
        """The most tokens of a step: llama.cpp cuts a prompt into batches and those into micro-batches."""
        return min(self.n_batch, self.n_ubatch)


@dataclass(frozen=True)
class Parameters:
    """The values of every parameter; each combination of them is measured.

    `foreign` has what is fixed here and can be varied in llama-bench: field -> value, where the user gave one.
    """

    model: tuple[str, ...]
    n_threads: tuple[int, ...]
    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    n_pg: tuple[tuple[int, int], ...] = ()
    n_depth: tuple[int, ...] = (0,)
    n_batch: tuple[int, ...] = (2048,)
    n_ubatch: tuple[int, ...] = (512,)
    type_k: tuple[str, ...] = ("f16",)
    type_v: tuple[str, ...] = ("f16",)
    foreign: Mapping[str, str] = field(default_factory=dict)

    @property
    def tests(self) -> list[tuple[int, int]]:
        """(n_prompt, n_gen): every prompt, every generation, every pair of the two; what has no tokens is no test."""
        wanted = [*((p, 0) for p in self.n_prompt), *((0, n) for n in self.n_gen), *self.n_pg]
        return [test for test in wanted if test != (0, 0)]

    @property
    def instances(self) -> list[Instance]:
        """All of them, in llama-bench's order: what costs the least to change varies fastest."""
        settings = product(
            self.model, self.n_batch, self.n_ubatch, self.type_k, self.type_v, self.n_threads, self.n_depth
        )
        return [Instance(*setting, *test) for setting in settings for test in self.tests]


def integers(option: str, texts: Iterable[str], low: int = 0, high: int = MAX_INT) -> tuple[int, ...]:
    """The values that an option was given: `8`, `1,2,4`, `1-4`, `128-512+128`, `1-16*2`, all of `texts` in a row.

    Raises InputError, naming the option, for what is none of these and for values not in low..high.
    """
    found: list[int] = []
    for text in texts:
        for piece in text.removesuffix(",").split(",") if text else ():
            found += _range(option, piece)
            if len(found) > MAX_VALUES:
                raise InputError(f"{option}: more than {MAX_VALUES} values")
    for value in found:
        if not low <= value <= high:
            raise InputError(f"{option}: {value} is not between {low} and {high}")
    return tuple(found)


def _range(option: str, piece: str) -> list[int]:
    """The values of `first`, `first-last`, `first-last+step` or `first-last*factor`."""
    match = _RANGE.fullmatch(piece)
    if match is None or max(len(digits or "") for digits in match.group(1, 2, 4)) > 10:
        raise InputError(f"{option}: found {piece!r}, needed a number, or a range such as 1-8, 128-512+128 or 1-16*2")
    first = int(match[1])
    last, step = int(match[2] or first), int(match[4] or 1)
    values: list[int] = []
    while first <= last and len(values) <= MAX_VALUES:
        values.append(first)
        first = first * step if match[3] == "*" else first + step
        if first <= values[-1]:
            raise InputError(f"{option}: the range {piece} never ends")
    if not values:
        raise InputError(f"{option}: the range {piece} is empty")
    return values


def pairs(option: str, texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """`prompt,generated` each. Raises InputError, naming the option."""
    found = [integers(option, [text]) if re.fullmatch(r"\d+,\d+", text) else () for text in texts]
    for text, pair in zip(texts, found, strict=True):
        if len(pair) != 2:
            raise InputError(f"{option}: found {text!r}, needed two numbers such as 512,128")
    return tuple((pair[0], pair[1]) for pair in found)


def names(texts: Iterable[str]) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(name for text in texts for name in text.split(",") if name)
