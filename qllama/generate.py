"""The token loop: prompt in, sampled tokens out, one at a time. Token ids only; text is llm.py's business."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qllama.errors import InputError
from qllama.model import Model
from qllama.sampling.chain import SamplerChain


@dataclass
class Stats:
    """What a generation took. Times in seconds; the prompt ends with the first token."""

    n_prompt: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    generation_seconds: float = 0.0
    finish_reason: str = ""  # "stop": an end-of-generation token or a stop text; "length": n_predict or the context
    context_full: bool = False  # it ended because of the context
    n_cached: int = 0  # tokens of the prompt that were still known and not computed again
    n_dropped: int = 0  # tokens that context shifts have dropped
    seed: int = field(default=-1)


def generate(
    model: Model,
    prompt: Sequence[int],
    sampler: SamplerChain,
    n_predict: int,
    eog: frozenset[int],
    stats: Stats,
    n_keep: int | None = None,
) -> Iterator[int]:
    """Yield tokens that continue `prompt`, without the end-of-generation token.

    What the model has still cached of the prompt's beginning is not computed again; the tokens are the same.
    n_predict < 0 means until the end or the full context. With `n_keep` a full context does not end it: the first
    n_keep tokens and the newer half of the others stay, and are computed anew where they moved.
    Raises InputError, before any computing, for a prompt that is empty or leaves no room in the context. `stats` is
    kept up to date.
    """
    if not prompt:
        raise InputError("the prompt has no tokens and the model has no BOS token to begin with")
    if len(prompt) >= model.n_ctx:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the context of {model.n_ctx} leaves no room for an answer"
        )
    for token in prompt:
        sampler.accept(token)
    stats.n_prompt, stats.seed = len(prompt), sampler.seed
    stats.finish_reason = "length"
    if n_predict == 0:
        return
    started = time.perf_counter()
    tokens = list(prompt)
    stats.n_cached = model.reusable(tokens)
    logits = model.forward(tokens[stats.n_cached :], stats.n_cached)[-1]
    stats.prompt_seconds = time.perf_counter() - started
    while True:
        token = sampler.sample(logits)
        sampler.accept(token)
        now = time.perf_counter()
        stats.first_token_seconds = stats.first_token_seconds or now - started
        stats.generation_seconds = now - started - stats.first_token_seconds
        if token in eog:
            stats.finish_reason = "stop"
            return
        stats.n_generated += 1
        yield token
        tokens.append(token)
        if stats.n_generated == n_predict:
            return
        if len(tokens) > model.n_ctx:
            if n_keep is None:
                stats.context_full = True
                return
            n_tokens = len(tokens)
            tokens = shifted(tokens, n_keep)
            stats.n_dropped += n_tokens - len(tokens)
            n_cached = model.reusable(tokens)
        else:
            n_cached = len(tokens) - 1
        logits = model.forward(tokens[n_cached:], n_cached)[-1]


def shifted(tokens: list[int], n_keep: int) -> list[int]:
    """What a context shift leaves: the first n_keep tokens, at most half of all, and the newer half of the others."""
    n_keep = min(n_keep, len(tokens) // 2)
    return tokens[:n_keep] + tokens[n_keep + (len(tokens) - n_keep + 1) // 2 :]
