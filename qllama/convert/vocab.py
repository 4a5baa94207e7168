"""The tokenizer of a Hugging Face folder as GGUF's keys. gguf's SpecialVocab finds special ids, merges, templates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qllama.convert.files import Config, optional_json, read_json
from qllama.convert.pre import KNOWN, TEXT, fingerprint
from qllama.errors import FileError, InputError, printable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of tokenizer.ggml.token_type
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0
SPACE = "\u2581"  # of SentencePiece
MAX_VOCAB = 1 << 24


def add_vocab(writer: Any, config: Config, is_llama: bool) -> None:
    """Add tokenizer.* to a gguf.GGUFWriter. Raises FileError for files that are missing or damaged."""
    folder = config.path.parent
    settings = optional_json(folder / "tokenizer_config.json")
    if is_llama and isinstance(settings.get("add_prefix_space"), bool):
        writer.add_add_space_prefix(settings["add_prefix_space"])
    if (folder / "tokenizer.model").is_file():
        _guarded(folder / "tokenizer.model", lambda: _sentencepiece(writer, config, settings))
    elif (folder / "tokenizer.json").is_file():
        _guarded(folder / "tokenizer.json", lambda: _byte_level(writer, config, settings))
    else:
        raise FileError(folder, "has no tokenizer: needed tokenizer.model or tokenizer.json")
    if is_llama and config.get("vocab_size") == 32016:  # CodeLlama, whose files do not name the end of an infill
        writer.add_eot_token_id(32010)
    if is_llama and config.get("vocab_size") == 49152:  # Granite
        writer.add_add_bos_token(False)


def _guarded(path: Path, add: Callable[[], None]) -> None:
    """Libraries that read a stranger's file raise what they please."""
    try:
        add()
    except InputError:
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise FileError(path, f"a tokenizer that cannot be read: {type(error).__name__}: {error}") from None


def _vocab_size(config: Config, default: int | None = None) -> int:
    n_vocab = config.integer("vocab_size", default)
    if n_vocab > MAX_VOCAB:
        raise FileError(config.path, f"must be {MAX_VOCAB} at most", "vocab_size", n_vocab)
    return n_vocab


def _looks_special(token: str) -> bool:
    """Some files do not say of their control tokens that they are special."""
    around = ("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">")
    named = token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(token.startswith(start) and token.endswith(end) for start, end in around)


def _sentencepiece(writer: Any, config: Config, settings: dict[str, Any]) -> None:
    import gguf
    from sentencepiece import SentencePieceProcessor

    folder = config.path.parent
    model = SentencePieceProcessor()
    model.LoadFromFile(str(folder / "tokenizer.model"))
    n_vocab = _vocab_size(config, model.vocab_size())
    tokens, scores, types = [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED_SCORE] * n_vocab, [UNUSED] * n_vocab
    kinds = (model.IsUnknown, UNKNOWN), (model.IsControl, CONTROL), (model.IsUnused, UNUSED), (model.IsByte, BYTE)
    for i in range(min(n_vocab, model.vocab_size())):
        tokens[i], scores[i] = model.IdToPiece(i), model.GetScore(i)
        types[i] = next((kind for is_kind, kind in kinds if is_kind(i)), NORMAL)
    for token, i in optional_json(folder / "added_tokens.json").items():
        if _is_id(i, n_vocab):
            tokens[i], scores[i], types[i] = token, ADDED_SCORE, USER_DEFINED
    for i, token, special in _added(folder, settings):
        if i < n_vocab:
            is_control = special or _looks_special(token)
            tokens[i] = token if is_control else token.replace(SPACE, " ")
            scores[i], types[i] = ADDED_SCORE, CONTROL if is_control else USER_DEFINED
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, n_vocab=n_vocab).add_to_gguf(writer, quiet=True)


def _is_id(value: Any, n_vocab: int) -> bool:
    return type(value) is int and 0 <= value < n_vocab


def _added(folder: Path, settings: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, token, whether it is special) of tokenizer_config.json's added_tokens_decoder."""
    found = []
    for key, entry in (settings.get("added_tokens_decoder") or {}).items():
        token = entry.get("content") if isinstance(entry, dict) else None
        if not (key.isascii() and key.isdigit() and isinstance(token, str)):
            raise FileError(folder / "tokenizer_config.json", "no added token", key, entry)
        found.append((int(key), token, bool(entry.get("special"))))
    return found


def _byte_level(writer: Any, config: Config, settings: dict[str, Any]) -> None:
    import gguf

    folder = config.path.parent
    path = folder / "tokenizer.json"
    whole = read_json(path)
    model = whole.get("model") or {}
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback"):
        what = "BPE with byte_fallback, needed tokenizer.model beside it" if kind == "BPE" else f"{kind}, needed BPE"
        raise FileError(path, f"its model is {printable(what)}")
    tokenizer = _tokenizer(path)
    pre = _rule(path, tokenizer)
    tokens, types = _token_list(config, tokenizer, {i: special for i, _, special in _added(folder, settings)})
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True)
    after = whole.get("post_processor") or {}
    if any(step.get("type") == "ByteLevel" for step in after.get("processors", [after])):  # it adds no tokens
        special.add_special_token = {"bos": False, "eos": False, **special.add_special_token}
    special.add_to_gguf(writer, quiet=True)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("converting a tokenizer.json needs the package tokenizers: "
                         "pip install 'qllama[convert]'") from None  # fmt: skip
    return Tokenizer.from_file(str(path))


def _rule(path: Path, tokenizer: Any) -> str:
    """The name of the rule that cuts text into words."""
    digest = fingerprint(tokenizer.encode(TEXT).ids)
    if digest not in KNOWN:
        raise FileError(path, f"its pre-tokenizer is unknown (fingerprint {digest})")
    return KNOWN[digest]


def _token_list(config: Config, tokenizer: Any, special: dict[int, bool]) -> tuple[list[str], list[int]]:
    """All tokens and their types; `special` says of added tokens what tokenizer.json may not."""
    vocab, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    n_vocab = _vocab_size(config, len(vocab))
    if max(vocab.values()) >= n_vocab:
        reason = f"the tokenizer has an id {max(vocab.values())}, which needs more"
        raise FileError(config.path, reason, "vocab_size", n_vocab)
    tokens, types = [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab
    for token, i in vocab.items():
        tokens[i], types[i] = token, NORMAL
    for i, entry in added.items():
        token = entry.content
        if not entry.normalized:
            ids = tokenizer.encode(token, add_special_tokens=False).ids
            token = tokenizer.decode(ids, skip_special_tokens=False)
        is_control = special.get(i, entry.special) or _looks_special(token)
        tokens[i] = token if is_control else token.replace(SPACE, " ")
        types[i] = CONTROL if is_control else USER_DEFINED
    return tokens, types
