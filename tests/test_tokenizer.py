"""SentencePiece vocabularies: llama.cpp's ids, the sentencepiece library, a slow twin, hostile files."""

import base64
import json
import struct
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from qllama.errors import FileError, InputError
from qllama.gguf import open_gguf
from qllama.metadata import ArrayValue, Metadata
from qllama.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from qllama.tokenizer.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

ORACLES = {
    "llama-spm": "vocabs/ggml-vocab-llama-spm.gguf",
    "phi-3": "vocabs/ggml-vocab-phi-3.gguf",
    "tiny": "oracles/models/llama-mha.gguf",
}


@cache
def from_file(name: str) -> Tokenizer:
    with open_gguf(shared(name)) as gguf:
        return load_tokenizer(gguf.metadata)


def books() -> Tokenizer:
    return from_file("models/books-5m-Q8_0.gguf")


# A vocabulary made by hand: <unk> <s> </s>, the 256 bytes, then `pieces`.

Piece = tuple[str | bytes, int, float]
BYTE_PIECES: list[Piece] = [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
FIRST = 259  # the id of the first of `pieces`


def array(kind: str, values: list) -> tuple[str, ArrayValue]:
    """A metadata entry as gguf.py makes it; strings as bytes."""
    if kind == "str":
        raw = b"".join(struct.pack("<Q", len(value)) + value for value in values)
    else:
        raw = np.array(values, {"f32": "<f4", "i32": "<i4", "u32": "<u4"}[kind]).tobytes()
    return "arr", ArrayValue(kind, len(values), raw, 0, len(raw))


def metadata(*pieces: Piece, **changes: tuple | None) -> Metadata:
    """The metadata of such a vocabulary; `changes` are entries tokenizer.ggml.*, None takes one away."""
    table = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0), *BYTE_PIECES, *pieces]
    texts, types, scores = zip(*table, strict=True)
    entries = {
        "model": ("str", "llama"),
        "tokens": array("str", [t if isinstance(t, bytes) else t.encode() for t in texts]),
        "token_type": array("i32", list(types)),
        "scores": array("f32", list(scores)),
    } | changes
    return Metadata("m.gguf", {f"tokenizer.ggml.{key}": entry for key, entry in entries.items() if entry})


def tokenizer(*pieces: Piece, **changes: tuple | None) -> Tokenizer:
    return load_tokenizer(metadata(*pieces, **changes))


# Against llama.cpp


