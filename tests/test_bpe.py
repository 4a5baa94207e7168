"""Byte-level BPE vocabularies: llama.cpp's ids, words and texts, a slow twin, hostile files."""

import base64
import json
import struct
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from qllama.errors import FileError
from qllama.gguf import open_gguf
from qllama.metadata import ArrayValue, Metadata
from qllama.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from qllama.tokenizer.pre import PRE_TOKENIZERS
from qllama.tokenizer.vocab import BYTE, CONTROL, NORMAL, USER_DEFINED

PUBLISHED = [
    "llama-bpe", "qwen2", "qwen35", "deepseek-llm", "deepseek-coder", "falcon", "gpt-2", "starcoder", "command-r",
]  # fmt: skip
RECORDED = [name for name in PUBLISHED if name != "qwen35"]


@cache
def from_file(name: str) -> Tokenizer:
    with open_gguf(shared(f"vocabs/ggml-vocab-{name}.gguf")) as gguf:
        return load_tokenizer(gguf.metadata)


# A vocabulary made by hand: the 256 bytes in order, then `PIECES`. Some merges make no token or repeat, have
# pieces that are no tokens, or leave out a way to split a token.

BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
SYMBOLS = [chr(b if b in BYTES else 0x100 + sum(c not in BYTES for c in range(b))) for b in range(256)]
PIECES = [
    ("aba", NORMAL), ("abc", NORMAL), ("bc", NORMAL), ("ab", NORMAL), ("aa", NORMAL), ("aaa", NORMAL),
    ("de", NORMAL), ("ba", NORMAL), ("Ġa", NORMAL), ("<s>", CONTROL), ("</s>", CONTROL), ("ab|", USER_DEFINED),
    ("b|c", USER_DEFINED), ("Word", CONTROL),
]  # fmt: skip
MERGES = [
    "b c", "a b", "ab c", "c d", "d e", "a a", "a aa", "aa a", "b a", "a ba", "ab a", "Ġ a", "a b", "qq zz", "a b c",
]  # fmt: skip


def array(kind: str, values: list) -> tuple[str, ArrayValue]:
    """A metadata entry as gguf.py makes it."""
    if kind == "str":
        texts = [value if isinstance(value, bytes) else value.encode() for value in values]
        raw = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    else:
        raw = np.array(values, {"i32": "<i4", "u32": "<u4"}[kind]).tobytes()
    return "arr", ArrayValue(kind, len(values), raw, 0, len(raw))  # type: ignore[arg-type]


def tokenizer(pieces: list = PIECES, merges: Any = MERGES, **changes: Any) -> Tokenizer:
    """Of such a vocabulary; `changes` are entries tokenizer.ggml.*, as `merges` may be; None takes one away."""
    texts = [text for text, _ in pieces]
    entries = {
        "model": ("str", "gpt2"),
        "pre": ("str", "gpt-2"),
        "tokens": array("str", SYMBOLS + texts),
        "token_type": array("i32", [NORMAL] * 256 + [kind for _, kind in pieces]),
        "merges": array("str", merges) if isinstance(merges, list) else merges,
        "bos_token_id": ("u32", 256 + texts.index("<s>") if "<s>" in texts else 0),
        "eos_token_id": ("u32", 256 + texts.index("</s>") if "</s>" in texts else 0),
    } | changes
    return load_tokenizer(
        Metadata("m.gguf", {f"tokenizer.ggml.{key}": entry for key, entry in entries.items() if entry})
    )


# Against llama.cpp


