"""Which chat template a model has, and the prompt it makes: the file's own, one by name, or one from the user.

Token ids of prompts are llm.py's business, rendering is render.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qllama.chat.named import ALIASES, TEMPLATES, certain
from qllama.chat.render import render
from qllama.errors import InputError
from qllama.metadata import Metadata
from qllama.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the tokens it names. `origin` says where it is from, for people."""

    source: str
    origin: str
    bos_token: str | None = None
    eos_token: str | None = None
    tool_use: str | None = None  # the file's other template, for messages with tools
    warnings: tuple[str, ...] = ()

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True, **kwargs: Any,
    ) -> str:  # fmt: skip
        """The prompt. Raises TemplateError. `kwargs` as in `qllama.chat.render`."""
        source = self.tool_use if tools and self.tool_use is not None else self.source
        return render(
            source, messages, tools=tools, add_generation_prompt=add_generation_prompt, bos_token=self.bos_token,
            eos_token=self.eos_token, **kwargs,
        )  # fmt: skip


def choose(metadata: Metadata, tokenizer: Tokenizer, wished: str | None = None) -> ChatTemplate:
    """The template to use with a model: the `wished` one, or the file's own, or the one its vocabulary tells.

    wished: a name of TEMPLATES, or the text of a template. Raises InputError where none of this gives one.
    """
    tokens = (_text(tokenizer, tokenizer.bos), _text(tokenizer, tokenizer.eos))
    if wished is not None:
        return _wished(wished, tokens)
    if KEY in metadata:
        text, warnings = _file_text(metadata, KEY)
        tool_key = f"{KEY}.tool_use"
        tool_use = _file_text(metadata, tool_key)[0] if tool_key in metadata else None
        return ChatTemplate(text, "the model's own", *tokens, tool_use=tool_use, warnings=warnings)
    name = certain(lambda sign: tokenizer.special_id(sign) is not None, metadata.get("tokenizer.ggml.model") == "gpt2")
    if name is None:
        raise InputError(
            f"{metadata.path} has no chat template and its vocabulary does not tell which it needs: "
            f"choose one with --chat-template, of {', '.join(TEMPLATES)}"
        )
    return ChatTemplate(TEMPLATES[name], f"{name}, by the vocabulary", *tokens)


def _wished(wished: str, tokens: tuple[str | None, str | None]) -> ChatTemplate:
    name = ALIASES.get(wished, wished)
    if name in TEMPLATES:
        return ChatTemplate(TEMPLATES[name], name, *tokens)
    if "{" not in wished:
        raise InputError(
            f"--chat-template: found {wished!r}, needed the text of a template or one of {', '.join(TEMPLATES)}"
        )
    return ChatTemplate(wished, "given by the user", *tokens)


def _text(tokenizer: Tokenizer, id: int | None) -> str | None:
    return None if id is None else tokenizer.token_bytes(id, special=True).decode(errors="replace")


def _file_text(metadata: Metadata, key: str) -> tuple[str, tuple[str, ...]]:
    """The text of a template in the file. Bytes that are not UTF-8 are replaced, and a warning says so."""
    text = metadata.text(key)
    clean = text.encode(errors="surrogateescape").decode(errors="replace")
    wrong = f"{metadata.path}: {key} is not UTF-8, what is wrong is replaced by U+FFFD"
    return clean, () if clean == text else (wrong,)
