"""The command line as a person meets it: output, errors in one line, exit codes, start-up imports."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import shared
from test_llm import PUBLISHED

QLLAMA = [sys.executable, "-c", "from qllama.cli import main; main()"]


def qllama(*args, stdin: bytes = b"", **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([*QLLAMA, *map(str, args)], input=stdin, capture_output=True, timeout=120, **kwargs)


def stories():
    return shared("models/stories260K-f32.gguf")


def error_line(result: subprocess.CompletedProcess, code: int = 2) -> str:
    assert result.returncode == code, result.stderr.decode()
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("qllama: error: "), lines
    return lines[0]


def test_only_the_text_is_on_stdout() -> None:
    result = qllama("run", stories(), "-p", "", "-n", 200, "--temp", 0)
    assert result.stdout.decode() == PUBLISHED + "\n"
    (line,) = result.stderr.decode().splitlines()[-1:]
    for part in (
        "prompt 1 tokens",
        "generated 200 tokens",
        "t/s",
        "first token after",
        "ended by length",
        "seed",
    ):
        assert part in line


def test_echo_quiet_and_prompts_from_files_and_stdin(tmp_path) -> None:
    prompt = b"Once upon a time"
    (tmp_path / "prompt.txt").write_bytes(prompt)
    common = ("run", "-m", stories(), "-n", 8, "--temp", 0, "-q", "--echo")
    for result in (
        qllama(*common, "-p", prompt.decode()),
        qllama(*common, "-f", tmp_path / "prompt.txt"),
        qllama(*common, stdin=prompt),
    ):
        text = result.stdout.decode()
        assert result.stderr == b"" and text.endswith("\n")
        assert len(text) > len(prompt) + 20 and PUBLISHED.startswith(text[:-1])


def test_no_model_named_runs_the_embedded_one() -> None:
    result = qllama("run", "-p", "The old", "-n", 5, "--seed", 1)
    assert result.returncode == 0 and len(result.stdout) > 5
    assert qllama("run", "-p", "The old", "-n", 5, "--seed", 1).stdout == result.stdout


def test_a_prompt_need_not_be_utf8() -> None:
    result = qllama("run", stories(), "-n", 2, "-q", "--echo", stdin=b"\xff\xfe x")
    assert result.returncode == 0 and result.stdout.startswith(b"\xff\xfe x")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "/nonexistent.gguf", "-p", "x"), "/nonexistent.gguf"),
        (("run", "-p", "x", "-t", "0"), "threads: 0"),
        (("run", "-p", "x", "-t", "many"), "-t"),
        (("run", "-p", "x", "-n", "-3"), "-n"),
        (("run", "-p", "x", "-c", "-1"), "context: -1"),
        (("run", "-p", "x", "-b", "0"), "batch size: 0"),
        (("run", "-p", "x", "-ctk", "q3"), "f16, f32"),
        (("run", "-p", "x", "--temp", "nan"), "--temp"),
        (("run", "-p", "x", "-f", "y"), "-p and -f"),
        (("run", "-f", "/nonexistent.txt"), "/nonexistent.txt"),
        (("run", "a.gguf", "-m", "b.gguf", "-p", "x"), "two models"),
        (("run", "--no-such-flag"), "--no-such-flag"),
        (("no-such-command",), "no-such-command"),
        (("run", "-p", "word " * 700), "the context of 512"),
        (("run", "/", "-p", "x"), "directory"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(args, words) -> None:
    assert words in error_line(qllama(*args))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"GGUF", "needs"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"lmggxxxxxxxxxxxxxxxxxxxxxxx", "pre-GGUF"),
    ],
)
def test_foreign_files_are_named(tmp_path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    line = error_line(qllama("run", path, "-p", "x"))
    assert words in line and str(path) in line


def test_a_truncated_file_says_what_is_missing(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(stories().read_bytes()[:-100])
    assert "download incomplete?" in error_line(qllama("run", path, "-p", "x"))


def test_an_isa_that_this_cpu_lacks_is_refused() -> None:
    result = qllama("run", "-p", "x", "-n", 1, env={**os.environ, "QLLAMA_ISA": "neon"})
    assert "QLLAMA_ISA=neon" in error_line(result)


def test_help_loads_neither_numpy_nor_numba() -> None:
    script = (
        "import sys; from qllama.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "names = {'numpy', 'numba', 'llvmlite', 'sentencepiece', 'jinja2', 'prompt_toolkit'}\n"
        "heavy = names & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    for args in (
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["info", "--help"],
        ["tokenize", "--help"],
        ["chat", "--help"],
    ):
        result = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True)
        assert result.returncode == 0, (args, result.stderr)
        assert result.stdout


def test_a_run_with_cached_kernels_does_not_load_numba() -> None:
    script = (
        "import sys; from qllama.llm import LLM\n"
        "llm = LLM(sys.argv[1]); print(''.join(llm.generate('', n_predict=4, temp=0)))\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(stories())], capture_output=True).returncode == 0


def test_ctrl_c_keeps_the_text_and_exits_with_130() -> None:
    command = [*QLLAMA, "run", stories(), "-p", "", "-n", "-1", "--ignore-eos", "-c", "1000000", "--temp", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    head = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest.endswith(b"\n") and b"Traceback" not in errors
    assert (head + rest).decode().startswith("Once upon a time")


def test_a_broken_pipe_is_silent() -> None:
    command = [*QLLAMA, "run", str(stories()), "-p", "", "-n", "400", "--ignore-eos", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 141
    assert errors == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_in_a_run_or_in_one_line(closed: str) -> None:
    command = f"exec {shlex.join([*QLLAMA, 'run', str(stories()), '-p', 'a', '-n', '2'])} {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert result.returncode == (2 if ">&-" in closed.replace("2>&-", "") else 0)
    assert b"Traceback" not in result.stderr
    if closed == ">&-":
        assert error_line(result).endswith("nowhere to write the text")


def test_an_error_of_our_own_is_one_line_too(monkeypatch, capsys) -> None:
    from qllama import cli

    monkeypatch.setattr(cli.cli, "main", lambda **_: 1 // 0)
    assert cli._main([]) == 1
    assert "internal error, please report it: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("QLLAMA_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli._main([])


def test_text_streams_as_it_comes() -> None:
    command = [*QLLAMA, "run", str(stories()), "-p", "", "-n", "-1", "--ignore-eos", "-c", "1000000", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    time.sleep(0.1)
    assert process.poll() is None  # it is still writing
    process.kill()
    process.stdout.close()
    process.wait()


def test_warmup_lists_kernels() -> None:
    result = qllama("warmup", stories(), "-v")
    titles, *rows = (line.split() for line in result.stdout.decode().splitlines())
    assert result.returncode == 0 and titles == ["kernel", "bytes", "seconds"]
    assert {"f32.matmul", "f32.pack", "attention.f16_f16", "tape.work"} <= {name for name, _, _ in rows}
    assert all(int(nbytes) > 0 and float(seconds) >= 0 for _, nbytes, seconds in rows)
    total = f"{len(rows)} kernels, {sum(int(nbytes) for _, nbytes, _ in rows)} bytes, ready in "
    assert result.stderr.decode().splitlines()[-1].startswith(total)


def test_warmup_takes_one_model() -> None:
    result = qllama("warmup", stories(), "-m", stories())
    assert result.returncode == 2 and b"two models are given" in result.stderr
