"""Tokens to text as they come, never splitting a character."""

import codecs
from collections.abc import Collection

from qllama.tokenizer.base import Tokenizer


class StreamDecoder:
    """Decodes ids one at a time; all pieces together are what `Tokenizer.decode` makes of all ids.

    But spaces before punctuation, which some vocabularies drop, are kept: it is not known yet what follows.

    With `continuation` the text goes on from one that is already shown, and keeps its leading space.
    `special` shows control tokens: all, or those of these ids.
    """

    def __init__(
        self, tokenizer: Tokenizer, special: bool | Collection[int] = False, continuation: bool = False
    ) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._drop_space = tokenizer.space_prefix and not continuation
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that `id` completes: perhaps none, if it ends within a character."""
        special = self._special if isinstance(self._special, bool) else id in self._special
        piece = self._tokenizer.token_bytes(id, special)
        if piece and self._drop_space:
            piece, self._drop_space = piece.removeprefix(b" "), False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left when no more ids come: U+FFFD for a character that was not completed."""
        return self._decoder.decode(b"", final=True)
