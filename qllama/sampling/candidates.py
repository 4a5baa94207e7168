"""The tokens still in the race with their logits, in NumPy. Which of them stay is samplers.py's business."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from qllama.errors import QllamaError

T = TypeVar("T")

GROUP = 64  # logits per group in _floor; 32 to 128 measured alike on 128K


@lru_cache(maxsize=4)
def _all_ids(n_vocab: int) -> np.ndarray:
    return np.arange(n_vocab, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Candidates:
    """`ids` (n,) int32 with their `logits` (n,) float32, finite or -inf; never changed in place.

    In one of two orders: `sorted`, likeliest first and equals by id, or by id.
    """

    ids: np.ndarray
    logits: np.ndarray
    sorted: bool = False

    @classmethod
    def of(cls, logits: np.ndarray) -> Candidates:
        """All tokens of a vocabulary. Raises QllamaError when the logits are NaN or all -inf."""
        return cls(_all_ids(len(logits)), np.asarray(logits, dtype=np.float32)).checked()

    def checked(self) -> Candidates:
        """The same, a logit of +inf taking all. Raises QllamaError on NaN or if no token is left."""
        if math.isnan(self.max):
            n_nan = int(np.isnan(self.logits).sum())
            raise QllamaError(f"the model produced NaN logits: found {n_nan} among {len(self)}, needed none")
        if self.max == -math.inf:
            raise QllamaError("no token can be chosen: found only logits of -inf, needed one that is not")
        if self.max == math.inf:
            return Candidates(self.ids, np.where(self.logits == np.inf, 0, -np.inf).astype(np.float32))
        return self

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def max(self) -> float:
        """The largest logit."""
        return float(self.logits[0] if self.sorted else self.logits.max())

    def take(self, keep: Any) -> Candidates:
        """Those that `keep` (mask, slice or ascending positions) selects."""
        return Candidates(self.ids[keep], self.logits[keep], self.sorted)

    def best(self) -> Candidates:
        """The likeliest alone; the lowest id among equals."""
        at = 0 if self.sorted else int(self.logits.argmax())
        return self.take(slice(at, at + 1))

    def top(self, k: int) -> Candidates:
        """The `k` likeliest, sorted; the lowest ids among equals."""
        if self.sorted:
            return self.take(slice(k))
        at = np.flatnonzero(self.logits >= _floor(self.logits, k))
        at = at[np.argsort(-self.logits[at], kind="stable")[:k]]
        return Candidates(self.ids[at], self.logits[at], sorted=True)

    def by_id(self) -> Candidates:
        """The same, in the order of ids."""
        if not self.sorted:
            return self
        order = self.ids.argsort()
        return Candidates(self.ids[order], self.logits[order])

    def edit(self, values: Mapping[int, T], f: Callable[[float, T], float]) -> Candidates:
        """The logit of every token in `values` becomes f(logit, value). In the order of ids."""
        old = self.by_id()
        logits = old.logits.copy()
        tokens = np.fromiter(values, dtype=np.int32, count=len(values))
        places = np.searchsorted(old.ids, tokens)
        for at, token, value in zip(places.tolist(), tokens.tolist(), values.values(), strict=True):
            if at < len(old) and old.ids[at] == token:
                logits[at] = f(float(logits[at]), value)
        return Candidates(old.ids, logits).checked()

    def divide(self, temp: float) -> Candidates:
        """Logits divided by `temp`; the best alone if that overflows, as it is the limit."""
        scaled = Candidates(self.ids, self.logits / np.float32(temp), self.sorted)
        return scaled if math.isfinite(scaled.max) else self.best()

    def weights(self) -> np.ndarray:
        """Probabilities up to a common factor, the likeliest having 1: (n,) float64."""
        return np.exp(self.logits - np.float32(self.max), dtype=np.float64)

    def probs(self) -> np.ndarray:
        """Probabilities: (n,) float64."""
        weights = self.weights()
        return weights / weights.sum()

    def surprise(self) -> np.ndarray:
        """-log of the probabilities, in nats: (n,) float64, inf where the probability is 0."""
        return -np.log(self.probs())

    def entropy(self) -> float:
        """Of the distribution, in nats."""
        p = self.probs()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    def std(self) -> float:
        """Standard deviation of the finite logits."""
        return float(self.logits[np.isfinite(self.logits)].std(dtype=np.float64))

    def draw(self, u: float) -> int:
        """The position chosen by `u`, uniform in [0, 1); one of probability 0 is never chosen."""
        sums = self.weights().cumsum()
        return int(sums.searchsorted(sums[-1] * u, side="right"))


def _floor(logits: np.ndarray, k: int) -> float:
    """A value that at least `k` logits reach, and few more than that.

    The k-th largest of the maxima of groups: one pass and a partition of n / GROUP values instead of n.
    """
    n_groups = len(logits) // GROUP
    if k >= len(logits):
        return -math.inf
    if k <= n_groups:
        logits = logits[: n_groups * GROUP].reshape(GROUP, n_groups).max(axis=0)
    return np.partition(logits, -k)[-k]
