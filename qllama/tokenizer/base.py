"""What every tokenizer does alike: special tokens, BOS and EOS, ids to bytes to text.

How a piece of ordinary text becomes ids is left to the kinds of vocabulary: spm.py, bpe.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from qllama.errors import InputError
from qllama.tokenizer.special import SpecialTokens
from qllama.tokenizer.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary


class Tokenizer(ABC):
    """Text to token ids and back, with llama.cpp's results.

    Ids are 0 to `n_vocab` - 1; `bos` and `eos` are None if the file has none; one in `eog` ends a generation.
    `add_bos` and `add_eos`: what `encode` adds. `space_prefix`: `decode` drops a space before the text, which
    SentencePiece has put there.
    `warnings`: what was worked around in the file.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.n_vocab = len(vocabulary.tokens)
        self.bos, self.eos, self.eog = vocabulary.bos, vocabulary.eos, vocabulary.eog
        self.add_bos, self.add_eos = vocabulary.add_bos, vocabulary.add_eos
        self.space_prefix = vocabulary.add_space_prefix
        self.warnings = vocabulary.warnings
        self._tokens, self._types = vocabulary.tokens, vocabulary.types.tolist()
        self._special = SpecialTokens(vocabulary)

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`; bytes need not be UTF-8.

        `add_special` adds BOS and EOS as the file wants them. Without `parse_special` the name of a control
        token is ordinary text.
        """
        ids: list[int] = []
        if add_special and self.add_bos and self.bos is not None:
            ids.append(self.bos)
        after_special = True
        for fragment in self._special.split(_as_bytes(text), parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._encode_text(fragment, after_special)
            after_special = isinstance(fragment, int)
        if add_special and self.add_eos and self.eos is not None:
            ids.append(self.eos)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids` as of a whole text: without the space before its first word.

        Control tokens are shown if `special`. Bytes that are no UTF-8 become U+FFFD. Raises InputError for an
        id out of range.
        """
        text = b"".join(self.token_bytes(id, special) for id in ids)
        return (text.removeprefix(b" ") if self.space_prefix else text).decode(errors="replace")

    def token_bytes(self, id: int, special: bool = False) -> bytes:
        """The bytes of one token, perhaps only a part of a character. A control token has some if `special`.

        Raises InputError for an id out of range.
        """
        if not 0 <= id < self.n_vocab:
            raise InputError(f"token id {id} is out of range: the vocabulary has {self.n_vocab} tokens")
        kind, token = self._types[id], self._tokens[id]
        if kind == NORMAL:
            return self._text_of(token)
        if kind == BYTE:
            return bytes([int(token[3:5], 16)])
        if kind == UNUSED or (kind in (CONTROL, UNKNOWN) and not special):
            return b""
        return token

    def special_id(self, name: str) -> int | None:
        """The id of the special token of this name; None if there is none."""
        return self._special.ids.get(name.encode())

    @abstractmethod
    def _encode_text(self, text: bytes, after_special: bool) -> list[int]:
        """The ids of ordinary text; `after_special`: it follows a special token or begins the whole text."""

    @abstractmethod
    def _text_of(self, token: bytes) -> bytes:
        """The text that a normal token stands for."""


def _as_bytes(text: str | bytes) -> bytes:
    """UTF-8. Bytes that Python smuggled in as lone surrogates (command line, file names) come out again."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