@pytest.mark.parametrize("name", ORACLES)
def test_ids_and_text_of_llama_cpp(name: str) -> None:
    spm = from_file(ORACLES[name])
    recorded = json.loads(shared(f"oracles/tokens/tokens-{name}.json").read_text(encoding="utf-8"))
    assert spm.n_vocab == recorded["n_vocab"]
    for case in recorded["cases"]:
        text = case["text"] if "text" in case else base64.b64decode(case["b64"])
        for flags in ("00", "01", "10", "11"):
            assert spm.encode(text, flags[0] == "1", flags[1] == "1") == case[f"ids_{flags}"], (text, flags)
        if "detok_01" in case:
            assert spm.decode(case["ids_01"], special=True) == case["detok_01"]
        if "detok_01_b64" in case:
            pieces = b"".join(spm.token_bytes(id, special=True) for id in case["ids_01"])
            assert pieces.removeprefix(b" ") == base64.b64decode(case["detok_01_b64"])


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_published_cases_of_llama_cpp(name: str) -> None:
    texts = shared(f"vocabs/ggml-vocab-{name}.gguf.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    lines = shared(f"vocabs/ggml-vocab-{name}.gguf.out").read_text().splitlines()
    expected = [[int(id) for id in line.split()] for line in lines]
    assert [from_file(ORACLES[name]).encode(text, add_special=False) for text in texts] == expected


# Overlapping special tokens, user-defined ones stored with spaces and with U+2581, equal and infinite scores.
MIXED: list[Piece] = [
    ("▁", NORMAL, -9), ("a", NORMAL, -9), ("b", NORMAL, -9), ("c", NORMAL, -9), ("d", NORMAL, -9),
    ("é", NORMAL, -9), ("ab", NORMAL, -2), ("bc", NORMAL, -2), ("cd", NORMAL, -1), ("abc", NORMAL, -3),
    ("▁a", NORMAL, -2), ("▁▁", NORMAL, -1), ("aa", NORMAL, -4), ("aaaa", NORMAL, -4),
    ("ab|", USER_DEFINED, 0), ("b|c", USER_DEFINED, 0), ("  ", USER_DEFINED, 0), ("▁▁▁", USER_DEFINED, -5),
    ("<x>", CONTROL, 0), ("<x>a", CONTROL, 0), ("éé", USER_DEFINED, -1), ("<|im_end|>", USER_DEFINED, 0),
    ("dd", NORMAL, float("inf")), ("da", NORMAL, float("-inf")),
]  # fmt: skip
IM_END = [63, 127, 108, 112, 98, 104, 113, 263, 127, 65]  # as ordinary text
WITH_PREFIX = [  # recorded from llama.cpp: text, add_special, parse_special, ids
    (b"a\xe2\x96\x81\xe2\x96\x81\xe2\x96\x81abcaab|c", 1, 0, [1, 269, 276, 269, 266, 260, 273, 259, 262]),
    ("éé<|im_end|>abcé".encode(), 1, 0, [1, 279, 259, *IM_END[:-1], 65, 268, 264]),
    (b"ab|cabc<|im_end|> \xe2\x82ab|c", 0, 1, [273, 259, 262, 268, 280, 270, 229, 133, 273, 259, 262]),
    (b"aa\xf2\xb2\xbe\x83<|im_end|><x>a   ", 1, 1, [1, 269, 260, 245, 181, 193, 134, 280, 278, 275, 270]),
    ("<x>c   日<|im_end|>a".encode(), 0, 1, [277, 259, 262, 275, 270, 233, 154, 168, 280, 269]),
]
WITHOUT_PREFIX = [
    (b"aa\xc3<s> <|im_end|>ab| abcd", 1, 0, [271, 198, 63, 118, 65, 259, *IM_END, 273, 269, 261, 267, 2]),
    (b"d a<|im_end|>\xc3\xa9\xc3\xa9\xff", 1, 1, [263, 269, 280, 279, 258, 2]),
    (b"d\xc8\x97ab|c</s>", 0, 1, [263, 203, 154, 273, 262, 2]),
    (
        b"\xf4\x90\x80\x80aaaaaaa</s>ab|c",
        1,
        0,
        [247, 147, 131, 131, 272, 271, 260, 63, 50, 118, 65, 273, 262, 2],
    ),
    (b"\xc2\xb3daabc\xed\xa0\x80aaaaa", 1, 0, [197, 182, 282, 268, 240, 163, 131, 272, 260, 2]),
]
NO_PREFIX = {
    "add_space_prefix": ("bool", False),
    "add_bos_token": ("bool", False),
    "add_eos_token": ("bool", True),
}


@pytest.mark.parametrize(("text", "add_special", "parse_special", "ids"), WITH_PREFIX)
def test_special_tokens_as_in_llama_cpp(text: bytes, add_special: int, parse_special: int, ids: list) -> None:
    assert tokenizer(*MIXED).encode(text, bool(add_special), bool(parse_special)) == ids


@pytest.mark.parametrize(("text", "add_special", "parse_special", "ids"), WITHOUT_PREFIX)
def test_without_prefix_as_in_llama_cpp(text: bytes, add_special: int, parse_special: int, ids: list) -> None:
    assert tokenizer(*MIXED, **NO_PREFIX).encode(text, bool(add_special), bool(parse_special)) == ids


# Against the sentencepiece library with the model that the vocabulary was made from


def test_ids_of_the_real_sentencepiece_model() -> None:
    text = shared("models/books-5m-valid.txt").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_file=str(shared("models/books-5m-tokenizer.model")))
    ids = books().encode(text, add_special=False, parse_special=False)
    assert ids == model.encode(text.decode(), out_type=int)
    assert books().decode(ids) == text.decode()
    assert len(books().encode(text)) == 33_678  # with BOS; the count of llama-perplexity in books-5m.md


