"""The conversation at a terminal: reads messages, shows answers as they come. Commands are in slash.py."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qllama.errors import InputError, QllamaError, printable

if TYPE_CHECKING:
    from qllama.chat.reasoning import Piece
    from qllama.session import ContextFull, Session

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
NEARLY_FULL = 0.85  # of the context


def one_answer(session: "Session", text: str, reasoning: bool, quiet: bool) -> int:
    """Print the answer to one message, and nothing else, on stdout."""
    from qllama.cli.run import summary

    code = 0
    try:
        with contextlib.closing(session.ask(text)) as pieces:  # type: ignore[type-var]
            show(pieces, Screen(sys.stdout, styled=False), reasoning)
    except KeyboardInterrupt:
        code = 130
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not quiet:
        print(summary(session.stats), file=sys.stderr)
    return code


class Screen:
    """Where answers are written; `styled` if it understands escape sequences. A model cannot write such itself."""

    def __init__(self, stream: Any, styled: bool) -> None:
        self.stream, self.styled = stream, styled
        self.dim = False

    def write(self, text: str, dim: bool = False) -> None:
        """Text of a model: control characters are escaped at a terminal."""
        if self.styled and dim is not self.dim:
            self.stream.write(DIM if dim else PLAIN)
        self.dim = dim
        self._write("".join(c if c in "\n\t" or c.isprintable() else printable(c) for c in text))

    def line(self, text: str = "") -> None:
        """A line of our own."""
        self.plain()
        self._write(text + "\n")

    def plain(self) -> None:
        """No longer dim."""
        if self.styled and self.dim:
            self.stream.write(PLAIN)
        self.dim = False

    def _write(self, text: str) -> None:
        buffer = getattr(self.stream, "buffer", None)
        if buffer is not None:  # UTF-8 whatever the locale
            self.stream.flush()
            buffer.write(text.encode(errors="replace"))
        else:
            self.stream.write(text)
        self.stream.flush()


def show(pieces: Iterator["Piece"], screen: Screen, reasoning: bool) -> None:
    """Write an answer as it comes; reasoning is dim, with a line between it and the answer, or left out."""
    last = False
    for piece in pieces:
        if piece.reasoning and not reasoning:
            continue
        if last and not piece.reasoning:
            screen.write("\n\n")
        screen.write(piece.text, dim=piece.reasoning)
        last = piece.reasoning
    screen.plain()


class Repl:
    """Reads a line, does it, until the end. `keep`: the conversation is written to disk."""

    def __init__(self, session: "Session", reasoning: bool, keep: bool = True) -> None:
        from qllama.cli.prompt import make_reader

        styled = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.session, self.reasoning, self.keep = session, reasoning, keep
        self.screen = Screen(sys.stdout, styled)
        self.reader = make_reader(self)
        self.prefix = ""  # what /read has put before the next message
        self.draft = ""  # what the next prompt begins with, to be edited
        self.quit = False
        self.interrupts = 0  # Ctrl-C in a row

    def run(self, first: str | None) -> int:
        """Until the end: 0, or 130 after Ctrl-C twice."""
        self.greet()
        self._tell_warnings()
        if first is not None:
            self.screen.line(f"> {printable(first)}")
            self.say(first)
        while not self.quit:
            try:
                draft, self.draft = self.draft, ""
                text = self.reader.read(draft)
            except KeyboardInterrupt:
                self.interrupts += 1
                if self.interrupts > 1:
                    return 130
                self.screen.line("(Ctrl-C again or Ctrl-D ends)")
                continue
            except EOFError:
                break
            self.interrupts = 0
            self.do(text)
        return 0

    def greet(self) -> None:
        """What is running, and how far an old conversation has come."""
        session = self.session
        name = os.path.basename(session.llm.model.path)
        self.screen.line(f"qllama: {printable(name)}, context {session.llm.n_ctx}. /help lists commands, Ctrl-D ends.")
        if session.history.messages:
            self.screen.line(
                f"conversation {printable(session.history.name)}, {len(session.history.messages)} messages"
            )
            self.tail()
            if session.unanswered:
                self.screen.line("(this message has no answer; /regen asks for one)")
            session.measure()

    def tail(self) -> None:
        """Show the last exchange."""
        messages = self.session.history.messages
        last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), len(messages))
        for message in messages[last:]:
            self.screen.write("> " * (message["role"] == "user") + (message["content"] or "") + "\n")

    def do(self, text: str) -> None:
        """A command or a message. An error is one line, and the conversation goes on."""
        from qllama.cli import slash

        try:
            if text.startswith("/"):
                slash.run(self, text)
            elif text.strip() or self.prefix:
                self.say(text)
        except KeyboardInterrupt:
            self.interrupts += 1
            self.screen.line()
        except QllamaError as error:
            self.screen.line(f"error: {printable(error)}")
        self._tell_warnings()

    def say(self, text: str) -> None:
        """Send a message and show the answer."""
        from qllama.session import ContextFull

        self.begin_file()
        message, self.prefix = self.prefix + text, ""
        try:
            try:
                pieces = self.session.ask(message)
            except ContextFull as full:
                if not self.may_forget(full):
                    self.draft = message
                    return
                pieces = self.session.ask(message)
        except QllamaError:
            self.draft = message  # nothing typed is lost
            raise
        self.answer(pieces)

    def answer(self, pieces: Iterator["Piece"]) -> None:
        """Show an answer; Ctrl-C ends it, and what there is of it stays."""
        stats = self.session.stats
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]
                show(pieces, self.screen, self.reasoning)
        except KeyboardInterrupt:
            self.interrupts += 1
            self.screen.line("\n(interrupted)")
            return
        stats = self.session.stats
        self.screen.line()
        if stats.context_full:
            self.screen.line(f"(the context of {self.session.llm.n_ctx} tokens is full: the answer ends here)")
        elif stats.n_dropped:
            self.screen.line(f"(the context was full: its oldest {stats.n_dropped} tokens were forgotten)")
        elif self.session.n_used > NEARLY_FULL * self.session.llm.n_ctx:
            self.screen.line(f"(context: {self.session.n_used} of {self.session.llm.n_ctx} tokens)")

    def may_forget(self, full: "ContextFull") -> bool:
        """Ask what is to be done about a full context; True if there is room now."""
        if full.n_forget == 0:
            raise InputError(f"{full}; a shorter message, /system or /clear would help")
        history = self.session.history
        first = int(history.system is not None)
        lost = history.prompt()[first : first + full.n_forget]
        begins = printable((lost[0]["content"] or "")[:50])
        self.screen.line(
            f"The context is full ({full.n_tokens} of {full.n_ctx} tokens). Leave out the oldest {len(lost)} messages,"
            f' from "{begins}" on? They stay in the file.'
        )
        if not self.reader.confirm("Leave out [y/N]? "):
            self.screen.line("(not sent; /clear begins anew, /undo takes messages back)")
            return False
        self.session.forget(full.n_forget)
        return True

    def begin_file(self) -> None:
        """Write the conversation to disk from now on; where that is impossible, say so and go on."""
        history = self.session.history
        if not self.keep or history.is_open:
            return
        try:
            history.open()
        except QllamaError as error:
            self.keep = False
            self.screen.line(f"warning: {printable(error)}")

    def status(self) -> str:
        """The line below the prompt."""
        session = self.session
        full = session.n_used / session.llm.n_ctx
        parts = [
            os.path.basename(session.llm.model.path),
            f"context {session.n_used}/{session.llm.n_ctx}" + (" NEARLY FULL" if full > NEARLY_FULL else ""),
        ]
        if session.stats.generation_seconds > 0:
            parts.append(f"{(session.stats.n_generated - 1) / session.stats.generation_seconds:.1f} t/s")
        if self.prefix:
            parts.append(f"{len(self.prefix)} characters read")
        return printable(" | ".join(parts))

    def _tell_warnings(self) -> None:
        warnings = self.session.history.warnings
        for warning in warnings:
            self.screen.line(f"warning: {printable(warning)}")
        warnings.clear()
