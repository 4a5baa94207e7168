"""DRY ("don't repeat yourself"): which tokens would continue a repetition, and how long it is.

After p-e-w's proposal (github.com/oobabooga/text-generation-webui/pull/5677), sequence breakers as llama.cpp.
What a repetition costs is samplers.py's business.
"""

from collections.abc import Sequence
from typing import Protocol

from qllama.errors import InputError

# Breakers in tokens: the first token -> what has to follow it. () is a token that holds a whole breaker.
Tails = dict[int, set[tuple[int, ...]]]

MAX_TAIL = 20  # tokens; bounds the search, as in llama.cpp


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    def token_bytes(self, id: int, special: bool = False) -> bytes: ...
    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = True) -> list[int]: ...


def breaker_tails(breakers: Sequence[str], n_vocab: int, tokenizer: Tokenizer | None) -> Tails:
    """The token sequences that hold a breaker: in one token, or one that ends as it begins and then the rest.

    Raises InputError when there are breakers but no tokenizer.
    """
    if not breakers:
        return {}
    if tokenizer is None:
        raise InputError("--dry-sequence-breaker: found no tokenizer, needed one to look for breakers")
    texts = [tokenizer.token_bytes(token, special=True) for token in range(n_vocab)]
    tails: Tails = {}
    for breaker in (text.encode(errors="surrogatepass") for text in breakers):
        rests = {breaker[:i]: _rest(breaker[i:], tokenizer) for i in range(1, len(breaker))}
        for token, text in enumerate(texts):
            begun = {rest for start, rest in rests.items() if text.endswith(start)}
            if found := {()} if breaker in text else begun:
                tails.setdefault(token, set()).update(found)
    return tails


def _rest(text: bytes, tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special=False, parse_special=False)[:MAX_TAIL])


def since_breaker(backwards: Sequence[int], tails: Tails) -> int:
    """How many of the latest tokens (`backwards`: newest first) come after the latest breaker."""
    for i, token in enumerate(backwards):
        followed = [len(t) for t in tails.get(token, ()) if _follow(t, backwards, i)]
        if followed:
            return i - max(followed)
    return len(backwards)


def _follow(tail: tuple[int, ...], backwards: Sequence[int], i: int) -> bool:
    return tuple(backwards[max(0, i - len(tail)) : i][::-1]) == tail


def z_lengths(tokens: Sequence[int]) -> list[int]:
    """For each position, how many tokens from there on equal those from the start: the Z algorithm."""
    z = [0] * len(tokens)
    left = right = 0  # the match that reaches furthest is tokens[left:right]
    for k in range(1, len(tokens)):
        if k < right:
            z[k] = min(right - k, z[k - left])
        while k + z[k] < len(tokens) and tokens[z[k]] == tokens[k + z[k]]:
            z[k] += 1
        if k + z[k] > right:
            left, right = k, k + z[k]
    return z


def continuations(recent: list[int], tails: Tails, allowed: int) -> dict[int, int]:
    """The tokens that would continue a repetition of at least `allowed` tokens -> the longest one."""
    backwards = recent[::-1]
    limit = since_breaker(backwards, tails)
    longest: dict[int, int] = {}
    for following, z in zip(backwards, z_lengths(backwards)[1:], strict=False):
        length = min(z, limit)
        if length >= allowed and () not in tails.get(following, ()):
            longest[following] = max(length, longest.get(following, 0))
    return longest