# Against a slow twin: the merge loop as llama.cpp and sentencepiece both define it


def merged(text: bytes, scores: dict[bytes, float]) -> list[bytes]:
    """Pieces of `text`: always merge the neighbours that make the best piece, of equals the leftmost."""
    pieces = [c.encode() for c in text.decode()]
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not pairs:
            return pieces
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab▁é", min_size=1, max_size=4), st.integers(-3, 0), max_size=25),
    st.lists(st.text("ab éx\0", max_size=12), min_size=1, max_size=5),
)
def test_merges_of_the_slow_twin(scores: dict[str, int], texts: list[str]) -> None:
    spm = tokenizer(*[(text, NORMAL, score) for text, score in scores.items()], **NO_PREFIX)
    ids = {text.encode(): FIRST + i for i, text in enumerate(scores)}
    for text in texts:
        pieces = merged(text.replace(" ", "▁").encode(), {t.encode(): s for t, s in scores.items()})
        expected = [id for p in pieces for id in ([ids[p]] if p in ids else [3 + byte for byte in p])]
        assert spm.encode(text)[:-1] == expected


# What there is no recording of


def test_ordinary_text_never_becomes_a_control_token() -> None:
    halves = [("<", NORMAL, 0), ("x>", NORMAL, 0), ("x", NORMAL, 0), (">", NORMAL, 0), ("<x>", CONTROL, 9)]
    spm = tokenizer(*halves, ("|", CONTROL, 0), **NO_PREFIX)
    assert spm.encode("<x>|", add_special=False) == [FIRST + 4, FIRST + 5]
    assert spm.encode("<x>|", add_special=False, parse_special=False) == [FIRST, FIRST + 1, 3 + ord("|")]


def test_unused_tokens_are_neither_made_nor_shown() -> None:
    spm = tokenizer(("a", NORMAL, -3), ("b", NORMAL, -3), ("ab", UNUSED, -1), ("aba", NORMAL, -2), **NO_PREFIX)
    assert spm.encode("ab aba", add_special=False) == [FIRST, FIRST + 1, *b"\xe5\x99\x84", FIRST + 3]
    assert spm.token_bytes(FIRST + 2, special=True) == b""


def test_a_byte_token_keeps_its_text_from_others() -> None:
    spm = tokenizer(("<0x41>", NORMAL, 0), ("<0x41>", BYTE, 0), **NO_PREFIX)
    assert spm.encode("A", add_special=False) == [3 + 0x41]
    assert [spm.token_bytes(id) for id in (FIRST, FIRST + 1)] == [b"<0x41>", b"A"]


@pytest.mark.parametrize("token", [b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 8000, b"x" * 65536])
def test_tokens_the_library_refuses_can_be_decoded(token: bytes) -> None:
    spm = tokenizer((token, NORMAL, 0), (token, USER_DEFINED, 0))
    assert spm.decode([FIRST]) == token.decode(errors="replace")
    assert spm.encode(b" " + token, add_special=False)[-1] == FIRST + 1


def test_arguments_of_a_command_line_keep_their_bytes() -> None:
    assert books().encode("é\udcff", False) == books().encode(b"\xc3\xa9\xff", False)
    assert books().encode("\ud800\udcff", False) == books().encode(b"\xed\xa0\x80\xed\xb3\xbf", False)


def test_empty_text() -> None:
    assert books().encode("") == [1]
    assert books().encode("", add_special=False) == []
    assert books().decode([]) == ""


@pytest.mark.parametrize("char", ["a", " ", "日", "\0"])
def test_long_text_of_one_character(char: str) -> None:
    text = char * 100_000
    assert books().decode(books().encode(text)) == text


