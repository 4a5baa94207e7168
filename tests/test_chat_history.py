"""Conversations on disk: every line counts, whatever ended the process."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qllama.chat import history as module
from qllama.chat.history import History, folder, path_of, saved
from qllama.errors import FileError, InputError, QllamaError


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLLAMA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def talk() -> History:
    history = History({"model": "m.gguf"})
    history.open()
    history.add({"role": "user", "content": "Hello \u00fc\udcff"})
    history.add({"role": "assistant", "content": "Hi", "reasoning_content": "why"})
    history.add({"role": "user", "content": "More"})
    return history


def again(history: History) -> History:
    assert history.path is not None
    history.close()
    return History.load(history.path)


def test_everything_comes_back() -> None:
    first = talk()
    first.set("temp", 0.5)
    first.set("top_k", 3)
    first.set("top_k", None)
    first.forget(1)
    second = again(first)
    assert second.messages == first.messages and second.settings == {"temp": 0.5} and second.forgotten == 1
    assert second.about["model"] == "m.gguf" and second.warnings == []
    second.add({"role": "assistant", "content": "end"})
    assert [m["content"] for m in again(second).messages] == ["Hello \u00fc\udcff", "Hi", "More", "end"]


def test_the_file_is_plain_lines_and_private() -> None:
    history = talk()
    assert history.path is not None and history.path.parent == folder()
    lines = [json.loads(line) for line in history.path.read_text().splitlines()]
    assert lines[0]["qllama"] == 1 and lines[0]["model"] == "m.gguf"
    assert lines[1:] == history.messages
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    history.close()


def test_undo_and_system_messages() -> None:
    history = talk()
    history.set_system("Be brief.")
    assert history.system == "Be brief." and len(history.messages) == 4
    history.set_system("Be long.")
    history.keep(3)
    second = again(history)
    assert [m["content"] for m in second.messages] == ["Be long.", "Hello \u00fc\udcff", "Hi"]
    second.set_system(None)
    assert again(second).system is None


def test_forgotten_messages_stay_in_the_file_but_not_in_the_prompt() -> None:
    history = talk()
    history.set_system("S")
    history.forget(2)
    assert [m["content"] for m in history.prompt()] == ["S", "More"]
    second = again(history)
    assert len(second.messages) == 4
    second.keep(2)
    second.add({"role": "user", "content": "New"})
    assert [m["content"] for m in again(second).prompt()] == ["S", "New"]


def test_an_answer_that_was_being_written_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    history = talk()
    for piece in ("one ", "two ", "three"):
        history.add_piece(piece)
    killed = again(history)
    assert killed.messages[-1] == {"role": "assistant", "content": "one two three", "finish": "killed"}
    killed.add({"role": "user", "content": "go on"})
    assert [m["content"] for m in again(killed).messages[-2:]] == ["one two three", "go on"]


def test_a_finished_answer_takes_the_place_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    history = talk()
    history.add_piece("one ")
    history.add({"role": "assistant", "content": "one two"})
    assert [m["content"] for m in again(history).messages[-2:]] == ["More", "one two"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=0, max_value=400))
def test_a_file_cut_off_anywhere_gives_what_was_complete(cut: int) -> None:
    history = talk()
    history.close()
    assert history.path is not None
    content = history.path.read_bytes()
    content = content[: max(content.index(b"\n") + 1, len(content) - cut)]
    history.path.write_bytes(content)
    whole = History.load(history.path)
    n_lines = content.count(b"\n") - 1
    torn = not content.endswith(b"\n")
    complete = torn and content.endswith(b"}")
    assert whole.messages == history.messages[: n_lines + complete]
    assert len(whole.warnings) == (torn and not complete)
    whole.add({"role": "user", "content": "x"})
    assert again(whole).messages[-1]["content"] == "x"
    os.remove(history.path)


def test_damaged_lines_are_told_and_left_out() -> None:
    history = talk()
    history.close()
    assert history.path is not None
    with history.path.open("ab") as file:
        file.write(b'\xff\n{"role": 1}\n[1]\n{"keep": "x"}\n{"role": "user", "content": "last"}\n{"role": "us')
    damaged = History.load(history.path)
    assert damaged.messages[-1]["content"] == "last"
    assert [w.split(": ")[1] for w in damaged.warnings] == [
        *(f"line {n} cannot be understood and is left out" for n in (5, 6, 7, 8)),
        "line 10 is incomplete and is left out",
    ]
    damaged.close()


def test_what_is_no_conversation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"role": "user", "content": "a"}\n')
    for path, words in (
        (tmp_path / "x.jsonl", "is not a conversation of qllama"),
        (tmp_path / "none", "cannot read the conversation"),
        (tmp_path, "cannot read the conversation"),
    ):
        with pytest.raises(FileError, match=words):
            History.load(path)


def test_one_process_at_a_time() -> None:
    history = talk()
    assert history.path is not None
    with pytest.raises(FileError, match="open in another qllama"):
        History.load(history.path)
    history.close()
    History.load(history.path).close()


def test_forks_go_their_own_way() -> None:
    history = talk()
    fork = history.fork(path_of("other"))
    fork.add({"role": "assistant", "content": "fork"})
    assert len(history.messages) == 3 and again(fork).messages[-1]["content"] == "fork"
    with pytest.raises(InputError, match="there is a conversation named other"):
        history.fork(path_of("other"))
    assert {path.stem for path in saved()} == {history.name, "other"}
    history.close()


def test_names() -> None:
    assert path_of("my talk").name == "my talk.jsonl"
    for name in ("", ".x", "a/b", "..", "a\n"):
        with pytest.raises(InputError, match="cannot be the name"):
            path_of(name)
    assert saved() == [] and History().name == "unsaved"


def test_nowhere_to_write_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLLAMA_DATA", str(tmp_path / "file"))
    with pytest.raises(QllamaError, match="cannot keep the conversation"):
        History().open()


def test_a_full_disk_is_told_and_the_conversation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    history = talk()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    history.add({"role": "assistant", "content": "a"})
    history.add({"role": "user", "content": "b"})
    assert len(history.messages) == 5
    assert len(history.warnings) == 1 and "no longer saved: No space left" in history.warnings[0]


def test_where_conversations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QLLAMA_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert folder() == Path("/x/qllama/chats")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setattr("sys.platform", "linux")
    assert folder() == Path("/h/.local/share/qllama/chats")
