"""Reading a message: with prompt_toolkit at a terminal, line by line elsewhere. What it means is repl.py's business."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from qllama.cli.repl import Repl

QUOTES = '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self, draft: str) -> str:
        """The next message; `draft` is there to be edited. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C."""

    def confirm(self, question: str) -> bool:
        """Whether the answer is yes."""


def make_reader(repl: "Repl") -> Reader:
    """The reader for where the program runs."""
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return TerminalReader(repl)
    return LineReader()


def is_open(text: str) -> bool:
    '''Whether a message that began with """ has not ended yet.'''
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.rstrip().endswith(QUOTES))


def unquoted(text: str) -> str:
    '''A message without the """ around it.'''
    if not text.startswith(QUOTES):
        return text
    return text.rstrip().removesuffix(QUOTES).removeprefix(QUOTES).strip("\n")


class LineReader:
    """Lines from a stream, for dumb terminals and pipes."""

    def read(self, draft: str) -> str:
        """A draft cannot be edited here; it is shown, and lost unless it is said again."""
        if draft:
            print(f"(not sent: {draft})", flush=True)
        text = self._line("> ")
        while is_open(text):
            text += "\n" + self._line("... ")
        return unquoted(text)

    def confirm(self, question: str) -> bool:
        """One line."""
        return self._line(question).strip().lower() in ("y", "yes")

    def _line(self, prompt: str) -> str:
        if sys.stdin is None:
            raise EOFError
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print(flush=True)
            raise EOFError
        return line.removesuffix("\n")


class TerminalReader:
    """A line editor with history across runs, completion and an external editor."""

    def __init__(self, repl: "Repl") -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        from qllama.chat.history import folder

        path = folder().parent / "history"
        history: Any = InMemoryHistory()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            history = FileHistory(str(path))
        except OSError:
            pass  # it is remembered until the end of this run
        self.prompt: Any = PromptSession(
            history=history,
            completer=_completer(),
            complete_while_typing=Condition(lambda: self.prompt.default_buffer.text.startswith("/")),
            multiline=Condition(lambda: is_open(self.prompt.default_buffer.text)),
            prompt_continuation="... ",
            bottom_toolbar=repl.status,
            key_bindings=_keys(),
            enable_history_search=False,
            tempfile_suffix=".txt",
        )

    def read(self, draft: str) -> str:
        return unquoted(self.prompt.prompt("> ", default=draft))

    def confirm(self, question: str) -> bool:
        from prompt_toolkit import prompt

        return prompt(question).strip().lower() in ("y", "yes")


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g")
    def _(event: Any) -> None:
        event.current_buffer.open_in_editor()

    return keys


def _completer() -> Any:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    from qllama.chat.history import saved
    from qllama.cli import slash

    files = PathCompleter(expanduser=True)

    class Commands(Completer):
        """Commands, and behind some of them what they can take."""

        def get_completions(self, document: Document, complete_event: Any) -> Any:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            command, space, argument = text.partition(" ")
            if not space:
                for name, entry in slash.COMMANDS.items():
                    if name.startswith(text[1:]):
                        yield Completion(f"/{name}", start_position=-len(text), display_meta=entry.help)
                return
            if command == "/read":
                yield from files.get_completions(Document(argument, len(argument)), complete_event)
                return
            words = {
                "/load": lambda: [path.stem for path in saved()],
                "/set": slash.settable,
                "/show": lambda: slash.SHOWN,
                "/help": lambda: list(slash.COMMANDS),
            }.get(command, list)()
            for word in words:
                if word.startswith(argument):
                    yield Completion(word, start_position=-len(argument))

    return Commands()


def expanded(path: str) -> Path:
    """A path as a person types it."""
    return Path(os.path.expanduser(path.strip().strip("'\"")))
