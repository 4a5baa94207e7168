"""`qllama chat` as a person meets it: at a terminal, a dumb one, and in a pipe."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import shared
from terminal import Terminal, script
from test_run import QLLAMA, error_line

pytest.importorskip("fcntl")

Start = Callable[..., Terminal]
FOREVER = ("-c", "100000", "--logit-bias", "2-inf")  # an answer that does not end


def stories() -> str:
    return str(shared("models/stories260K-f32.gguf"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(data: Path):
    """Starts `qllama chat` in a terminal and waits for its prompt."""
    terminals = []

    def start(*args: str, wait: str = "^>", **env: str) -> Terminal:
        environment = {"QLLAMA_DATA": str(data), **env}
        terminal = Terminal([*QLLAMA, "chat", "--temp", "0", *args], environment)
        terminals.append(terminal)
        if wait:
            terminal.until(wait)
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


def story(start: Start, *args: str, **kwargs: str) -> Terminal:
    return start(stories(), "--chat-template", "plain", *args, **kwargs)


def messages(data: Path) -> list[tuple[str, str]]:
    """(role, content) of the only conversation, as the lines of its file say."""
    (path,) = (data / "chats").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["role"], line["content"]) for line in lines if "content" in line]


def pipe(data: Path, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    env = {**os.environ, "QLLAMA_DATA": str(data)}
    return subprocess.run([*QLLAMA, "chat", *args], input=stdin, capture_output=True, timeout=120, env=env)


# ---- at a terminal


def test_a_conversation(start: Start, data: Path) -> None:
    terminal = story(start, "-n", "20", "--temp", "0")
    terminal.enter("Once upon a time")
    terminal.until(r"stories260K-f32.gguf \| context \d+/512")
    terminal.until("^>", 2)  # typed earlier, it would be echoed within the answer
    terminal.enter("Then")
    terminal.until("^>", 3)
    terminal.type("\x04")
    assert terminal.ended() == 0
    roles, texts = zip(*messages(data), strict=True)
    assert roles == ("user", "assistant", "user", "assistant") and texts[0] == "Once upon a time" and texts[2] == "Then"
    assert all(text.strip().split("\n")[0][:40] in terminal.screen for text in texts)


def test_the_model_that_comes_along(start: Start) -> None:
    terminal = start("-n", "5", "-p", "The old man")
    assert "default.gguf" in terminal.screen
    terminal.enter("/exit")
    assert terminal.ended() == 0


def test_messages_of_several_lines(start: Start, data: Path, tmp_path: Path) -> None:
    editor = script(tmp_path / "editor", 'printf "edited\\nin an editor" > "$1"\n')
    terminal = story(start, "-n", "2", EDITOR=str(editor), VISUAL=str(editor))
    terminal.enter('"""one')
    terminal.until(r"^\.\.\.")
    terminal.enter('two"""')
    terminal.until("^>", 2)
    terminal.type("three\x1b\rfour\r")
    terminal.until("^>", 3)
    terminal.type("\x1b[200~five\nsix\n/exit\x1b[201~")
    terminal.until("/exit")
    terminal.type("\r")
    terminal.until("^>", 4)
    terminal.type("\x07")
    terminal.until("^> edited")
    terminal.type("\r")
    terminal.until("^>", 5)
    said = [text for role, text in messages(data) if role == "user"]
    assert said == ["one\ntwo", "three\nfour", "five\nsix\n/exit", "edited\nin an editor"]


def test_an_interrupt_keeps_the_answer_and_a_second_ends(start: Start, data: Path) -> None:
    terminal = story(start, *FOREVER)
    terminal.enter("Once upon a time")
    terminal.until("Lily")
    terminal.type("\x03")
    terminal.until(r"\(interrupted\)")
    answer = messages(data)[-1]
    assert answer[0] == "assistant" and "Lily" in answer[1]
    terminal.until("^>", 2)
    terminal.enter("/set n_predict 5")
    terminal.enter("More")
    terminal.until("^>", 4)
    assert len(messages(data)) == 4
    terminal.type("\x03")
    terminal.until("Ctrl-C again or Ctrl-D ends")
    terminal.type("\x03")
    assert terminal.ended() == 130
    assert b"Traceback" not in terminal.raw