def test_ids_out_of_range() -> None:
    for id in (-1, 2048):
        with pytest.raises(InputError, match=f"token id {id} is out of range: the vocabulary has 2048 tokens"):
            books().decode([1, id])
        with pytest.raises(InputError, match="out of range"):
            StreamDecoder(books()).push(id)


def test_control_tokens_show_only_if_asked() -> None:
    ids = [1, *books().encode("Hi", add_special=False), 0, 2]
    assert books().decode(ids) == "Hi"
    assert books().decode(ids, special=True) == "<s> Hi<unk></s>"


# Decoding


@settings(max_examples=100, deadline=None)
@given(st.text().map(lambda text: text.replace("▁", "")))
def test_text_comes_back(text: str) -> None:
    assert books().decode(books().encode(text, parse_special=False)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2047)), st.booleans())
def test_a_stream_gives_the_same_text(ids: list[int], special: bool) -> None:
    stream = StreamDecoder(books(), special)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == books().decode(ids, special)


def pushed(stream: StreamDecoder, data: bytes) -> list[str]:
    return [stream.push(3 + byte) for byte in data]


def test_a_character_is_never_split() -> None:
    assert pushed(StreamDecoder(books()), "é🦙!".encode()) == ["", "é", "", "", "", "🦙", "!"]


def test_replacement_only_when_certain() -> None:
    stream = StreamDecoder(books())
    assert pushed(stream, b"\xf0\x9f\xa6a") == ["", "", "", "\ufffda"]
    assert pushed(stream, b"\xff\xe2\x82") == ["\ufffd", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_the_leading_space_is_dropped_once() -> None:
    ids = books().encode(" of the")
    stream, continuation = StreamDecoder(books()), StreamDecoder(books(), continuation=True)
    assert "".join(map(stream.push, ids)) == " of the"
    assert "".join(map(continuation.push, ids)) == "  of the"
    assert tokenizer(*MIXED, **NO_PREFIX).decode([FIRST, FIRST + 1]) == " a"


# Vocabularies as files have them


def test_defaults_are_those_of_llama_cpp() -> None:
    spm = tokenizer(*MIXED)
    assert (spm.bos, spm.eos, spm.add_bos, spm.add_eos, spm.space_prefix) == (1, 2, True, False, True)
    vocabulary = Vocabulary.from_metadata(metadata())
    assert (vocabulary.unk, vocabulary.pad, vocabulary.model, vocabulary.path) == (0, None, "llama", "m.gguf")


def test_ends_of_generation() -> None:
    pieces = [
        ("<|im_end|>", CONTROL, 0),
        ("<|end|>", USER_DEFINED, 0),
        ("<eos>", NORMAL, 0),
        ("x", NORMAL, 0),
    ]
    given_ids = {"eos_token_id": ("u32", 259), "eot_token_id": ("u16", 262), "eom_token_id": ("i64", 5)}
    assert tokenizer(*pieces, **given_ids).eog == {2, 5, 259, 260, 262}
    assert from_file(ORACLES["phi-3"]).eog == {2, 32000, 32007}  # llama.cpp's


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": None}, "missing key tokenizer.ggml.tokens"),
        ({"tokens": ("str", "a")}, "must be an array"),
        ({"tokens": array("u32", [1])}, "must be an array of str"),
        ({"tokens": array("str", [])}, "has no tokens"),
        ({"tokens": array("str", [b""] * 300)}, "all tokens are empty"),
        ({"tokens": array("str", [b"a"] * 259)}, "must be like <0x0A>"),
        ({"tokens": array("str", [b"x" * 65537, b"a"])}, "token 0 has 65537 bytes, must have at most 65536"),
        ({"token_type": None}, "256 of the 256 byte tokens are missing: <0x00>"),
        ({"token_type": array("i32", [1] * 258)}, "has 258 elements for 259 tokens"),
        ({"token_type": array("u32", [1] * 259)}, "must be an array of i32"),
        ({"scores": None}, "missing key tokenizer.ggml.scores"),
        ({"scores": array("f32", [0.0] * 258)}, "has 258 elements for 259 tokens"),
        ({"scores": array("i32", [0] * 259)}, "must be an array of f32"),
        ({"scores": array("f32", [0.0] * 7 + [float("nan")] * 252)}, "the score of token 7 is not a number"),
        ({"bos_token_id": ("str", "1")}, "must be an integer"),
        ({"add_bos_token": ("u8", 1)}, "must be a bool"),
        ({"add_space_prefix": ("str", "no")}, "must be a bool"),
        ({"model": ("u32", 1)}, "must be a string"),
        ({"model": ("str", "bert")}, "tokenizer.ggml.model=bert: is not implemented (implemented: llama, gpt2)"),
        ({"model": ("str", "none")}, "no tokenizer in file"),
        ({"model": None}, "no tokenizer in file"),
    ],
)
def test_refused(changes: dict, reason: str) -> None:
    with pytest.raises(FileError) as error:
        tokenizer(**changes)
    assert str(error.value).startswith("m.gguf: ")
    assert reason in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("token", ["<0x-1>", "<0x0a>", "<0x0A> ", "<0x100>", "0x0A", "\x1b[2J"])
