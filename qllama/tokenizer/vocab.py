"""A vocabulary as a GGUF file carries it, checked and made plain data.

Knows the `tokenizer.ggml.*` keys and what llama.cpp makes of missing or damaged ones. How text is cut into
tokens is left to the tokenizers.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllama.errors import FileError
from qllama.metadata import Metadata, short
from qllama.tokenizer.pre import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

MAX_TOKEN_BYTES = 64 << 10
_BYTE = re.compile(rb"<0x[0-9A-F]{2}>")

# Names of tokens that end a text or a turn. Files do not mark them, so llama.cpp goes by these names too.
END_MARKERS = """
    </s> <eos> [EOS] <EOT> _<EOT> [EOT] <|end|> <|eot_id|> <|eom_id|> <|im_end|> <|endoftext|> <|end_of_text|>
    <end_of_turn> <end_of_utterance> <turn|> <|tool_response> <|return|> <|call|> <|calls|> <|flush|>
    <｜end▁of▁sentence｜> [e~[
""".encode().split()

# Names of tokens in prompts that ask for what is missing within a text, by their part there; looked for where
# the file gives no id, as in llama.cpp. A model that writes one of FILL_ENDS has begun another text.
_FILL_MARKERS = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
FILL_MARKERS = {part: names.encode().split() for part, names in _FILL_MARKERS.items()}
FILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")


@dataclass(frozen=True)
class Defaults:
    """What holds where a file is silent."""

    bos: int | None
    eos: int | None
    unk: int | None
    add_bos: bool  # of byte-level BPE the pre-tokenizer says it
    add_space_prefix: bool


# By tokenizer.ggml.model; llama.cpp's values, except that its gpt2 takes token 11 for BOS and EOS, which is
# right for Falcon and a comma elsewhere.
DEFAULTS = {
    "llama": Defaults(bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True),
    "gpt2": Defaults(bos=None, eos=None, unk=None, add_bos=False, add_space_prefix=False),
}

SUCH_AS = ("gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken")  # of pre-tokenizers
BYTE_PAIR = ("gpt2",)  # the kinds that have merges and a pre-tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model and the rules its file gives for them. A special id is None if there is none."""

    path: str  # of the file, for messages
    model: str  # tokenizer.ggml.model
    tokens: list[bytes]  # as stored: a space is U+2581 in SentencePiece, U+0120 in BPE; need not be UTF-8
    types: np.ndarray  # (n_vocab,) int32: NORMAL to BYTE
    scores: np.ndarray | None  # (n_vocab,) float32 without NaN; not read where there are merges
    ids: dict[bytes, int]  # of each text its first id; empty texts left out
    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unk: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    pre: PreTokenizer | None  # how byte-level BPE cuts words; None for other kinds
    merges: list[bytes]  # of BPE: `left right` each, in the order they are made; the first of equals counts
    special: list[int]  # looked for in raw text: control, unknown and user-defined tokens, and markers
    eog: frozenset[int]  # what ends a generation: EOS, EOT, EOM and control tokens that END_MARKERS names
    rstrip: frozenset[int]  # special tokens that swallow the white space after them
    warnings: list[str]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "Vocabulary":
        """Read and check a vocabulary whose `tokenizer.ggml.model` is one of DEFAULTS.

        Raises FileError for what cannot be used; what can be worked around is told in `warnings`.
        """
        reader = _Reader(metadata)
        model = metadata.text("tokenizer.ggml.model")
        default = DEFAULTS[model]
        tokens = reader.tokens()
        ids = reader.first_ids(tokens)
        types = reader.types(tokens)
        bos, eos = reader.id("bos", default.bos), reader.id("eos", default.eos)
        eot, eom = reader.id("eot"), reader.id("eom")
        markers, ends = reader.markers(ids, types)
        pre = reader.pre() if model in BYTE_PAIR else None
        return cls(
            path=metadata.path,
            model=model,
            tokens=tokens,
            types=types,
            scores=None if pre else reader.scores(),
            ids=ids,
            bos=bos,
            eos=eos,
            eot=eot,
            eom=eom,
            unk=reader.id("unknown", default.unk),
            pad=reader.id("padding"),
            add_bos=reader.adds("bos", pre.add_bos if pre else default.add_bos, bos),
            add_eos=reader.adds("eos", False, eos),
            add_space_prefix=metadata.boolean("tokenizer.ggml.add_space_prefix", default.add_space_prefix),
            pre=pre,
            merges=reader.merges(ids) if pre else [],
            special=sorted({*_special(types), *markers}),
            eog=frozenset(ends | {id for id in (eos, eot, eom) if id is not None}),
            rstrip=_rstrip(metadata.text("general.name", ""), tokens, types),
            warnings=reader.warnings,
        )


def quoted(token: bytes) -> str:
    """A token as messages show it: escaped, and cut if long."""
    return f"'{short(token.decode(errors='backslashreplace'))}'"


def _special(types: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED))).tolist()


