"""Telling reasoning from an answer, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllama.chat.reasoning import Splitter


def parts(pieces: list[str], prompt: str = "") -> tuple[str, str]:
    """(reasoning, answer)"""
    splitter = Splitter(prompt)
    out = [piece for text in pieces for piece in splitter.push(text)] + list(splitter.flush())
    return tuple("".join(p.text for p in out if p.reasoning is kind) for kind in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("answer", "", ("", "answer")),
        ("  answer\n", "", ("", "  answer\n")),
        ("<think>\nwhy\n</think>\n\nanswer", "", ("why\n", "answer")),
        ("[THINK]why[/THINK]answer", "", ("why", "answer")),
        ("\nwhy</think>answer", "<|assistant|><think>\n", ("why", "answer")),
        ("why", "<think>", ("why", "")),
        ("a < b <thin", "", ("", "a < b <thin")),
        ("<think>a</thi", "", ("a</thi", "")),
        ("<think></think>x<think>y</think>z", "", ("y", "xz")),
        ("</think>x", "", ("", "</think>x")),
    ],
)
def test_parts(text: str, prompt: str, expected: tuple[str, str]) -> None:
    assert parts([text], prompt) == expected
    assert parts(list(text), prompt) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "<", "/", "[THINK]", "think>", "[/THINK]"])))
def test_pieces_do_not_matter(pieces: list[str]) -> None:
    assert parts(pieces) == parts(["".join(pieces)]) == parts(list("".join(pieces)))