def test_commands(start: Start, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes")
    terminal = story(start, "-n", "8")

    def do(command: str, expected: str) -> None:
        terminal.enter(command)
        terminal.until(expected)

    do("/help undo", "take back the last message and its answer")
    do("/nonsense", "error: /nonsense is no command")
    do("/undo", "error: nothing has been said yet")
    do("/set temp 9x", "error: /set temp: found '9x', needed a value of type float")
    do("/set top_p 2", "error: --top-p: found 2.0")
    do("/set what 1", "error: /set: found 'what'")
    do("/system Be kind.", r"context \d+/512")
    do("/system", "^Be kind.")
    do(f"/read {tmp_path}/notes.txt", r"\(notes.txt: goes before the next message, \d+ tokens\)")
    do("/read /nonexistent", "error: /nonexistent: cannot read it")
    terminal.enter("Hello")
    terminal.until(r"t/s")
    do("/stats", "ended by length")
    do("/tokens ab", r"\d tokens: ")
    do("/show template context", r"of 512 tokens used")
    do("/regen", "^>")
    do("/undo", r"\(taken back: --- File: notes.txt")
    do("/sessions", r"^\* 20\d\d-")
    do("/save copy", "a copy is kept as copy")
    do("/fork other", r"\(now in other\)")
    do("/clear", r"\(a new conversation\)")
    do("/load copy", "conversation copy, 1 messages")
    terminal.enter("/bye")
    assert terminal.ended() == 0
    assert {path.stem for path in (data / "chats").glob("*.jsonl")} >= {"copy", "other"}
    first = min((data / "chats").glob("20*.jsonl"))
    said = [json.loads(line) for line in first.read_text().splitlines()]
    assert "--- File: notes.txt ---\nsome notes\n\nHello" in [line.get("content") for line in said]


def test_edit_puts_the_message_back_into_the_line(start: Start, data: Path) -> None:
    terminal = story(start, "-n", "3")
    terminal.enter("Tom")
    terminal.until("^>", 2)
    terminal.enter("/edit")
    terminal.until("^> Tom", 2)
    terminal.type(" and Tim\r")
    terminal.until("^> Tom and Tim")
    terminal.until("^>", 4)
    assert [text for role, text in messages(data) if role == "user"] == ["Tom", "Tom and Tim"]


def test_history_and_completion(start: Start) -> None:
    first = story(start, "-n", "2")
    first.enter("Remember me")
    first.until("^>", 2)
    first.type("\x04")
    first.ended()
    second = story(start, "-n", "2")
    second.type("\x1b[A")
    second.until("^> Remember me")
    second.type("\x15/sess")
    second.until("list the conversations")
    second.type("\t")
    second.until("^> /sessions")


def test_a_conversation_survives_kill_9(start: Start, data: Path) -> None:
    terminal = story(start, *FOREVER)
    terminal.enter("Once upon a time")
    terminal.until("Lily")
    (path,) = (data / "chats").glob("*.jsonl")
    while '"piece": ' not in path.read_text() or "Lily" not in path.read_text():
        time.sleep(0.01)
    terminal.child.kill(signal.SIGKILL)
    terminal.ended()
    again = start("--resume", "-n", "3", wait="^>$")  # the model is that of the conversation
    assert "stories260K" in again.screen and "2 messages" in again.screen
    assert "> Once upon a time" in again.screen and "Lily" in again.screen
    again.enter("More")
    again.until("^>", 3)
    again.enter("/exit")
    assert again.ended() == 0
    assert [role for role, _ in messages(data)] == ["user", "user", "assistant"]
    third = start("--resume", wait="4 messages")
    third.close()


def test_a_resumed_conversation_computes_only_what_is_new(start: Start, data: Path) -> None:
    terminal = story(start, "-n", "40", "--kv-exact")
    terminal.enter("Once upon a time, there was a little girl")
    terminal.until("^>", 2)
    terminal.child.kill(signal.SIGKILL)
    terminal.ended()
    (index,) = (data / "chats").glob("*.kv.json")
    n_saved = len(json.loads(index.read_text())["tokens"])
    again = start("--resume", "--kv-exact", "-n", "3", wait="^>$")
    again.enter("More")
    again.until("^>$")
    again.enter("/stats")
    (reused,) = re.findall(r"\((\d+) of them known\)", again.until("of them known"))
    assert n_saved - 3 <= int(reused) <= n_saved and n_saved > 40


def test_a_terminal_that_changes_its_size(start: Start) -> None:
    terminal = story(start, "-n", "4")
    terminal.type("Once upon")
    terminal.until("^> Once upon")
    terminal.resize(50, 20)
    terminal.type(" a time\r")
    terminal.until("^> Once upon a time")
    terminal.until("^>$")
    terminal.enter("/exit")
    assert terminal.ended() == 0 and b"Traceback" not in terminal.raw


def test_a_dumb_terminal(start: Start, data: Path) -> None:
    terminal = story(start, "-n", "4", TERM="dumb")
    terminal.enter('"""Once')
    terminal.until(r"^\.\.\.")
    terminal.enter('upon"""')
    terminal.until("^>$")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert b"\x1b" not in terminal.raw
    assert messages(data)[0] == ("user", "Once\nupon")


def test_a_context_that_fills_up_is_asked_about(start: Start, data: Path) -> None:
    terminal = story(start, "-c", "80", "-n", "16")
    for i in range(4):
        terminal.enter(f"This is message {i}")
        terminal.until(f"message {i}")
        terminal.until(r"^>$|\[y/N\]")
        if i == 2:
            assert "(the context of 80 tokens is full: the answer ends here)" in terminal.screen
            terminal.until("context 80/80 NEARLY FULL")
    terminal.until(r"Leave out the oldest \d messages, from \"This is message 0\" on\?")
    terminal.type("n\r")
    terminal.until("not sent")
    terminal.until("^> This is message 3", 2)  # what was typed is not lost
    terminal.type("\r")
    terminal.until(r"\[y/N\]", 2)
    terminal.type("y\r")
    terminal.until("^>$")
    assert len(messages(data)) == 8


def test_no_room_on_disk_is_told_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    terminal = story(start, "-n", "2", QLLAMA_DATA=str(tmp_path / "file"))
    terminal.enter("a")
    terminal.until("warning: .* cannot keep the conversation")
    terminal.until("^>", 2)
    terminal.enter("b")
    terminal.until("^>", 3)
    assert terminal.screen.count("warning") == 1


def test_a_model_cannot_write_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from qllama.chat.reasoning import Piece
    from qllama.cli.repl import Screen, show

    pieces = [Piece("why\x1b[2J", True), Piece("a\nb\tc\x07\x9b", False)]
    show(iter(pieces), Screen(sys.stdout, styled=True), reasoning=True)
    assert capsys.readouterr().out == "\x1b[2mwhy\\x1b[2J\x1b[0m\n\na\nb\tc\\x07\\x9b"
    show(iter(pieces), Screen(sys.stdout, styled=False), reasoning=False)
    assert capsys.readouterr().out == "a\nb\tc\\x07\\x9b"


# ---- in a pipe


def test_a_pipe_gives_one_answer_and_nothing_else(data: Path) -> None:
    beginning = b"Once upon a time, there was a little girl named\n"
    plain = ("--chat-template", "{{ messages[0].content }}", "--temp", "0", "-n", "6")
    result = pipe(data, stories(), *plain, stdin=beginning)
    assert result.returncode == 0 and result.stdout == b"Lily. She loved to\n"
    assert b"ended by length" in result.stderr and b"\x1b" not in result.stderr
    assert pipe(data, stories(), *plain, "-q", stdin=beginning).stderr == b""
    assert pipe(data, stories(), *plain, "-p", beginning.decode().strip()).stdout == result.stdout
    assert not (data / "chats").exists()


def test_system_messages(data: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Once upon a time, there was a little girl")
    template = "{{ messages[0].content }} {{ messages[1].content }}"
    common = (stories(), "--chat-template", template, "--temp", "0", "-n", "6", "-st", "-p", "named")
    for system in (("-sysf", str(tmp_path / "system.txt")), ("-sys", "Once upon a time, there was a little girl")):
        assert pipe(data, *common, *system).stdout == b"Lily. She loved to\n"


def test_template_files_and_what_templates_are_given(data: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ begin }} {{ messages[0].content }}")
    common = (stories(), "--temp", "0", "-n", "6", "-q", "--chat-template-file", str(tmp_path / "t.jinja"))
    begin = ("--chat-template-kwargs", json.dumps({"begin": "Once upon a time, there was a little girl"}))
    assert pipe(data, *common, *begin, "-p", "named").stdout == b"Lily. She loved to\n"
    result = subprocess.run([*QLLAMA, "run", *common, *begin, "-p", "named"], capture_output=True, timeout=120)
    assert result.stdout == b"Lily. She loved to\n"
    (tmp_path / "plain").write_text("plain")  # the text, not the template of this name
    text = pipe(data, stories(), "-q", "-n", "1", "-p", "x", "--chat-template-file", str(tmp_path / "plain"))
    assert text.returncode == 0


def test_a_pipe_goes_on_with_a_conversation(data: Path) -> None:
    common = (stories(), "--chat-template", "plain", "--temp", "0", "-n", "4", "-q", "--session", "talk")
    assert pipe(data, *common, stdin=b"Once").returncode == 0
    assert pipe(data, "-q", "-n", "4", "--session", "talk", "--chat-template", "plain", stdin=b"More").returncode == 0
    assert [role for role, _ in messages(data)] == ["user", "assistant"] * 2


def test_interactive_without_a_terminal(data: Path) -> None:
    result = pipe(data, "-i", "-n", "2", stdin=b"a\n/undo\n/nope\n")
    assert result.returncode == 0 and b"\x1b" not in result.stdout
    assert b"(taken back: a)" in result.stdout and b"error: /nope is no command" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--resume",), "there is no conversation yet"),
        (("--resume", "--session", "x"), "--resume and --session"),
        (("--session", "a/b"), "cannot be the name"),
        (("-sys", "a", "-sysf", "b"), "-sys and -sysf"),
        (("-sysf", "/nonexistent"), "/nonexistent: cannot read the system message"),
        (("-n", "-7"), "-n -7"),
        (("--chat-template", "nope"), "--chat-template"),
        (("--chat-template", "{{ raise_exception('no') }}"), "chat template: TemplateError: no"),
        (("--chat-template", "plain", "--chat-template-file", "x"), "cannot be used together"),
        (("--chat-template-file", "/nonexistent"), "/nonexistent: cannot read the chat template"),
        (("--chat-template-kwargs", "[]"), "--chat-template-kwargs: found '[]', needed an object"),
        (("--chat-template-kwargs", "{"), "--chat-template-kwargs: found '{', needed an object"),
        (("--chat-template-kwargs", '{"tools": 1}'), "tools is given by the conversation"),
        (("/nonexistent.gguf",), "/nonexistent.gguf"),
        (("-c", "8"), "leaves no room for an answer"),
    ],
)
def test_bad_usage(data: Path, args: tuple[str, ...], words: str) -> None:
    result = pipe(data, "-q", *args, stdin=b"word " * 20)
    assert words in error_line(result)


def test_a_file_without_a_template_says_what_to_do(data: Path) -> None:
    assert "choose one with --chat-template" in error_line(pipe(data, stories(), stdin=b"a"))