def test_byte_tokens_are_strict(token: str) -> None:
    with pytest.raises(FileError, match=r"token 259 has the type of a byte, but is '[^\x1b]*', must be like <0x0A>"):
        tokenizer((token, BYTE, 0))


OUT_OF_RANGE = [259, 10**9, 2**32 - 1, 2**64 - 1, -1]


@pytest.mark.parametrize(
    ("pieces", "changes", "warning"),
    [
        ([("", NORMAL, 0), ("", NORMAL, 0)], {}, "2 empty tokens, the first is token 259"),
        (
            [("\x1b", NORMAL, 0)] * 3,
            {},
            r"2 duplicate tokens, the first of each is used: token 260 repeats token 259, '\x1b'",
        ),
        ([("a", 99, 0), ("b", 0, 0)], {}, "2 tokens of unknown type, taken as normal: token 259 has type 99"),
        ([], {"scores": array("f32", [0.0] * 260)}, "tokenizer.ggml.scores has 260 elements for 259 tokens"),
        ([], {"remove_extra_whitespaces": ("bool", True)}, "remove_extra_whitespaces is ignored"),
        *[([], {"eos_token_id": ("u64", id)}, f"eos_token_id={id} is ignored") for id in OUT_OF_RANGE],
        *[([], {"eot_token_id": ("u64", id)}, f"eot_token_id={id} is ignored") for id in OUT_OF_RANGE],
    ],
)
def test_worked_around_with_a_warning(pieces: list, changes: dict, warning: str) -> None:
    spm = tokenizer(*pieces, **changes)
    assert len(spm.warnings) == 1
    assert warning in spm.warnings[0]
    assert spm.eog == {2}
    assert spm.encode("a")[0] == 1


def test_text_is_given_the_first_of_duplicate_tokens() -> None:
    spm = tokenizer(("a", NORMAL, 0), ("a", NORMAL, 5), ("<x>", CONTROL, 0), ("<x>", CONTROL, 0), **NO_PREFIX)
    assert spm.encode("a<x>", add_special=False) == [FIRST, FIRST + 2]
    assert spm.decode([FIRST + 1]) == "a"


def test_no_bos_where_there_is_none() -> None:
    data = metadata(tokens=array("str", [b"a"]), token_type=None, scores=None, add_eos_token=("bool", True))
    vocabulary = Vocabulary.from_metadata(data)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.add_bos, vocabulary.add_eos) == (
        None,
        None,
        False,
        False,
    )
    assert [w.split(" is true, ")[0] for w in vocabulary.warnings] == [
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
    ]


def test_real_files_give_no_warnings() -> None:
    names = [*ORACLES.values(), "models/books-5m-Q8_0.gguf", "models/stories260K-f32.gguf"]
    assert [from_file(name).warnings for name in names] == [[]] * 5
