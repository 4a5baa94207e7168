"""How far a model's predictions are from a base model's: Kullback-Leibler divergence, probabilities, top tokens.

All values are of the scored tokens, as in llama.cpp's `--kl-divergence`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from qllama.errors import FileError
from qllama.evaluate.base import BaseFile, decode
from qllama.evaluate.perplexity import Text, blocks, log_sums, predictions
from qllama.model import Model

MIN_COUNT = 10  # values from which an error is estimated


class Value(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def estimated(values: np.ndarray) -> Value:
    n, mean = len(values), float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    return Value(mean, (variance / (n - 1)) ** 0.5 if variance > 0 and n > MIN_COUNT else 0.0)


def covariance(a: np.ndarray, b: np.ndarray) -> float:
    """Of the two means."""
    n = len(a)
    return (float((a * b).mean()) - float(a.mean()) * float(b.mean())) / (n - 1) if n >= MIN_COUNT else 0.0


def root(x: float) -> float:
    return max(0.0, x) ** 0.5


@dataclass(frozen=True)
class Divergence:
    """Of every scored token so far, (n,): -log(probability) by the model and by the base, the KL divergence of the two
    distributions (float64), the difference of the probabilities, and whether both find the same token likeliest."""

    n_chunk: int
    nll: np.ndarray
    nll_base: np.ndarray
    kld: np.ndarray
    p_diff: np.ndarray
    same_top: np.ndarray

    @cached_property
    def log_ppl(self) -> Value:
        return estimated(self.nll)

    @cached_property
    def log_ppl_base(self) -> Value:
        return estimated(self.nll_base)

    @property
    def ppl(self) -> Value:
        ppl = float(np.exp(self.log_ppl.mean))
        return Value(ppl, ppl * self.log_ppl.error)

    @property
    def ppl_base(self) -> Value:
        ppl = float(np.exp(self.log_ppl_base.mean))
        return Value(ppl, ppl * self.log_ppl_base.error)

    @cached_property
    def covariance(self) -> float:
        """Of `log_ppl` and `log_ppl_base`: both are of the same text."""
        return covariance(self.nll, self.nll_base)

    @property
    def correlation(self) -> float:
        errors = self.log_ppl.error * self.log_ppl_base.error
        return self.covariance / errors if errors else 0.0

    @property
    def log_ratio(self) -> Value:
        """ln(PPL / PPL of the base)."""
        a, b = self.log_ppl, self.log_ppl_base
        return Value(a.mean - b.mean, root(a.error**2 + b.error**2 - 2 * self.covariance))

    @property
    def ratio(self) -> Value:
        log = self.log_ratio
        return Value(float(np.exp(log.mean)), float(np.exp(log.mean)) * log.error)

    @property
    def difference(self) -> Value:
        a, b = self.ppl, self.ppl_base
        return Value(a.mean - b.mean, root(a.error**2 + b.error**2 - 2 * a.mean * b.mean * self.covariance))

    @property
    def mean_kld(self) -> Value:
        return estimated(self.kld)

    @property
    def mean_p_diff(self) -> Value:
        return estimated(self.p_diff)

    @property
    def rms_p_diff(self) -> Value:
        squares = estimated(self.p_diff**2)
        rms = root(squares.mean)
        return Value(rms, 0.5 / rms * squares.error if rms else 0.0)

    @property
    def top(self) -> Value:
        """How often the likeliest token is the same."""
        share, n = float(self.same_top.mean()), len(self.same_top)
        return Value(share, root(share * (1 - share) / (n - 1)))


def percentile(values: np.ndarray, fraction: float) -> float:
    """Of sorted values, between two of them in proportion."""
    at = fraction * (len(values) - 1)
    i = int(at)
    return float((1 - (at - i)) * values[i] + (at - i) * values[min(i + 1, len(values) - 1)])


def compare(logits: np.ndarray, base: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays of `Divergence` for some tokens, from logits (n, n_vocab), the base's rows, and the tokens (n,)."""
    n, n_vocab = logits.shape
    nll, nll_base, kld, same_top = np.empty(n), np.empty(n), np.empty(n), np.empty(n, bool)
    for rows in blocks(n, n_vocab):
        log_p = logits[rows] - log_sums(logits[rows]).astype(np.float32)[:, None]
        log_base = decode(base[rows], n_vocab)
        each = np.arange(len(log_p))
        nll[rows], nll_base[rows] = -log_p[each, wanted[rows]], -log_base[each, wanted[rows]]
        seen = log_base > -16  # the base file does not tell smaller ones apart
        terms = np.where(seen, np.exp(log_base) * (log_base - log_p), 0)
        kld[rows] = terms.sum(axis=1, dtype=np.float64)
        same_top[rows] = log_p.argmax(axis=1) == log_base.argmax(axis=1)
    return nll, nll_base, kld, np.exp(-nll) - np.exp(-nll_base), same_top


def divergence(model: Model, base: BaseFile, bos: int | None) -> Iterator[Divergence]:
    """What is known after each chunk; the last one is that of the whole text. `bos` begins each chunk (None: it stays).

    Raises FileError when the base's vocabulary is not the model's.
    """
    if base.n_vocab != model.hparams.n_vocab:
        found = f"was made with a vocabulary of {base.n_vocab} tokens, the model has {model.hparams.n_vocab}"
        raise FileError(base.path, found)
    parts: list[tuple[np.ndarray, ...]] = []
    for (logits, wanted), rows in zip(predictions(model, Text(base.chunks, bos)), base.rows(), strict=True):
        parts.append(compare(logits, rows, wanted))
        yield Divergence(len(parts), *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
