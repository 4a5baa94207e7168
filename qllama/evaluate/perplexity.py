"""Perplexity by llama.cpp's method: chunks of n_ctx tokens, each read alone after BOS, their second halves scored."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qllama.errors import InputError, QllamaError
from qllama.model import Model
from qllama.tokenizer.base import Tokenizer

log = logging.getLogger("qllama")

MIN_CTX = 8  # tokens of a chunk; 3 of them are scored then
BLOCK = 1 << 22  # logits that are worked on at a time, so that what is made of them stays in the cache

Save = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Text:
    """A text cut into chunks: (n_chunk, n_ctx) int32. `bos` stands for the first token of each (None: it stays)."""

    chunks: np.ndarray
    bos: int | None

    @classmethod
    def of(cls, tokens: Sequence[int], n_ctx: int, bos: int | None, n_chunks: int = -1) -> "Text":
        """The first `n_chunks` chunks (-1: all); what is left at the end is not read.

        Raises InputError for fewer than two chunks of tokens, as llama.cpp does.
        """
        if len(tokens) < 2 * n_ctx:
            raise InputError(f"the text has {len(tokens)} tokens, a context of {n_ctx} needs at least {2 * n_ctx}")
        n = len(tokens) // n_ctx
        n = n if n_chunks < 0 else min(n, n_chunks)
        return cls(np.array(tokens[: n * n_ctx], np.int32).reshape(n, n_ctx), bos)

    @property
    def n_ctx(self) -> int:
        return self.chunks.shape[1]

    @property
    def n_scored(self) -> int:
        """Tokens of a chunk that are predicted and scored: those behind its middle."""
        return n_scored(self.n_ctx)


def chunk_bos(tokenizer: Tokenizer) -> int | None:
    """What each chunk begins with; None where the vocabulary adds no BOS. Raises InputError for one that adds EOS."""
    if tokenizer.add_eos:
        raise InputError(
            "the vocabulary adds EOS to every text: perplexity is not defined for it by llama.cpp's method"
        )
    return tokenizer.bos if tokenizer.add_bos else None


def read(tokenizer: Tokenizer, text: str | bytes, n_ctx: int, n_chunks: int = -1) -> Text:
    """`text` in chunks. The names of special tokens in it are plain text."""
    bos = chunk_bos(tokenizer)
    return Text.of(tokenizer.encode(text, parse_special=False), n_ctx, bos, n_chunks)


def n_scored(n_ctx: int) -> int:
    return n_ctx - 1 - n_ctx // 2


def predictions(model: Model, text: Text) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each chunk the logits (n_scored, n_vocab) float32, and the tokens (n_scored,) that should have been predicted.

    Raises QllamaError when a logit is NaN or infinite.
    """
    if text.n_ctx > model.hparams.n_ctx_train:
        log.warning("the model was trained on %d tokens of context, %d are used", model.hparams.n_ctx_train, text.n_ctx)
    for i, chunk in enumerate(text.chunks):
        tokens = chunk[:-1].copy()
        if text.bos is not None:
            tokens[0] = text.bos
        logits = model.forward(tokens, 0, text.n_scored)
        if not np.isfinite(logits).all():
            raise QllamaError(f"chunk {i + 1}: the model produced logits that are not finite numbers")
        yield logits, chunk[-text.n_scored :]


def blocks(n_row: int, n_vocab: int) -> Iterator[slice]:
    """Rows of logits, some at a time."""
    step = max(1, BLOCK // n_vocab)
    return (slice(first, first + step) for first in range(0, n_row, step))


def log_sums(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) of each row: (n,) float64. The exponentials are float32, their sum float64."""
    out = np.empty(len(logits))
    for rows in blocks(*logits.shape):
        top = logits[rows].max(axis=1, keepdims=True)
        exps = np.exp(logits[rows] - top)
        out[rows] = top[:, 0] + np.log(exps.sum(axis=1, dtype=np.float64))
    return out


@dataclass(frozen=True)
class Estimate:
    """What is known after some chunks. `nll` and `nll2` are sums of -log(probability) and of its square."""

    n_chunk: int = 0
    count: int = 0
    nll: float = 0.0
    nll2: float = 0.0

    def plus(self, nll: np.ndarray) -> "Estimate":
        """After a further chunk with these (n_scored,) values."""
        return Estimate(
            self.n_chunk + 1, self.count + len(nll), self.nll + float(nll.sum()), self.nll2 + float((nll * nll).sum())
        )

    @property
    def log_ppl(self) -> float:
        return self.nll / self.count

    @property
    def log_error(self) -> float:
        """Standard error of `log_ppl`, from the spread of the tokens."""
        variance = self.nll2 / self.count - self.log_ppl**2
        return math.sqrt(max(0.0, variance) / (self.count - 1))

    @property
    def ppl(self) -> float:
        return math.exp(self.log_ppl)

    @property
    def error(self) -> float:
        return self.log_error * self.ppl


def perplexity(model: Model, text: Text, save: Save | None = None) -> Iterator[Estimate]:
    """The estimate after each chunk; the last one is that of the text. `save` is given the logits of each chunk."""
    estimate = Estimate()
    for logits, wanted in predictions(model, text):
        if save is not None:
            save(logits)
        estimate = estimate.plus(log_sums(logits) - logits[np.arange(len(wanted)), wanted])
        yield estimate