@pytest.mark.parametrize("name", RECORDED)
def test_ids_and_text_of_llama_cpp(name: str) -> None:
    bpe = from_file(name)
    recorded = json.loads(shared(f"oracles/tokens/tokens-{name}.json").read_text(encoding="utf-8"))
    assert bpe.n_vocab == recorded["n_vocab"]
    for case in recorded["cases"]:
        text = case["text"] if "text" in case else base64.b64decode(case["b64"])
        for flags in ("00", "01", "10", "11"):
            assert bpe.encode(text, flags[0] == "1", flags[1] == "1") == case[f"ids_{flags}"], (text, flags)
        assert bpe.decode(case["ids_01"], special=True) == case["detok_01"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cases_of_llama_cpp(name: str) -> None:
    file = f"vocabs/ggml-vocab-{name}.gguf"
    texts = shared(f"{file}.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    expected = [[int(id) for id in line.split()] for line in shared(f"{file}.out").read_text().splitlines()]
    assert [from_file(name).encode(text, add_special=False) for text in texts] == expected


# Recorded from llama.cpp, with vocabularies in which all neighbours within a word merge.
WORDS = [
    ("I⎸'⎸VE⎸ don⎸'⎸t⎸:⎸ ⎸123⎸45⎸ x⎸1⎸y⎸23", "default falcon"),
    ("I⎸'⎸VE⎸ don⎸'t⎸:⎸ 12345⎸ x⎸1⎸y⎸23", "gpt-2 trillion"),
    ("I⎸'⎸VE⎸ don⎸'t⎸:⎸ ⎸1⎸2⎸3⎸4⎸5⎸ x⎸1⎸y⎸2⎸3", "starcoder command-r"),
    ("I⎸'VE⎸ don⎸'t⎸:⎸ ⎸123⎸45⎸ x⎸1⎸y⎸23", "llama-bpe dbrx glm4 deepseek-v3 minicpm5"),
    ("I⎸'VE⎸ don⎸'t⎸:⎸ ⎸1⎸2⎸3⎸4⎸5⎸ x⎸1⎸y⎸2⎸3", "qwen2 stablelm2 qwen35 tekken seed-coder exaone-moe laguna"),
    ("I⎸'⎸VE⎸ don⎸'⎸t⎸:⎸ ⎸12345⎸ x⎸1⎸y⎸23", "deepseek-llm"),
    ("I⎸'⎸VE⎸ don⎸'⎸t⎸:⎸ ⎸1⎸2⎸3⎸4⎸5⎸ x⎸1⎸y⎸2⎸3", "deepseek-coder"),
    ("I'VE⎸ don't⎸:⎸ ⎸123⎸45⎸ x⎸1⎸y⎸23", "gpt-4o"),
    ("I'VE⎸ don't:⎸ 12345⎸ x1y23", "bloom poro-chat"),
    ("I'VE⎸ don't:⎸ ⎸1⎸2⎸3⎸4⎸5⎸ x⎸1⎸y⎸2⎸3", "viking"),
    ("Hi⎸ ⎸ all⎸\n\n ⎸\t⎸you⎸\r\n ⎸ he⎸  ", "default gpt-2 trillion falcon starcoder command-r"),
    (
        "Hi⎸ ⎸ all⎸\n\n⎸ ⎸\tyou⎸\r\n⎸ ⎸ he⎸  ",
        "llama-bpe dbrx glm4 qwen2 stablelm2 qwen35 deepseek-v3 tekken gpt-4o seed-coder exaone-moe minicpm5",
    ),
    ("Hi⎸ ⎸ all⎸\n⎸\n⎸ ⎸\tyou⎸\r⎸\n⎸ ⎸ he⎸  ", "deepseek-llm deepseek-coder"),
    ("Hi⎸ ⎸ all⎸\n\n⎸ ⎸\tyou⎸\r⎸\n⎸ ⎸ he⎸  ", "laguna"),
    ("Hi⎸ ⎸ all⎸\n\n \t⎸you⎸\r\n ⎸ he⎸  ", "bloom poro-chat viking"),
    ('a⎸+⎸b⎸;⎸ ⎸(⎸x⎸)...⎸ ⎸"⎸q⎸"!/⎸\n ⎸$⎸5⎸ `⎸~⎸`⎸ ⎸/⎸\n', "default"),
    (
        'a⎸+⎸b⎸;⎸ (⎸x⎸)...⎸ "⎸q⎸"!/⎸\n⎸ $⎸5⎸ `~`⎸ /⎸\n',
        "gpt-2 trillion starcoder command-r deepseek-llm deepseek-coder",
    ),
    ('a⎸+⎸b⎸;⎸ ⎸(⎸x⎸)...⎸ ⎸"⎸q⎸"!/⎸\n ⎸$⎸5⎸ ⎸`~`⎸ ⎸/⎸\n', "falcon"),
    (
        'a⎸+b⎸;⎸ (⎸x⎸)...⎸ "⎸q⎸"!/\n⎸ $⎸5⎸ `~`⎸ /\n',
        "llama-bpe dbrx glm4 qwen2 stablelm2 qwen35 deepseek-v3 tekken gpt-4o exaone-moe minicpm5",
    ),
    ('a⎸+b⎸;⎸ (⎸x⎸)...⎸ "⎸q⎸"!/⎸\n⎸ $⎸5⎸ `~`⎸ /⎸\n', "seed-coder laguna"),
    ('a+b;⎸ (⎸x⎸)...⎸ "q"⎸!⎸/⎸\n⎸ $5⎸ `~`⎸ /⎸\n', "bloom poro-chat"),
    ('a+b;⎸ (⎸x⎸)...⎸ "q"⎸!⎸/⎸\n⎸ $⎸5⎸ `~`⎸ /⎸\n', "viking"),
    ("ПриветМир⎸ camelCase⎸'⎸s⎸ ABc⎸'⎸Ll⎸ e⎸\u0301⎸u⎸\u0308", "default falcon deepseek-llm deepseek-coder"),
    ("ПриветМир⎸ camelCase⎸'s⎸ ABc⎸'⎸Ll⎸ e⎸\u0301⎸u⎸\u0308", "gpt-2 trillion starcoder command-r"),
    (
        "ПриветМир⎸ camelCase⎸'s⎸ ABc⎸'Ll⎸ e⎸\u0301u⎸\u0308",
        "llama-bpe dbrx glm4 qwen2 stablelm2 seed-coder minicpm5 laguna",
    ),
    ("ПриветМир⎸ camelCase⎸'s⎸ ABc⎸'Ll⎸ e\u0301u\u0308", "qwen35 deepseek-v3"),
    ("ПриветМир⎸ camel⎸Case⎸'s⎸ ABc⎸'Ll⎸ e⎸\u0301u⎸\u0308", "tekken"),
    ("ПриветМир⎸ camel⎸Case's⎸ ABc'Ll⎸ e⎸\u0301u⎸\u0308", "gpt-4o"),
    ("ПриветМир camelCase⎸'s⎸ ABc⎸'Ll⎸ e\u0301u\u0308", "exaone-moe"),
    ("ПриветМир⎸ camelCase's⎸ ABc'Ll⎸ e\u0301u\u0308", "bloom poro-chat viking"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000⎸한국어⎸ 字⎸ ⎸¼²Ⅷ٣٤", "default"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000⎸한국어⎸ 字⎸ ¼²Ⅷ٣٤", "gpt-2 trillion falcon"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000⎸한국어⎸ 字⎸ ⎸¼⎸²⎸Ⅷ⎸٣⎸٤", "starcoder command-r"),
    ("日本語⎸、テスト⎸。⎸\u3000한국어⎸ 字⎸ ⎸¼²Ⅷ⎸٣٤", "llama-bpe dbrx glm4 gpt-4o minicpm5"),
    ("日本語⎸、テスト⎸。⎸\u3000한국어⎸ 字⎸ ⎸¼⎸²⎸Ⅷ⎸٣⎸٤", "qwen2 stablelm2 qwen35 tekken seed-coder laguna"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000⎸한국어⎸ ⎸字⎸ ⎸¼²⎸Ⅷ⎸٣٤", "deepseek-llm"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000⎸한국어⎸ ⎸字⎸ ⎸¼⎸²⎸Ⅷ⎸٣⎸٤", "deepseek-coder"),
    ("日本語⎸、⎸テスト⎸。⎸\u3000한국어⎸ ⎸字⎸ ⎸¼²Ⅷ⎸٣٤", "deepseek-v3"),
    ("日本語⎸、テスト⎸。⎸\u3000한국어 字⎸ ⎸¼⎸²⎸Ⅷ⎸٣⎸٤", "exaone-moe"),
    ("日本語⎸、⎸テスト⎸。\u3000⎸한국어⎸ 字⎸ ¼²Ⅷ٣٤", "bloom poro-chat"),
    ("日本語⎸、⎸テスト⎸。\u3000⎸한국어⎸ 字⎸ ⎸¼⎸²⎸Ⅷ⎸٣⎸٤", "viking"),
]


@pytest.mark.parametrize(("words", "names"), WORDS)
def test_words_of_llama_cpp(words: str, names: str) -> None:
    for name in names.split():
        assert PRE_TOKENIZERS[name].split(words.replace("⎸", "")) == words.split("⎸"), name


def test_every_rule_has_been_recorded() -> None:
    recorded = {PRE_TOKENIZERS[name] for _, names in WORDS for name in names.split()}
    assert recorded == set(PRE_TOKENIZERS.values())


# Recorded from llama.cpp: text, add_special, parse_special, ids
BY_MERGES = [
    (b"abc abab", 1, 0, [97, 258, 32, 259, 259]),
    (b"aaaaa cde cd", 1, 1, [260, 261, 32, 99, 100, 101, 32, 99, 100]),
    (b"ababaab", 0, 1, [259, 256, 259]),
    (b"<s>ab|c aab|abc</s>", 0, 0, [60, 115, 62, 267, 99, 264, 267, 97, 258, 60, 47, 115, 62]),
    (b"<s>ab|c aab|abc</s>", 0, 1, [265, 267, 99, 264, 267, 97, 258, 266]),
]
BY_WORDS = [
    (b"abc abab", 1, 0, [265, 257, 32, 259, 259, 266]),
    (b" a<s> a", 1, 1, [265, 264, 265, 264, 266]),
    (b"aaaaa cde", 0, 1, [260, 261, 32, 99, 100, 101]),
    (b"ab|abc", 1, 0, [265, 267, 257, 266]),
]
WHOLE_WORDS: dict[str, Any] = {
    "pre": ("str", "llama-bpe"),
    "add_eos_token": ("bool", True),
    "add_space_prefix": ("bool", True),  # without effect, as in llama.cpp
}


@pytest.mark.parametrize(("text", "add_special", "parse_special", "ids"), BY_MERGES)
def test_merges_as_in_llama_cpp(text: bytes, add_special: int, parse_special: int, ids: list) -> None:
    assert tokenizer().encode(text, bool(add_special), bool(parse_special)) == ids


@pytest.mark.parametrize(("text", "add_special", "parse_special", "ids"), BY_WORDS)
def test_whole_words_as_in_llama_cpp(text: bytes, add_special: int, parse_special: int, ids: list) -> None:
    assert tokenizer(**WHOLE_WORDS).encode(text, bool(add_special), bool(parse_special)) == ids


def test_bytes_that_are_no_text_as_in_llama_cpp() -> None:
    text = b"a\xc0\x80 \xed\xa0\x80\xe2\x82x\xf8\x88\x80\xf0\x80\x80\xa0"
    expected = [64, 188, 220, 169, 254, 222, 6353, 87, 48585, 220]
    assert from_file("gpt-2").encode(text, add_special=False) == expected


def test_a_character_beyond_unicode() -> None:  # llama.cpp aborts
    assert from_file("gpt-2").encode(b"a\xf4\x90\x80\x80b") == from_file("gpt-2").encode("a\ufffd\ufffd\ufffd\ufffdb")


def test_spaces_dropped_as_in_llama_cpp() -> None:
    text = " , a , b . c ?! e ' f ' g ' 's 'x 're 've 'll 'm 't 'd , '"
    dropped = ", a, b. c?! e'f'g''s 'x're've 'll'm 't 'd, '"
    for name, expected in {"gpt-2": dropped, "qwen2": text}.items():
        assert from_file(name).decode(from_file(name).encode(text, add_special=False)) == expected


def test_ends_of_generation_of_llama_cpp() -> None:
    ends = {"llama-bpe": {128001, 128009}, "deepseek-llm": {100001}, "starcoder": {0, 4}, "command-r": {0, 255001}}
    for name, ids in ends.items():
        assert from_file(name).eog == ids


def test_markers_of_a_text_with_a_gap_are_control_tokens() -> None:  # ids of llama.cpp
    coder = from_file("deepseek-coder")
    hole = [27, 169, 121, 237, 69, 308, 11028, 210, 19496, 169, 121, 237, 29]
    assert coder.encode("<｜fim▁hole｜>", add_special=False) == [32015]
    assert coder.encode("<｜fim▁hole｜>", add_special=False, parse_special=False) == hole


# Against a slow twin: merges as llama.cpp defines them


def merged(word: str, merges: list[str]) -> list[str]:
    """Pieces of `word`: always merge the neighbours that come first in `merges`, of equals the leftmost."""
    pieces = list(word)
    while True:
        pairs = [(merges.index(f"{a} {b}"), i) for i, (a, b) in enumerate(pairwise(pieces)) if f"{a} {b}" in merges]
        if not pairs:
            return pieces
        at = min(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


parts = st.text("abc", min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(parts, parts).map(" ".join), max_size=25), st.lists(st.text("abc", max_size=12)))
def test_merges_of_the_slow_twin(merges: list[str], words: list[str]) -> None:
    pieces = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    bpe = tokenizer([(piece, NORMAL) for piece in pieces], merges)
    for word in words:
        ids = [ord(piece) if len(piece) == 1 else 256 + pieces.index(piece) for piece in merged(word, merges)]
        assert bpe.encode(word) == ids


# What there is no recording of


def test_ordinary_text_never_becomes_a_control_token() -> None:
    assert tokenizer(**WHOLE_WORDS).encode("Word", add_special=False, parse_special=False) == [*b"Word"]


def test_bytes_of_what_merges_make_but_is_no_token() -> None:
    bpe = tokenizer([("éa", NORMAL)], ["Ã ©", "Ã© a"])
    assert bpe.encode("éa") == [*"éa".encode()]


def test_bytes_without_a_token_are_left_out() -> None:
    tokens = array("str", [symbol for symbol in SYMBOLS if symbol != "b"])
    bpe = tokenizer(tokens=tokens, token_type=None, merges=[])
    assert bpe.decode(bpe.encode("abc")) == "ac"


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_text_comes_back(text: str) -> None:
    qwen = from_file("qwen2")
    assert qwen.decode(qwen.encode(text, parse_special=False)) == text


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_any_bytes_can_be_encoded(text: bytes) -> None:
    for name in ("llama-bpe", "deepseek-llm"):
        assert all(0 <= id < from_file(name).n_vocab for id in from_file(name).encode(text))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 151_935)), st.booleans())
