"""Tells a model's reasoning from its answer, in text that comes in pieces."""

from collections.abc import Iterator
from typing import NamedTuple

# What opens and what closes it; where a template has written the opening mark, the text begins with reasoning.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


class Piece(NamedTuple):
    """A piece of text; `reasoning` says of which part."""

    text: str
    reasoning: bool


class Splitter:
    """Takes the marks out of an answer and says what is reasoning. `prompt`: the text that the answer follows."""

    def __init__(self, prompt: str = "") -> None:
        tail = prompt.rstrip()
        self._end = next((end for start, end in MARKS if tail.endswith(start)), None)  # of the reasoning; None outside
        self._held = ""  # what may be the beginning of a mark
        self._fresh = self._end is not None  # just behind a mark: white space is dropped

    def push(self, text: str) -> Iterator[Piece]:
        """The pieces that `text` completes. What could be the beginning of a mark is held back."""
        self._held += text
        while True:
            marks = [self._end] if self._end is not None else [start for start, _ in MARKS]
            found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
            if not found:
                break
            at, mark = min(found)
            yield from self._piece(self._held[:at])
            self._held = self._held[at + len(mark) :]
            self._end = None if self._end is not None else dict(MARKS)[mark]
            self._fresh = True
        keep = max(n for mark in marks for n in range(len(mark)) if self._held.endswith(mark[:n]))
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        yield from self._piece(ready)

    def flush(self) -> Iterator[Piece]:
        """What is left when no more text comes."""
        yield from self._piece(self._held)
        self._held = ""

    def _piece(self, text: str) -> Iterator[Piece]:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            yield Piece(text, self._end is not None)
