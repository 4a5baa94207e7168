"""SentencePiece vocabularies (`tokenizer.ggml.model` = llama): the sentencepiece library cuts the text.

Builds the library's model from tokens, scores and types. Special tokens are split off by base.py before.
"""

import re
from collections.abc import Iterator
from functools import cache

import numpy as np

from qllama.errors import FileError
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

SPACE = "▁".encode()
MAX_PIECE_BYTES = 7999  # of the library
_PLACEHOLDER = b"\xff%d"  # no UTF-8, so no text has it

# How llama.cpp cuts text that is not UTF-8 into characters: the first byte alone gives their length. A run of
# well-formed characters is taken at once.
_CHARACTERS = re.compile(
    rb"""(?P<text>(?:
             [\x00-\x7f] | [\xc2-\xdf][\x80-\xbf]
           | \xe0[\xa0-\xbf][\x80-\xbf]    | [\xe1-\xec\xee\xef][\x80-\xbf]{2} | \xed[\x80-\x9f][\x80-\xbf]
           | \xf0[\x90-\xbf][\x80-\xbf]{2} | [\xf1-\xf3][\x80-\xbf]{3}         | \xf4[\x80-\x8f][\x80-\xbf]{2}
         )++)
       | [\x80-\xbf] | [\xc0-\xdf].? | [\xe0-\xef].{0,2} | [\xf0-\xff].{0,3}""",
    re.VERBOSE | re.DOTALL,
)

# What the library is to take a token for. Ordinary text never becomes a control, unknown or byte token
# here, nor an unused one, which would lose the text; in llama.cpp it can, where a vocabulary has the
# halves to merge. A user-defined token was found in the raw text already. What is left of that kind,
# stored with U+2581 where the text had spaces, is merged like a normal token, as in llama.cpp.
_LIBRARY_TYPES = {NORMAL: NORMAL, USER_DEFINED: NORMAL, UNUSED: UNUSED, BYTE: BYTE}


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary of the BPE kind with byte tokens. Raises FileError if it is not one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor

        super().__init__(vocabulary)
        self._byte_ids = _byte_ids(vocabulary)
        self._processor = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(_model(vocabulary, self._byte_ids))

    def _encode_text(self, text: bytes, after_special: bool) -> list[int]:
        if self.space_prefix and after_special:
            text = b" " + text
        ids: list[int] = []
        for run in _CHARACTERS.finditer(text.replace(b" ", SPACE)):
            if run["text"]:
                ids += self._processor.encode(run["text"], out_type=int)
            else:
                ids += [self._byte_ids[byte] for byte in run[0]]
        return ids

    def _text_of(self, token: bytes) -> bytes:
        return token.replace(SPACE, b" ")


def _byte_ids(vocabulary: Vocabulary) -> list[int]:
    """The id of each of the 256 bytes."""
    ids: dict[bytes, int] = {}
    for id in np.flatnonzero(vocabulary.types == BYTE).tolist():
        ids.setdefault(vocabulary.tokens[id], id)
    wanted = [b"<0x%02X>" % byte for byte in range(256)]
    missing = [token.decode() for token in wanted if token not in ids]
    if missing:
        what = f"{missing[0]} has no token of type {BYTE} in tokenizer.ggml.token_type"
        raise FileError(vocabulary.path, f"{len(missing)} of the 256 byte tokens are missing: {what}")
    return [ids[token] for token in wanted]


def _model(vocabulary: Vocabulary, byte_ids: list[int]) -> bytes:
    """The serialized ModelProto of sentencepiece_model.proto, by hand: its classes would need protobuf.

    The library wants one unknown token: it comes behind the others and is never used, bytes stand in for it.
    """
    if vocabulary.scores is None:
        raise FileError(vocabulary.path, "missing key tokenizer.ggml.scores, which SentencePiece needs")
    raw = vocabulary.scores.astype("<f4").tobytes()
    pieces = [
        _message(_PIECES, b"%b\x15%b\x18%c" % (_message(1, text), raw[4 * id : 4 * id + 4], kind))
        for id, (text, kind) in enumerate(_pieces(vocabulary, byte_ids))
    ]
    unknown = _message(_PIECES, b"%b\x18%c" % (_message(1, _PLACEHOLDER % len(pieces)), UNKNOWN))
    return b"".join([*pieces, unknown, _TRAINER_SPEC, _NORMALIZER_SPEC])


def _pieces(vocabulary: Vocabulary, byte_ids: list[int]) -> Iterator[tuple[bytes, int]]:
    """For each id its text and type in the library; where it may not or cannot have them, a stand-in."""
    taken = {vocabulary.tokens[id]: id for id in byte_ids}
    for id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True)):
        if kind in _LIBRARY_TYPES and taken.setdefault(token, id) == id and _is_text(token):
            yield token, _LIBRARY_TYPES[kind]
        else:
            yield _PLACEHOLDER % id, CONTROL


def _is_text(token: bytes) -> bool:
    """Whether the library can have it: only UTF-8 text gets there, and it refuses the rest."""
    if not 0 < len(token) <= MAX_PIECE_BYTES or b"\0" in token:
        return False
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _message(field: int, content: bytes) -> bytes:
    """A length-delimited field of the wire format; `content` shorter than 2**14 bytes."""
    return _header(field, len(content)) + content


@cache
def _header(field: int, size: int) -> bytes:
    return bytes((field << 3 | 2, size) if size < 128 else (field << 3 | 2, size & 127 | 128, size >> 7))


# Fields of ModelProto. A piece: text (1), score (2, byte 0x15), type (3, byte 0x18). Trainer: model_type
# (3) = BPE, byte_fallback (35) on. Normalizer: name (1); add_dummy_prefix (3), remove_extra_whitespaces
# (4) and escape_whitespaces (5) off, for the text comes prepared.
_PIECES = 1
_TRAINER_SPEC = _message(2, b"\x18\x02\x98\x02\x01")
_NORMALIZER_SPEC = _message(3, _message(1, b"identity") + b"\x18\x00\x20\x00\x28\x00")
