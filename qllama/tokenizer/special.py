"""Finds special tokens in raw text. What lies between them is left to the tokenizers."""

from qllama.tokenizer.vocab import USER_DEFINED, Vocabulary


class SpecialTokens:
    """The special tokens of a vocabulary, found as llama.cpp finds them.

    Longest token first, each in what the longer ones left over: where two overlap the longer one wins, not
    the one further left.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ids = {vocabulary.tokens[id]: id for id in reversed(vocabulary.special)}
        self.ids.pop(b"", None)
        self._all = sorted(self.ids.items(), key=lambda token: (-len(token[0]), token[1]))
        self._user_defined = [token for token in self._all if vocabulary.types[token[1]] == USER_DEFINED]
        self._rstrip = vocabulary.rstrip

    def split(self, text: bytes, parse_special: bool) -> list[bytes | int]:
        """`text` as pieces of raw text, none empty, and ids. User-defined tokens are found in any case."""
        fragments: list[bytes | int] = [text] if text else []
        for token, id in self._all if parse_special else self._user_defined:
            if token in text:
                fragments = [part for fragment in fragments for part in self._cut(fragment, token, id)]
        return fragments

    def _cut(self, fragment: bytes | int, token: bytes, id: int) -> list[bytes | int]:
        if isinstance(fragment, int):
            return [fragment]
        head, *tails = fragment.split(token)
        parts: list[bytes | int] = [head]
        for tail in tails:
            parts += id, tail.lstrip() if id in self._rstrip else tail
        return [part for part in parts if part != b""]