def _end_names(ids: dict[bytes, int]) -> set[bytes]:
    names = {name for name in END_MARKERS if name in ids}
    # In gpt-oss and Solar Open <|end|> ends a part of the answer; their other markers tell. As in llama.cpp.
    if names >= {b"<|return|>", b"<|call|>"} or (b"<|flush|>" in names and names & {b"<|call|>", b"<|calls|>"}):
        names.discard(b"<|end|>")
    return names


def _rstrip(model_name: str, tokens: list[bytes], types: np.ndarray) -> frozenset[int]:
    # Only Phi-3's tokens do this. GGUF has no key for it, so llama.cpp goes by the name too.
    if not any(name in model_name.lower() for name in ("phi-3", "phi3")):
        return frozenset()
    return frozenset(i for i in _special(types) if tokens[i] not in (b"<unk>", b"<s>", b"<|endoftext|>"))


class _Reader:
    """Reads one vocabulary, gathering the warnings."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.warnings: list[str] = []
        self.n_vocab = 0
        if metadata.boolean("tokenizer.ggml.remove_extra_whitespaces", False):
            self.warn("tokenizer.ggml.remove_extra_whitespaces is ignored, as in llama.cpp")

    def tokens(self) -> list[bytes]:
        key = "tokenizer.ggml.tokens"
        tokens = self.metadata.array(key, ("str",)).to_list()
        if not any(tokens):
            raise self.metadata.error(key, "all tokens are empty" if tokens else "has no tokens")
        longest = max(tokens, key=len)
        if len(longest) > MAX_TOKEN_BYTES:
            what = f"token {tokens.index(longest)} has {len(longest)} bytes"
            raise self.metadata.error(key, f"{what}, must have at most {MAX_TOKEN_BYTES}")
        self.n_vocab = len(tokens)
        return tokens

    def first_ids(self, tokens: list[bytes]) -> dict[bytes, int]:
        ids = dict(zip(reversed(tokens), reversed(range(len(tokens))), strict=True))
        first_empty, n_empty = ids.pop(b"", None), tokens.count(b"")
        n_repeated = len(tokens) - n_empty - len(ids)
        if n_empty:
            self.warn(f"{n_empty} empty tokens, the first is token {first_empty}")
        if n_repeated:
            again = next(id for id, token in enumerate(tokens) if token and ids[token] != id)
            first = f"token {again} repeats token {ids[tokens[again]]}, {quoted(tokens[again])}"
            self.warn(f"{n_repeated} duplicate tokens, the first of each is used: {first}")
        return ids

    def types(self, tokens: list[bytes]) -> np.ndarray:
        types = self.per_token("tokenizer.ggml.token_type", "i32", np.full(self.n_vocab, NORMAL, np.int32))
        undefined = np.flatnonzero((types < NORMAL) | (types > BYTE))
        if len(undefined):
            first = f"token {undefined[0]} has type {types[undefined[0]]}"
            self.warn(f"{len(undefined)} tokens of unknown type, taken as normal: {first}")
            types[undefined] = NORMAL
        for id in np.flatnonzero(types == BYTE).tolist():
            if not _BYTE.fullmatch(tokens[id]):
                what = f"token {id} has the type of a byte, but is {quoted(tokens[id])}"
                raise FileError(self.metadata.path, f"{what}, must be like <0x0A>")
        return types

    def markers(self, ids: dict[bytes, int], types: np.ndarray) -> tuple[set[int], set[int]]:
        """The tokens that have the name of a marker, and the markers that end a generation.

        User-defined ones become control tokens: Phi-3 has </s> so, to be found in any text. llama.cpp, too,
        overrides that.
        """
        given = {part: id for part in FILL_MARKERS if (id := self.id(part)) is not None}
        found = {
            part: ids[name]
            for part, names in FILL_MARKERS.items()
            if part not in given
            for name in reversed(names)
            if name in ids
        }
        ends = {ids[name] for name in _end_names(ids)} | {found[part] for part in FILL_ENDS if part in found}
        named = ends | set(found.values())
        types[[id for id in named if types[id] == USER_DEFINED]] = CONTROL
        ends = {id for id in ends if types[id] == CONTROL}
        return named, ends | {given[part] for part in FILL_ENDS if part in given}

    def pre(self) -> PreTokenizer:
        key = "tokenizer.ggml.pre"
        if key not in self.metadata:
            self.warn(f"no {key}: text is cut into words by the rule 'default', perhaps not as the model knows it")
        name = self.metadata.text(key, "default")
        if name not in PRE_TOKENIZERS:
            choose = f"choose one that is: --override-kv {key}=str:NAME, perhaps {', '.join(SUCH_AS)}"
            raise self.metadata.error(key, f"is no pre-tokenizer that is known here; {choose}")
        return PRE_TOKENIZERS[name]

    def merges(self, ids: dict[bytes, int]) -> list[bytes]:
        key = "tokenizer.ggml.merges"
        merges = self.metadata.array(key, ("str",)).to_list()
        pieces = [piece for merge in merges for piece in merge.split(b" ", 1)]
        distinct = set(pieces)
        if len(pieces) < 2 * len(merges) or b"" in distinct:
            index = next(i for i, merge in enumerate(merges) if not all(merge.partition(b" ")))
            what = f"merge {index} is {quoted(merges[index])}"
            raise self.metadata.error(key, f"{what}, must be two pieces with a space between")
        unknown = distinct - ids.keys()
        if unknown:
            self.warn(f"{len(unknown)} pieces of {key} are no tokens, such as {quoted(min(unknown))}")
        return merges

    def scores(self) -> np.ndarray | None:
        key = "tokenizer.ggml.scores"
        scores = self.per_token(key, "f32", None)
        if scores is not None and np.isnan(scores).any():
            raise self.metadata.error(key, f"the score of token {np.isnan(scores).argmax()} is not a number")
        return scores

    def per_token(self, key: str, type: str, default: Any) -> Any:
        """The first n_vocab elements of an array."""
        array = self.metadata.array(key, (type,), None)
        if array is None:
            return default
        if array.count < self.n_vocab:
            raise self.metadata.error(key, f"has {array.count} elements for {self.n_vocab} tokens")
        if array.count > self.n_vocab:
            self.warn(f"{key} has {array.count} elements for {self.n_vocab} tokens, the rest is ignored")
        return array.to_numpy()[: self.n_vocab]

    def id(self, name: str, default: int | None = None) -> int | None:
        """A special id. One out of range counts as not given; a default out of range is none."""
        key = f"tokenizer.ggml.{name}_token_id"
        id = self.metadata.integer(key, None, low=-(2**63), high=2**64)
        if id is not None and 0 <= id < self.n_vocab:
            return id
        if id is not None:
            self.warn(f"{key}={id} is ignored: the vocabulary has {self.n_vocab} tokens")
        return default if default is not None and default < self.n_vocab else None

    def adds(self, name: str, default: bool, id: int | None) -> bool:
        """Whether the special token `name` is added to a text."""
        key = f"tokenizer.ggml.add_{name}_token"
        value = self.metadata.boolean(key, default)
        if value and id is None:
            self.warn(f"{key} is true, but there is no such token; none is added")
        return value and id is not None

    def warn(self, message: str) -> None:
        self.warnings.append(message)
