"""Running the samplers token by token, and what has to be remembered between tokens. Ids only, no text."""

from collections.abc import Mapping
from random import Random, SystemRandom
from typing import Any

import numpy as np

from qllama.errors import QllamaError
from qllama.sampling.candidates import Candidates
from qllama.sampling.dry import Tokenizer
from qllama.sampling.order import Order, build, parameters
from qllama.sampling.samplers import Dist, State

RANDOM_SEEDS = (-1, 0xFFFFFFFF)


class SamplerChain:
    """Chooses tokens from logits as `options` (see order.OPTIONS; llama.cpp's defaults) say.

    The same seed gives the same tokens from the same logits on every machine: the numbers are Python's
    `random.Random(seed).random()`, which does not change between versions. `seed` is the one in use.
    `tokenizer` is needed for DRY's sequence breakers only. Raises InputError naming the option.
    """

    def __init__(
        self, n_vocab: int, options: Mapping[str, Any] | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        options = options or {}
        self.samplers = build(options)
        self._wanted_seed = parameters(Dist, options).seed
        self._state = State(n_vocab, tokenizer, min_keep=parameters(Order, options).min_keep)
        self.reset()

    def reset(self) -> None:
        """Forget the text: history, Mirostat's state, position in the random numbers (a new seed for -1)."""
        random = self._wanted_seed in RANDOM_SEEDS
        self.seed = SystemRandom().randrange(0xFFFFFFFF) if random else self._wanted_seed
        self._state.rng = Random(self.seed)
        self._state.history.clear()
        for sampler in self.samplers:
            sampler.start(self._state)

    def accept(self, token: int) -> None:
        """`token` is now part of the text, of the prompt as well as of what was sampled."""
        self._state.history.append(token)

    def sample(self, logits: np.ndarray) -> int:
        """The next token, not yet accepted. `logits`: (n_vocab,) float32, left as they are.

        Raises QllamaError when they are NaN or leave no choice.
        """
        if logits.shape != (self._state.n_vocab,):
            raise QllamaError(f"found logits of shape {logits.shape}, needed ({self._state.n_vocab},)")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # -inf and 0 / 0 are dealt with
            candidates = Candidates.of(logits)
            for sampler in self.samplers:
                candidates = sampler.apply(candidates, self._state)
        return int(candidates.ids[0])
