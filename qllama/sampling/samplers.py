"""What each sampler does to the candidates, its parameters and llama.cpp's defaults for them.

Written in the operations of `Candidates`: NumPy is not needed before there are logits. A new sampler is
a class and a line in SAMPLERS. Which of them run is order.py's business, running them chain.py's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, ClassVar

from qllama.errors import InputError
from qllama.sampling.dry import Tails, Tokenizer, breaker_tails, continuations
from qllama.sampling.parameters import BIAS, BREAKERS, Parameters, number, option, whole

if TYPE_CHECKING:
    from qllama.sampling.candidates import Candidates

MAX_LOG = 88.7228391  # log of the largest float32: where DRY's penalty stops growing, as in llama.cpp
MIROSTAT_M = 100  # tokens from which Mirostat 1 estimates how fast probabilities fall


@dataclass
class State:
    """What a chain remembers from token to token; the samplers themselves never change."""

    n_vocab: int
    tokenizer: Tokenizer | None = None
    min_keep: int = 0  # candidates that truncation leaves at least
    rng: Random = field(default_factory=Random)
    history: list[int] = field(default_factory=list)
    mu: float = 0.0  # Mirostat's bound on surprise, in bits
    tails: Tails | None = None  # DRY's sequence breakers in tokens

    def recent(self, n: int) -> list[int]:
        """The last `n` tokens; all for -1."""
        return self.history[-n:] if n > 0 else self.history


class Sampler(Parameters, ABC):
    """Parameters and what they do to the candidates."""

    letter: ClassVar[str] = ""  # in --sampler-seq; a sampler without one has a fixed place
    keeps_best: ClassVar[bool] = False  # the likeliest candidate stays the likeliest

    @property
    def idle(self) -> bool:
        """Whether these values change nothing; the chain leaves such a sampler out."""
        return False

    def start(self, state: State) -> None:
        """Prepare the state for a new text. Raises InputError when a value does not suit the vocabulary."""

    @abstractmethod
    def apply(self, c: Candidates, state: State) -> Candidates:
        """The candidates that are left, with their new logits. Drawing a token leaves that one."""


@dataclass(frozen=True)
class LogitBias(Sampler):
    """Adds to the logits of chosen tokens; -inf forbids one."""

    logit_bias: Mapping[int, float] = option({}, BIAS, "make a token likelier (15043+1) or forbid it (15043-inf)", "-l")

    @property
    def idle(self) -> bool:
        return not self.logit_bias

    def start(self, state: State) -> None:
        if (token := max(self.logit_bias)) >= state.n_vocab:
            raise InputError(f"--logit-bias: found token {token}, needed 0 to {state.n_vocab - 1}")

    def apply(self, c: Candidates, state: State) -> Candidates:
        return c.edit(self.logit_bias, lambda logit, bias: logit + bias)


@dataclass(frozen=True)
class Penalties(Sampler):
    """Makes tokens of the recent text less likely: by a factor, per occurrence, and for having occurred."""

    letter = "e"
    repeat_last_n: int = option(64, whole(-1), "tokens that penalties look back on, -1 = all", gguf="penalty_last_n")
    repeat_penalty: float = option(
        1.0, number(above=0), "penalty for repeated tokens, 1.0 = off", gguf="penalty_repeat"
    )
    presence_penalty: float = option(0.0, number(), "penalty for tokens that occurred, 0.0 = off")
    frequency_penalty: float = option(0.0, number(), "penalty for each time a token occurred, 0.0 = off")

    @property
    def idle(self) -> bool:
        neutral = self.repeat_penalty == 1 and self.presence_penalty == 0 and self.frequency_penalty == 0
        return self.repeat_last_n == 0 or neutral

    def apply(self, c: Candidates, state: State) -> Candidates:
        return c.edit(Counter(state.recent(self.repeat_last_n)), self._penalized)

    def _penalized(self, logit: float, count: int) -> float:
        logit = logit * self.repeat_penalty if logit <= 0 else logit / self.repeat_penalty
        return logit - count * self.frequency_penalty - self.presence_penalty


@dataclass(frozen=True)
class Dry(Sampler):
    """Makes tokens that would continue a repetition less likely, the longer the repetition the more."""

    letter = "d"
    dry_multiplier: float = option(0.0, number(0), "strength of the DRY penalty, 0.0 = off")
    dry_base: float = option(1.75, number(1), "growth of the DRY penalty with each repeated token")
    dry_allowed_length: int = option(2, whole(0), "repetitions up to this length cost nothing in DRY")
    dry_penalty_last_n: int = option(64, whole(-1), "tokens that DRY looks back on, 0 = off, -1 = all")
    dry_sequence_breaker: tuple[str, ...] = option(
        ("\n", ":", '"', "*"),
        BREAKERS,
        "DRY does not look beyond this text, none = looks beyond all",
    )

    @property
    def idle(self) -> bool:
        return self.dry_multiplier == 0 or self.dry_penalty_last_n == 0

    def start(self, state: State) -> None:
        if state.tails is None:
            state.tails = breaker_tails(self.dry_sequence_breaker, state.n_vocab, state.tokenizer)

    def apply(self, c: Candidates, state: State) -> Candidates:
        recent = state.recent(self.dry_penalty_last_n)
        repeats = continuations(recent, state.tails or {}, self.dry_allowed_length)
        return c.edit(repeats, lambda logit, length: logit - self._penalty(length)) if repeats else c

    def _penalty(self, length: int) -> float:
        exponent = length - self.dry_allowed_length
        if self.dry_base > 1:
            exponent = min(exponent, int(MAX_LOG / math.log(self.dry_base)))
        return self.dry_multiplier * self.dry_base**exponent


@dataclass(frozen=True)
class TopNSigma(Sampler):
    """Keeps the logits within n standard deviations of the largest (arxiv.org/abs/2411.07641)."""

    letter, keeps_best = "s", True
    top_n_sigma: float = option(-1.0, number(), "keep logits within N standard deviations of the best", "--top-nsigma")

    @property
    def idle(self) -> bool:
        return self.top_n_sigma <= 0

    def apply(self, c: Candidates, state: State) -> Candidates:
        return c.take(c.logits >= c.max - self.top_n_sigma * c.std())


@dataclass(frozen=True)
class TopK(Sampler):
    """Keeps the k likeliest."""

    letter, keeps_best = "k", True
    top_k: int = option(40, whole(-1), "keep the N likeliest tokens, 0 = all", gguf="top_k")

    @property
    def idle(self) -> bool:
        return self.top_k <= 0

    def apply(self, c: Candidates, state: State) -> Candidates:
        return c.top(self.top_k)


@dataclass(frozen=True)
class Typical(Sampler):
    """Keeps the tokens closest to the expected surprise, up to a sum (arxiv.org/abs/2202.00666)."""

    letter = "y"
    typical_p: float = option(1.0, number(0, 1), "locally typical sampling with this sum, 1.0 = off", "--typical")

    @property
    def idle(self) -> bool:
        return self.typical_p == 1

    def apply(self, c: Candidates, state: State) -> Candidates:
        order = abs(c.surprise() - c.entropy()).argsort(kind="stable")
        n = c.probs()[order].cumsum().searchsorted(self.typical_p, side="right") + 1
        kept = order[: max(n, state.min_keep)]
        kept.sort()
        return c.take(kept)


@dataclass(frozen=True)
class TopP(Sampler):
    """Keeps the likeliest tokens up to a sum of probabilities, the one that reaches it included."""

    letter, keeps_best = "p", True
    top_p: float = option(0.95, number(0, 1), "keep the likeliest tokens up to this sum, 1.0 = all", gguf="top_p")

    @property
    def idle(self) -> bool:
        return self.top_p == 1

    def apply(self, c: Candidates, state: State) -> Candidates:
        goal = self.top_p * c.weights().sum()
        for n in (256, 8192, len(c)):  # sort no more than needed: few tokens hold most of the sum
            top = c.top(n)
            sums = top.weights().cumsum()
            if sums[-1] >= goal and n >= state.min_keep:
                break
        return top.take(slice(max(int(sums.searchsorted(goal)) + 1, state.min_keep)))


@dataclass(frozen=True)
class MinP(Sampler):
    """Keeps the tokens that are not much less likely than the likeliest (arxiv.org/abs/2407.01082)."""

    letter, keeps_best = "m", True
    min_p: float = option(0.05, number(0, 1), "keep tokens with this share of the best one's probability", gguf="min_p")

    @property
    def idle(self) -> bool:
        return self.min_p == 0

    def apply(self, c: Candidates, state: State) -> Candidates:
        kept = c.take(c.logits >= c.max + math.log(self.min_p))
        return kept if len(kept) >= state.min_keep else c.top(state.min_keep)


@dataclass(frozen=True)
class XTC(Sampler):
    """Now and then removes the likely tokens but the least likely of them, for variety."""

    letter = "x"
    xtc_probability: float = option(
        0.0, number(0, 1), "how often XTC removes the top choices, 0.0 = off", gguf="xtc_probability"
    )
    xtc_threshold: float = option(
        0.1, number(0, 1), "probability of a top choice in XTC, above 0.5 = off", gguf="xtc_threshold"
    )

    @property
    def idle(self) -> bool:
        return self.xtc_probability == 0 or self.xtc_threshold > 0.5

    def apply(self, c: Candidates, state: State) -> Candidates:
        if len(c) < 2 or state.rng.random() >= self.xtc_probability:
            return c
        keep = c.probs() < self.xtc_threshold
        choices = (~keep).nonzero()[0][::-1]
        if len(choices) < 2 or len(c) - len(choices) + 1 < state.min_keep:
            return c
        keep[choices[c.logits[choices].argmin()]] = True
        return c.take(keep)


@dataclass(frozen=True)
class Temperature(Sampler):
    """Divides the logits; the likeliest alone stays when `temp` is 0 or less.

    With a range it follows the entropy, from temp - range to temp + range (arxiv.org/abs/2309.02772).
    """

    letter = "t"
    temp: float = option(0.8, number(), "temperature, 0 = always the likeliest token", "--temperature", gguf="temp")
    dynatemp_range: float = option(0.0, number(0), "let the temperature vary by this much, 0.0 = off")
    dynatemp_exp: float = option(1.0, number(0), "exponent of the varying temperature")

    @property
    def idle(self) -> bool:
        return self.temp == 1 and self.dynatemp_range == 0

    def apply(self, c: Candidates, state: State) -> Candidates:
        temp = self.temp
        if temp > 0 and self.dynatemp_range > 0 and len(c) > 1:
            low, high = max(0.0, temp - self.dynatemp_range), temp + self.dynatemp_range
            temp = low + (high - low) * (c.entropy() / math.log(len(c))) ** self.dynatemp_exp
        return c.divide(temp) if temp > 0 else c.best()


@dataclass(frozen=True)
class Mirostat(Sampler):
    """Draws a token, cutting off so that its surprise stays near a target (arxiv.org/abs/2007.14966)."""

    mirostat: int = option(
        0, whole(0, 2), "0 = off, 1 = Mirostat, 2 = Mirostat 2.0, instead of top-k etc.", gguf="mirostat"
    )
    mirostat_lr: float = option(0.1, number(0), "Mirostat's learning rate, eta", gguf="mirostat_eta")
    mirostat_ent: float = option(5.0, number(0), "Mirostat's target surprise in bits, tau", gguf="mirostat_tau")

    def start(self, state: State) -> None:
        state.mu = 2 * self.mirostat_ent

    def apply(self, c: Candidates, state: State) -> Candidates:
        kept = self.truncate(c, state)
        at = kept.draw(state.rng.random())
        state.mu -= self.mirostat_lr * (float(kept.surprise()[at]) / math.log(2) - self.mirostat_ent)
        return kept.take(slice(at, at + 1))

    def truncate(self, c: Candidates, state: State) -> Candidates:
        """Those whose surprise is at most mu: as estimated (1), or as measured (2)."""
        if self.mirostat == 1:
            return c.top(_mirostat_k(c, state))
        kept = c.take(c.surprise() <= state.mu * math.log(2))
        return kept if len(kept) else c.best()


def _mirostat_k(c: Candidates, state: State) -> int:
    """How many tokens to keep if the probabilities fall as rank**-s: Mirostat's equations 2 to 4."""
    logits = [x for x in c.top(MIROSTAT_M).logits.tolist() if math.isfinite(x)]
    steps = [math.log((i + 2) / (i + 1)) for i in range(len(logits) - 1)]
    falls = [a - b for a, b in pairwise(logits)]
    try:
        s = sum(t * b for t, b in zip(steps, falls, strict=True)) / sum(t * t for t in steps)
        epsilon = s - 1
        k = int((epsilon * 2**state.mu / (1 - state.n_vocab**-epsilon)) ** (1 / s))
    except (OverflowError, ZeroDivisionError):  # equal logits, a single one, or a mu beyond every surprise
        return len(c)
    return min(max(k, 1), len(c))


@dataclass(frozen=True)
class Dist(Sampler):
    """Draws one of the candidates by their probabilities."""

    seed: int = option(-1, whole(-1, 2**32 - 1), "seed of the random numbers, -1 = a new one each time", "-s")

    def apply(self, c: Candidates, state: State) -> Candidates:
        if len(c) == 1:
            return c
        at = c.draw(state.rng.random())
        return c.take(slice(at, at + 1))


# llama.cpp's name: what it does. In the order of the default chain.
SAMPLERS: dict[str, type[Sampler]] = {
    "logit_bias": LogitBias,
    "penalties": Penalties,
    "dry": Dry,
    "top_n_sigma": TopNSigma,
    "top_k": TopK,
    "typ_p": Typical,
    "top_p": TopP,
    "min_p": MinP,
    "xtc": XTC,
    "temperature": Temperature,
    "mirostat": Mirostat,
    "dist": Dist,
}