def test_a_stream_gives_the_same_text(ids: list[int], special: bool) -> None:
    stream = StreamDecoder(from_file("qwen2"), special)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == from_file("qwen2").decode(ids, special)


@pytest.mark.parametrize("char", ["a", " ", "日", "\0", "1", "!", "\n", "A", "a ", " \n"])
def test_long_text_of_one_character(char: str) -> None:
    text = char * 20_000
    assert from_file("qwen2").decode(from_file("qwen2").encode(text)) == text
    assert all("".join(rule.split(text)) == text for rule in set(PRE_TOKENIZERS.values()))


def test_tokens_that_are_stored_as_they_are() -> None:
    assert from_file("command-r").token_bytes(264) == "\u200d".encode()
    odd = [b"a b", b"\xff", "日".encode()]
    bpe = tokenizer(tokens=array("str", [*SYMBOLS, *odd]), token_type=None)
    assert [bpe.token_bytes(id) for id in (256, 257, 258)] == odd


def test_real_files_give_no_warnings() -> None:
    assert [from_file(name).warnings for name in PUBLISHED] == [[]] * len(PUBLISHED)


# Vocabularies as files have them


def test_defaults() -> None:
    assert from_file("llama-bpe").add_bos and not from_file("gpt-2").add_bos
    assert not tokenizer(pre=("str", "llama-bpe"), add_bos_token=("bool", False)).add_bos
    bpe = tokenizer(bos_token_id=None, eos_token_id=None)
    assert (bpe.bos, bpe.eos, bpe.add_bos, bpe.add_eos, bpe.space_prefix) == (None, None, False, False, False)


