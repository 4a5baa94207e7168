"""A conversation between a person and a model: turns, taking them back, what to do when the context is full.

What is remembered on disk is chat/history.py's business, how it looks is the command line's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qllama.chat.history import History
from qllama.chat.reasoning import Piece, Splitter
from qllama.errors import InputError
from qllama.generate import Stats
from qllama.kv_file import KVFile
from qllama.llm import LLM, ChatPrompt


class ContextFull(InputError):
    """The conversation does not fit the context any more. `n_forget`: messages to forget so that it does."""

    def __init__(self, n_tokens: int, n_ctx: int, n_forget: int) -> None:
        self.n_tokens, self.n_ctx, self.n_forget = n_tokens, n_ctx, n_forget
        super().__init__(f"the conversation has {n_tokens} tokens, the context of {n_ctx} leaves no room for an answer")


@dataclass
class Session:
    """One conversation with one model. `sampling`: as in LLM.generate; what is set in `history` goes before it.

    n_keep: None ends an answer when the context is full; a number shifts the context as LLM.generate does, and forgets
    the oldest messages when the next answer has no room.
    """

    llm: LLM
    history: History = field(default_factory=History)
    sampling: dict[str, Any] = field(default_factory=dict)
    n_predict: int = -1
    n_keep: int | None = None
    kv_exact: bool = False  # keep every bit of the cache beside the conversation
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # what the chat template is given besides
    stats: Stats = field(default_factory=Stats)  # of the last answer
    n_used: int = 0  # tokens of the context in use

    _kv: KVFile | None = field(default=None, repr=False)

    def resume(self) -> int:
        """Take over what the model once knew of a conversation that goes on; the number of tokens."""
        kv = self._kv_file()
        return kv.load() if kv is not None else 0

    def _kv_file(self) -> KVFile | None:
        """Where the cache is kept: beside the conversation, if that is being written."""
        if not self.history.is_open or self.history.path is None:
            return None
        path = self.history.path.with_suffix(".kv")
        if self._kv is None or self._kv.path != path:
            self._kv = KVFile(path, self.llm.model, self.kv_exact)
        return self._kv

    def _save_kv(self) -> None:
        kv = self._kv_file()
        try:
            if kv is not None:
                kv.save()
        except OSError as error:
            self.history.warnings.append(f"{kv.path}: the model's state is not kept: {error.strerror}")  # type: ignore[union-attr]

    def ask(self, text: str) -> Iterator[Piece]:
        """The answer to `text`, in pieces. Raises ContextFull, before anything is said, when it does not fit."""
        for path in self.llm.model.changed_files():
            self.history.warnings.append(f"{path} has changed; what was loaded of it goes on answering")
        if self.unanswered:  # templates want turns to alternate
            self.history.add({"role": "assistant", "content": "", "finish": "killed"})
        message = {"role": "user", "content": text}
        self.history.messages.append(message)
        try:
            prompt = self._prompt()
        finally:
            self.history.messages.pop()
        self.history.add(message)
        return self._answer(prompt)

    @property
    def unanswered(self) -> bool:
        """Whether the last message has no answer: the program was killed before there was one."""
        return bool(self.history.messages) and self.history.messages[-1]["role"] == "user"

    def again(self) -> Iterator[Piece]:
        """Another answer to the last message, in the place of the one there is."""
        n = self._last_user() + 1
        old = self.history.messages[n:]
        del self.history.messages[n:]
        try:
            prompt = self._prompt()
        finally:
            self.history.messages.extend(old)
        self.history.keep(n)
        return self._answer(prompt)

    def undo(self) -> str:
        """Take back the last message and its answer; returns the message."""
        n = self._last_user()
        text = self.history.messages[n]["content"]
        self.history.keep(n)
        self.measure()
        return text

    def _last_user(self) -> int:
        users = [i for i, message in enumerate(self.history.messages) if message["role"] == "user"]
        if not users:
            raise InputError("nothing has been said yet")
        return users[-1]

    # ---- the context

    def read(self, messages: Sequence[dict[str, Any]], **more: Any) -> ChatPrompt:
        """Messages as the model reads them."""
        return self.llm.chat_prompt(messages, **{**self.template_kwargs, **more})

    def measure(self) -> int:
        """Count the tokens that the conversation takes, without a next answer."""
        messages = self.history.prompt()
        self.n_used = len(self.read(messages, add_generation_prompt=False).ids) if messages else 0
        return self.n_used

    def _prompt(self) -> ChatPrompt:
        """The prompt of the next answer. Raises ContextFull when it leaves no room for one."""
        prompt = self.read(self.history.prompt())
        if len(prompt.ids) < self.llm.n_ctx:
            return prompt
        full = ContextFull(len(prompt.ids), self.llm.n_ctx, self._n_forget())
        if self.n_keep is None or full.n_forget == 0:
            raise full
        self.history.forget(self.history.forgotten + full.n_forget)
        return self._prompt()

    def _n_forget(self) -> int:
        """How many of the oldest messages to forget so that half of the context is free; 0: that would be all.

        A conversation goes on with a message of the user.
        """
        messages = self.history.prompt()
        first = int(self.history.system is not None)
        starts = [i for i, message in enumerate(messages) if message["role"] == "user" and i > first]
        for limit in (self.llm.n_ctx // 2, self.llm.n_ctx - 1):
            for i in starts:
                if len(self.read(messages[:first] + messages[i:]).ids) <= limit:
                    return i - first
        return 0

    def forget(self, n: int) -> list[dict[str, Any]]:
        """Leave n more of the oldest messages out of prompts; returns them."""
        first = int(self.history.system is not None)
        lost = self.history.prompt()[first : first + n]
        self.history.forget(self.history.forgotten + n)
        return lost

    # ---- answers

    def _answer(self, prompt: ChatPrompt) -> Iterator[Piece]:
        """The pieces of an answer. It is kept as far as it came, however it ends."""
        self.stats = stats = Stats()
        self.n_used = len(prompt.ids)
        options = {**self.sampling, **self.history.settings}
        n_predict = options.pop("n_predict", self.n_predict)
        pieces = self.llm.answer(prompt, n_predict, stats=stats, n_keep=self.n_keep, **options)
        return self._kept(pieces, Splitter(prompt.text), stats)

    def _kept(self, pieces: Iterator[str], splitter: Splitter, stats: Stats) -> Iterator[Piece]:
        said: dict[bool, list[str]] = {True: [], False: []}
        finish = "interrupted"
        try:
            for text in pieces:
                self.history.add_piece(text)
                self.n_used = min(stats.n_prompt + stats.n_generated - stats.n_dropped, self.llm.n_ctx)
                for piece in splitter.push(text):
                    said[piece.reasoning].append(piece.text)
                    yield piece
            for piece in splitter.flush():
                said[piece.reasoning].append(piece.text)
                yield piece
            finish = "context" if stats.context_full else stats.finish_reason
        finally:
            if finish == "interrupted":
                for piece in splitter.flush():
                    said[piece.reasoning].append(piece.text)
            reasoning = "".join(said[True])
            message = {"role": "assistant", "content": "".join(said[False]), "finish": finish}
            self.history.add(message | ({"reasoning_content": reasoning} if reasoning else {}))
            self._save_kv()
