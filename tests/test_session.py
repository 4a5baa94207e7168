"""Turns with a model: asking, taking back, answering again, interrupts, a context that fills up."""

from itertools import islice
from pathlib import Path

import pytest
from conftest import shared

from qllama.chat.history import History
from qllama.errors import InputError
from qllama.llm import LLM
from qllama.session import ContextFull, Session

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def llm():
    made = LLM(shared("models/stories260K-f32.gguf"), n_ctx=128, n_threads=2, chat_template=TEMPLATE)
    yield made
    made.close()


@pytest.fixture
def session(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QLLAMA_DATA", str(tmp_path))
    history = History()
    history.open()
    yield Session(llm, history, {"temp": 0.0}, n_predict=12)
    history.close()


def said(session: Session, text: str) -> str:
    return "".join(piece.text for piece in session.ask(text))


def test_turns(session: Session, llm: LLM) -> None:
    first = said(session, "Once upon a time")
    assert [m["role"] for m in session.history.messages] == ["user", "assistant"]
    assert session.history.messages[1] == {"role": "assistant", "content": first, "finish": "length"}
    second = said(session, "Then")
    alone = "".join(llm.chat(session.history.prompt()[:3], n_predict=12, temp=0))
    assert second == alone
    assert session.stats.n_cached > session.stats.n_prompt // 2
    assert session.n_used == session.stats.n_prompt + 12
    assert "finish" not in session.history.prompt()[1]


def test_answering_again_and_taking_back(session: Session) -> None:
    with pytest.raises(InputError, match="nothing has been said yet"):
        session.undo()
    said(session, "One")
    first = said(session, "Tom")
    session.history.set("temp", 1.5)
    session.history.set("seed", 7)
    assert "".join(piece.text for piece in session.again()) == session.history.messages[-1]["content"] != first
    assert len(session.history.messages) == 4
    assert session.undo() == "Tom"
    assert session.history.messages[0]["content"] == "One" and len(session.history.messages) == 2
    assert session.n_used == session.measure() > 0


def test_what_there_is_of_an_answer_is_kept(session: Session) -> None:
    answer = session.ask("Once")
    begun = "".join(piece.text for piece in islice(answer, 3))
    answer.close()  # type: ignore[attr-defined]
    assert session.history.messages[-1] == {"role": "assistant", "content": begun, "finish": "interrupted"}
    path = session.history.path
    assert path is not None
    session.history.close()
    assert History.load(path).messages == session.history.messages


def test_turns_alternate_even_after_a_kill(session: Session) -> None:
    session.history.add({"role": "user", "content": "Once"})
    assert session.unanswered
    said(session, "Then")
    assert [m["role"] for m in session.history.messages] == ["user", "assistant", "user", "assistant"]
    session.history.add({"role": "user", "content": "And"})
    answer = "".join(piece.text for piece in session.again())
    assert session.history.messages[-1]["content"] == answer and not session.unanswered


def test_a_message_that_does_not_fit_is_not_added(session: Session) -> None:
    with pytest.raises(ContextFull, match=r"has \d+ tokens, the context of 128 leaves no room") as caught:
        session.ask("word " * 100)
    assert caught.value.n_forget == 0
    assert session.history.messages == []


def test_a_full_context_says_what_to_forget(session: Session) -> None:
    session.history.set_system("S")
    with pytest.raises(ContextFull) as caught:
        for i in range(100):
            said(session, f"This is message {i}")
    n = caught.value.n_forget
    n_messages = len(session.history.messages)
    assert n % 2 == 0 and 0 < n < n_messages
    lost = session.forget(n)
    assert lost[0]["content"] == "This is message 0" and len(lost) == n
    assert session.measure() <= 64
    assert said(session, "more")
    assert len(session.history.messages) == n_messages + 2
    assert session.history.prompt()[0]["content"] == "S"


def test_shifting_forgets_without_asking(session: Session) -> None:
    session.n_keep = 0
    for i in range(12):
        assert said(session, f"This is message {i}")
    assert len(session.history.messages) == 24 and session.history.forgotten > 0
    session.n_predict = 150  # also within an answer
    said(session, "Once")
    assert session.stats.n_dropped > 0 and session.stats.n_generated == 150
    assert session.n_used <= 128
    with pytest.raises(ContextFull):
        session.ask("word " * 100)
    session.n_predict = -1


def test_an_answer_that_fills_the_context_says_so(session: Session) -> None:
    session.n_predict = -1
    session.sampling["logit_bias"] = {2: float("-inf")}
    said(session, "Once")
    assert session.history.messages[-1]["finish"] == "context"
    before = list(session.history.messages)
    with pytest.raises(ContextFull):
        session.ask("more")
    assert session.history.messages == before
    with pytest.raises(ContextFull):
        session.history.add({"role": "user", "content": "word " * 100})
        session.history.add({"role": "assistant", "content": "a"})
        session.again()
    assert session.history.messages[-1]["content"] == "a"


def test_reasoning_is_told_apart_and_kept(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "answer", lambda *_, **__: iter(["<think>wh", "y</think>", "so"]))
    session = Session(llm)
    assert [(p.text, p.reasoning) for p in session.ask("a")] == [("wh", True), ("y", True), ("so", False)]
    assert session.history.messages[-1] == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "why",
        "finish": "",
    }


def test_a_conversation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every bit kept, what follows is the very same, and only the new message is computed."""
    monkeypatch.setenv("QLLAMA_DATA", str(tmp_path))

    def load() -> LLM:
        return LLM(shared("models/stories260K-f32.gguf"), n_threads=2, chat_template=TEMPLATE)

    whole, answers = load(), []
    session = Session(whole, History(), {"temp": 1.0, "seed": 4}, n_predict=30)
    for text in ("Once upon a time", "Then", "At last"):
        answers.append(said(session, text))
    whole.close()
    history = History()
    history.open()
    assert history.path is not None
    for text, answer in zip(("Once upon a time", "Then", "At last"), answers, strict=True):
        llm = load()
        session = Session(llm, history, {"temp": 1.0, "seed": 4}, n_predict=30, kv_exact=True)
        restored = session.resume()
        assert restored == len(llm.model.cached) and (restored > 0) == (text != "Once upon a time")
        assert said(session, text) == answer
        # The answer's own tokens may be others than those of its text; a few are computed again.
        assert restored - 31 <= session.stats.n_cached <= restored < session.stats.n_prompt
        llm.close()
        history.close()
        history = History.load(history.path)
    history.close()


def test_a_state_that_cannot_be_written_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qllama.kv_file.KVFile.save", full)
    assert said(session, "Once")
    assert "the model's state is not kept: No space left" in session.history.warnings[0]
