"""`qllama tokenize`: what it prints, with ids that llama.cpp recorded."""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from conftest import shared
from gguf_maker import LLAMA, model, write

from qllama.cli import main


@pytest.fixture
def run(capfdbinary):
    """Runs `qllama tokenize`; the exit code, what it prints, and what it says on stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["tokenize", *map(str, args)])
        out, err = capfdbinary.readouterr()
        return exit.value.code, out.decode(), err.decode()

    return run


def phi3() -> Path:
    return shared("vocabs/ggml-vocab-phi-3.gguf")


def test_ids(run) -> None:
    cases = json.loads(shared("oracles/tokens/tokens-phi-3.json").read_text(encoding="utf-8"))["cases"]
    case = next(case for case in cases if "<|assistant|>" in case.get("text", ""))
    for flags, options in (("11", []), ("01", ["--no-bos"]), ("10", ["--no-parse-special"])):
        assert run(phi3(), case["text"], "--ids", *options) == (0, f"{case['ids_' + flags]}\n", "")


def test_a_line_per_token(run) -> None:
    lines = [
        "     1 -> '<s>'",
        " 15043 -> ' Hello'",
        " 29871 -> ' '",
        " 30325 -> '日'",
        " 32007 -> '<|end|>'",
    ]
    assert run(phi3(), "Hello 日<|end|>") == (0, "\n".join(lines) + "\n", "")


def test_what_is_no_text_is_escaped(run) -> None:
    code, out, _ = run(phi3(), "\n\x1b\udcff", "--no-bos")
    assert code == 0
    assert out.splitlines() == [" 29871 -> ' '", r"    13 -> '\n'", r"    30 -> '\x1b'", r"   258 -> '\xff'"]


def test_standard_input_is_bytes(run, monkeypatch) -> None:
    cases = json.loads(shared("oracles/tokens/tokens-phi-3.json").read_text(encoding="utf-8"))["cases"]
    case = next(case for case in cases if "b64" in case)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(base64.b64decode(case["b64"]))))
    assert run(phi3(), "-", "--ids") == (0, f"{case['ids_11']}\n", "")


def test_no_tokens(run) -> None:
    assert run(phi3(), "", "--no-bos") == (0, "", "")
    assert run(phi3(), "", "--no-bos", "--ids") == (0, "[]\n", "")


def test_closed_standard_input(run, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run(phi3(), "-") == (2, "", "qllama: error: standard input is closed\n")


def test_warnings_go_to_stderr(run, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]])
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_token_scores([0.0] * 259)
    writer.add_eos_token_id(259)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    warning = "qllama: warning: tokenizer.ggml.eos_token_id=259 is ignored: the vocabulary has 259 tokens\n"
    assert run(path, "a", "--ids") == (0, "[1, 229, 153, 132, 100]\n", warning)


def test_no_such_tokenizer(run, tmp_path) -> None:
    path = write(tmp_path / "bert.gguf", model({**LLAMA, "tokenizer.ggml.model": "bert"}))
    code, out, err = run(path, "a")
    assert (code, out) == (2, "")
    assert err.endswith("tokenizer.ggml.model=bert: is not implemented (implemented: llama, gpt2)\n")