def test_gpt_oss_goes_on_after_the_end_of_a_part() -> None:
    names = ["<|return|>", "<|call|>", "<|end|>"]
    assert tokenizer([(name, CONTROL) for name in names], eos_token_id=("u32", 256)).eog == {256, 257}
    assert tokenizer([(name, CONTROL) for name in names[1:]], eos_token_id=("u32", 256)).eog == {256, 257}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"merges": None}, "missing key tokenizer.ggml.merges"),
        ({"merges": ("str", "a b")}, "must be an array"),
        ({"merges": array("u32", [1, 2])}, "must be an array of str"),
        *[
            ({"merges": ["a b", merge]}, f"merge 1 is '{merge}', must be two pieces with a space between")
            for merge in ("hi", "", " ", "a ", " a", " a b")
        ],
        ({"merges": ["a b", b"\xff\x1b"]}, r"merge 1 is '\xff\x1b', must be"),
        ({"pre": ("str", "nope")}, "tokenizer.ggml.pre=nope: is no pre-tokenizer that is known here"),
        ({"pre": ("str", "")}, "tokenizer.ggml.pre=: is no pre-tokenizer"),
        ({"pre": ("u32", 1)}, "must be a string"),
        ({"token_type": array("i32", [BYTE] * 270)}, "token 0 has the type of a byte, but is 'Ā', must be like <0x0A>"),
    ],
)
def test_refused(changes: dict, reason: str) -> None:
    with pytest.raises(FileError) as error:
        tokenizer(**changes)
    assert str(error.value).startswith("m.gguf: ")
    assert reason in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"merges": ["a b", "q" * 99 + " zz"]},
            "2 pieces of tokenizer.ggml.merges are no tokens, such as",
        ),
        ({"pre": None, "merges": ["a b"]}, "no tokenizer.ggml.pre: text is cut into words by the rule 'default'"),
    ],
)
def test_worked_around_with_a_warning(changes: dict, warning: str) -> None:
    bpe = tokenizer(**changes)
    assert len(bpe.warnings) == 1
    assert warning in bpe.warnings[0]
    assert bpe.encode("ab", add_special=False) == [259]


def test_the_first_of_equal_merges_counts() -> None:
    bpe = tokenizer(merges=["a b", "b c", *["a b"] * 1000])
    assert bpe.warnings == []
    assert bpe.encode("abc") == [259, 99]


def test_no_merges() -> None:
    assert tokenizer(merges=[]).encode("abc") == [*b"abc"]
