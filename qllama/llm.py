"""The public face: a model with its tokenizer. Text in, text out."""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qllama import data
from qllama.chat.reasoning import MARKS
from qllama.chat.template import ChatTemplate, choose
from qllama.generate import Stats, generate
from qllama.gguf import open_gguf
from qllama.model import N_BATCH, Model, Progress
from qllama.plan import Plan
from qllama.sampling.chain import SamplerChain
from qllama.sampling.order import build, with_file_defaults
from qllama.tokenizer import StreamDecoder, load_tokenizer

log = logging.getLogger("qllama")


def default_model() -> Path:
    """The small model that the package brings along."""
    return Path(data.__file__).with_name("default.gguf")


class ChatPrompt(NamedTuple):
    """A conversation as a model reads it."""

    text: str
    ids: list[int]


class LLM:
    """A model file, ready to run.

    n_ctx: tokens of context; None takes the context of training, or less if memory is short. n_threads: None takes the
    physical cores this process may use, cgroup quota included, or what `qllama tune` found. n_batch: the most tokens of
    a step. type_k, type_v: the KV cache, "f16", "f32" or "q8_0" each. override_kv: metadata that stands for the file's.
    chat_template: the name of one (qllama.chat.named), or its text; None takes the file's own. Raises
    qllama.errors.InputError for what cannot be used.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, n_ctx: int | None = None, n_threads: int | None = None,
        n_batch: int = N_BATCH, type_k: str = "f16", type_v: str = "f16", progress: Progress | None = None,
        override_kv: Mapping[str, int | float | bool | str] | None = None, chat_template: str | None = None,
    ) -> None:  # fmt: skip
        with open_gguf(path if path is not None else default_model(), override_kv) as gguf:
            self.tokenizer = load_tokenizer(gguf.metadata)
            self._metadata = gguf.metadata
            if chat_template is None and path is None:
                chat_template = "plain"  # the small model knows no conversations
            self._wished_template = chat_template
            if chat_template is not None:
                self.chat_template  # noqa: B018 (a wrong one is refused before the weights are loaded)
            self._file_defaults = with_file_defaults({}, gguf.metadata)
            self.model = Model(gguf, n_ctx, n_threads, n_batch, type_k, type_v, progress)
        for warning in (*self.tokenizer.warnings, *self.model.warnings):
            log.warning("%s", warning)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How conversations become prompts. Raises InputError where neither the file nor the user says it."""
        return choose(self._metadata, self.tokenizer, self._wished_template)

    @property
    def n_ctx(self) -> int:
        return self.model.n_ctx

    @property
    def plan(self) -> Plan:
        """The operations of a step; print it."""
        return self.model.plan

    def tokenize(self, text: str | bytes, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`; with `add_special`, BOS and EOS as the file wants them."""
        return self.tokenizer.encode(text, add_special, parse_special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of `ids`; control tokens are shown if `special`."""
        return self.tokenizer.decode(ids, special)

    def eval(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits after every token, in a fresh context: (n_tokens, n_vocab) float32."""
        return self.model.forward(tokens, 0, len(tokens))

    def generate(
        self, prompt: str | bytes, n_predict: int = -1, stop: Sequence[str] = (), ignore_eos: bool = False,
        parse_special: bool = True, stats: Stats | None = None, n_keep: int | None = None, **sampling: Any,
    ) -> Iterator[str]:  # fmt: skip
        """Pieces of text that continue `prompt`, as they come.

        `sampling`: temp, top_k, top_p, min_p, seed, ... (qllama.sampling.order.OPTIONS; llama.cpp's defaults, then the
        file's). It ends at an end-of-generation token (with `ignore_eos` those cannot be chosen), before a `stop` text,
        after n_predict tokens (< 0: no limit), or when the context is full; `stats` says which, and how long it took.
        n_keep: a full context is shifted instead; so many of the first tokens stay, and the newer half of the others.
        """
        ids = self.tokenize(prompt, parse_special=parse_special) or self._bos()
        # The prompt's own first word has lost its space; what follows keeps it, unless there is no prompt.
        decoder = StreamDecoder(self.tokenizer, continuation=len(prompt) > 0)
        return self._generate(ids, decoder, n_predict, stop, ignore_eos, stats, n_keep, sampling)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], n_predict: int = -1, stop: Sequence[str] = (),
        tools: Sequence[Any] | None = None, template_kwargs: Mapping[str, Any] | None = None,
        ignore_eos: bool = False, stats: Stats | None = None, n_keep: int | None = None, **sampling: Any,
    ) -> Iterator[str]:  # fmt: skip
        """Pieces of the model's answer to a conversation, as they come: `{"role": ..., "content": ...}` each.

        The rest as in `generate`; `tools` and `template_kwargs` are what the chat template is given besides. Only what
        differs from the last conversation is computed. Raises qllama.chat.TemplateError where the template refuses.
        """
        prompt = self.chat_prompt(messages, tools, **(template_kwargs or {}))
        return self.answer(prompt, n_predict, stop, ignore_eos, stats, n_keep, **sampling)

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, **template_kwargs: Any
    ) -> ChatPrompt:
        """The text that the chat template makes of a conversation, and its ids, with one BOS if the model wants it."""
        text = self.chat_template.render(messages, tools, **template_kwargs)
        ids = self.tokenize(text, add_special=False)
        if self.tokenizer.add_bos:
            ids = [*self._bos(), *itertools.dropwhile(lambda id: id == self.tokenizer.bos, ids)]
        return ChatPrompt(text, ids)

    def answer(
        self, prompt: ChatPrompt, n_predict: int = -1, stop: Sequence[str] = (), ignore_eos: bool = False,
        stats: Stats | None = None, n_keep: int | None = None, **sampling: Any,
    ) -> Iterator[str]:  # fmt: skip
        """What `chat` gives, from a prompt of `chat_prompt`. The marks around a model's reasoning are shown."""
        marks = {id for pair in MARKS for mark in pair if (id := self.tokenizer.special_id(mark)) is not None}
        decoder = StreamDecoder(self.tokenizer, special=marks)
        return self._generate(prompt.ids, decoder, n_predict, stop, ignore_eos, stats, n_keep, sampling)

    def _generate(
        self, ids: list[int], decoder: StreamDecoder, n_predict: int, stop: Sequence[str], ignore_eos: bool,
        stats: Stats | None, n_keep: int | None, sampling: dict[str, Any],
    ) -> Iterator[str]:  # fmt: skip
        options = {**self._file_defaults, **sampling}
        if ignore_eos:
            options["logit_bias"] = {
                **options.get("logit_bias", {}),
                **dict.fromkeys(self.tokenizer.eog, float("-inf")),
            }
        build(options)
        sampler = SamplerChain(self.tokenizer.n_vocab, options, self.tokenizer)
        stats = stats if stats is not None else Stats()
        tokens = generate(self.model, ids, sampler, n_predict, self.tokenizer.eog, stats, n_keep)
        return _until(_texts(tokens, decoder), tuple(s for s in stop if s), stats)

    def _bos(self) -> list[int]:
        return [] if self.tokenizer.bos is None else [self.tokenizer.bos]

    def close(self) -> None:
        """Stop the threads."""
        self.model.close()


def _texts(tokens: Iterator[int], decoder: StreamDecoder) -> Iterator[str]:
    for token in tokens:
        if text := decoder.push(token):
            yield text
    if text := decoder.flush():
        yield text


def _until(pieces: Iterator[str], stops: tuple[str, ...], stats: Stats) -> Iterator[str]:
    """`pieces` up to the first of `stops`. What could be the beginning of one is held back until it is decided."""
    if not stops:
        yield from pieces
        return
    held = ""
    for piece in pieces:
        held += piece
        found = [at for s in stops if (at := held.find(s)) >= 0]
        if found:
            stats.finish_reason = "stop"
            yield held[: min(found)]
            return
        keep = max(n for s in stops for n in range(len(s)) if held.endswith(s[:n]))
        if ready := held[: len(held) - keep]:
            yield ready
        held = held[len(held) - keep :]
    if held:
        yield held
