"""Byte-level BPE vocabularies (`tokenizer.ggml.model` = gpt2): words are put together by the file's merges.

How text is cut into words is left to pre.py; special tokens are split off by base.py before.

The merging is done here and by no library: tiktoken goes by the rank of the merged text alone, so it cannot
follow a list of merges, and tokenizers takes longer to build than all else that a short prompt needs.
"""

import codecs
import re
import sys
from collections.abc import Iterable
from functools import cached_property, lru_cache
from heapq import heapify, heappop, heappush

from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.vocab import CONTROL, UNKNOWN, Vocabulary

CACHED_WORDS = 1 << 16

# Tokens are stored as text in which every byte is a visible character: Latin-1's where there is one, else
# the next from U+0100 on. By byte; GPT-2 began it.
_VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = sorted(set(range(256)) - _VISIBLE)
_CHARACTERS = [chr(byte if byte in _VISIBLE else 0x100 + _OTHERS.index(byte)) for byte in range(256)]
_SYMBOLS = [character.encode() for character in _CHARACTERS]
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


class BytePairTokenizer(Tokenizer):
    """A byte-level BPE vocabulary with its merges."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        assert vocabulary.pre is not None
        self._pre = vocabulary.pre
        self._merges = vocabulary.merges
        # Ordinary text never becomes a control token; in llama.cpp it can, where one is spelled like a word.
        self._ids = vocabulary.ids.copy()
        for id in vocabulary.special:
            if self._types[id] in (CONTROL, UNKNOWN) and self._ids.get(self._tokens[id]) == id:
                del self._ids[self._tokens[id]]
        self._word_ids = lru_cache(CACHED_WORDS)(self._encode_word)

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        """By merge, its place in the list: the lower, the sooner it is made."""
        return dict(zip(reversed(self._merges), reversed(range(len(self._merges))), strict=True))

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """As of every tokenizer; some vocabularies want no space before punctuation, and it is dropped."""
        text = super().decode(ids, special)
        return _cleaned(text) if self._pre.clean_spaces else text

    def _encode_text(self, text: bytes, after_special: bool) -> list[int]:
        words = self._pre.split(text.decode(errors=_LENIENT))
        return [id for word in words for id in self._word_ids(word)]

    def _text_of(self, token: bytes) -> bytes:
        try:
            return bytes([_BYTES[character] for character in token.decode()])
        except (KeyError, UnicodeDecodeError):  # an added token, stored as it is
            return token

    def _encode_word(self, word: str) -> list[int]:
        symbols = [_SYMBOLS[byte] for byte in word.encode(errors="surrogatepass")]
        if self._pre.ignore_merges and (id := self._ids.get(b"".join(symbols))) is not None:
            return [id]
        return [id for piece in self._merged(symbols) for id in self._piece_ids(piece)]

    def _piece_ids(self, piece: bytes) -> list[int]:
        """Its id; where the vocabulary lacks it, those of its bytes, as far as there are any."""
        if (id := self._ids.get(piece)) is not None:
            return [id]
        return [self._ids[byte] for byte in map(str.encode, piece.decode()) if byte in self._ids]

    def _merged(self, pieces: list[bytes]) -> list[bytes]:
        """`pieces` with neighbours merged: always those of the lowest rank, of equals the leftmost."""
        ranks, n = self._ranks, len(pieces)
        before, after = [*range(-1, n - 1)], [*range(1, n + 1)]  # the neighbours of each piece that is left

        def rank(left: int, right: int) -> int | None:
            return ranks.get(pieces[left] + b" " + pieces[right])

        queue = [(found, left, left + 1) for left in range(n - 1) if (found := rank(left, left + 1)) is not None]
        heapify(queue)
        while queue:
            expected, left, right = heappop(queue)
            if rank(left, right) != expected:  # one of them has been merged with another since
                continue
            pieces[left], pieces[right] = pieces[left] + pieces[right], b""
            after[left] = after[right]
            if after[left] < n:
                before[after[left]] = left
            for pair in ((before[left], left), (left, after[left])):
                if pair[0] >= 0 and pair[1] < n and (found := rank(*pair)) is not None:
                    heappush(queue, (found, *pair))
        return [piece for piece in pieces if piece]


def _cleaned(text: str) -> str:
    """Without the spaces that llama.cpp drops; some of them the text had, and they are lost."""
    text = re.sub(r" (?=[?!.,])", "", text)
    text = text.replace(" ' ", "'")
    return re.sub(r" (?='(?:s|m|re|ve))", "", text)


# What is no UTF-8 becomes U+FFFD byte by byte, but what only breaks its rules, as surrogates do, is a character.
_LENIENT = "qllama.lenient"
_CHARACTER = re.compile(rb"[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}")


def _lenient(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    if character := _CHARACTER.match(error.object, error.start):
        first, *rest = character[0]
        code = first & 0x3F >> len(rest)
        for byte in rest:
            code = code << 6 | byte & 0x3F
        if code <= sys.maxunicode:
            return chr(code), character.end()
    return "\ufffd", error.start + 1


codecs.register_error(_LENIENT, _lenient)
