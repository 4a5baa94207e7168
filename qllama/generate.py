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
    seed: int = field(default=-1)


def generate(
    model: Model,
    prompt: Sequence[int],
    sampler: SamplerChain,
    n_predict: int,
    eog: frozenset[int],
    stats: Stats,
) -> Iterator[int]:
    """Yield tokens that continue `prompt` in a fresh context, without the end-of-generation token.

    n_predict < 0 means until the end or the full context. Raises InputError, before any computing, for a prompt that is
    empty or leaves no room in the context. `stats` is kept up to date.
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
    logits = model.forward(prompt, 0)[-1]
    stats.prompt_seconds = time.perf_counter() - started
    position = len(prompt)
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
        if stats.n_generated == n_predict or position == model.n_ctx:
            return
        logits = model.forward([token], position)[-1]
        position += 1
