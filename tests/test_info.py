"""`qllama info`: the summary, --json, --tensors and --plan; whether a file runs is told by qllama.model."""

import json
import sys
import types

import gguf_maker as make
import pytest
from conftest import shared

from qllama.cli import main


@pytest.fixture
def missing(monkeypatch):
    """What the stand-in for qllama.model finds missing in the next file."""
    missing: list[str] = []
    model = types.ModuleType("qllama.model")
    model.missing_support = lambda gguf: missing
    model.describe_plan = lambda path: f"the plan of {path}"
    monkeypatch.setitem(sys.modules, "qllama.model", model)
    return missing


@pytest.fixture
def info(capsys, missing):
    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main(["info", *map(str, args)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def rows(out: str) -> dict[str, str]:
    """The first lines by label."""
    return {line[:16].strip(): line[16:] for line in reversed(out.splitlines()) if line[:16].strip()}


def test_summary(info):
    path = shared("models/books-5m-Q4_K_M.gguf")
    code, out, err = info(path)
    said = rows(out)
    assert (code, err) == (0, "")
    assert said["file"] == f"{path}: 3.39 MiB, GGUF version 3"
    assert said["architecture"] == "llama" and said["file type"] == "Q4_K_M"
    assert said["context"] == "512 tokens" and said["layers"] == "6" and said["embedding"] == "256"
    assert said["heads"] == "8" and said["key-value heads"] == "4" and said["feed forward"] == "768"
    assert said["vocabulary"].startswith("2,048 tokens, SentencePiece") and said["chat template"] == "no"
    assert said["parameters"].startswith("5,770,496 in ") and "4.87 bits" in said["parameters"]
    assert "Q6_K" in out and "F32" in out and said["runs"] == "yes"


def test_what_is_missing(info, missing):
    missing += ["tensor type Q6_K is not implemented", "no tokenizer\x1b"]
    code, out, _ = info(shared("models/stories260K-f32.gguf"))
    assert code == 0
    assert out.splitlines()[-2:] == [f"{'runs':<16}no: {missing[0]}", f"{'':<16}no tokenizer\\x1b"]


def test_vocabulary_without_a_model(info):
    code, out, _ = info(shared("vocabs/ggml-vocab-llama-bpe.gguf"))
    said = rows(out)
    assert code == 0 and said["vocabulary"] == "128,256 tokens, BPE (llama-bpe)" and said["tensors"] == "none"


def test_plan(info):
    assert info("x.gguf", "--plan") == (0, "the plan of x.gguf\n", "")


def test_tensors(info):
    code, out, _ = info(shared("oracles/models/llama-gqa.gguf"), "--tensors")
    table = [line.split() for line in out.split("\n\n")[1].splitlines()]
    assert code == 0 and table[0] == ["name", "shape", "type", "bytes", "offset"] and len(table) == 22
    assert ["blk.0.ffn_down.weight", "96", "x", "64", "F16", str(96 * 64 * 2), "82656"] in table


def test_json(info):
    code, out, _ = info(shared("oracles/models/llama-yarn.gguf"), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["runs"] is True and facts["missing"] == [] and facts["version"] == 3
    assert facts["metadata"]["llama.rope.scaling.factor"] == 4.0
    tokens = facts["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["type"], tokens["count"], tokens["first"][:3]) == ("str", 288, ["<unk>", "<s>", "</s>"])
    (embedding,) = (t for t in facts["tensors"] if t["name"] == "token_embd.weight")
    assert (embedding["shape"], embedding["type"]) == ([64, 288], "F16")
    assert facts["n_params"] == sum(t["shape"][0] * (t["shape"] + [1])[1] for t in facts["tensors"])
    assert facts["tensor_nbytes"] == sum(t["nbytes"] for t in facts["tensors"])
    assert sum(kind["count"] for kind in facts["tensor_types"].values()) == len(facts["tensors"])


def test_json_of_what_json_does_not_know(info, tmp_path):
    keys = {"a": float("nan"), "b": [float("inf"), 0.5], "c": [b"\xff", b"\x1b"], "d": ("str", b"\xff\x1b")}
    code, out, _ = info(make.write(tmp_path / "x.gguf", make.model(keys)), "--json")
    metadata = json.loads(out, parse_constant=pytest.fail)["metadata"]
    assert code == 0 and out.isascii() and "\x1b" not in out
    assert metadata["a"] == "nan" and metadata["b"]["first"] == ["inf", 0.5]
    assert metadata["c"]["first"] == ["\udcff", "\x1b"] and metadata["d"] == "\udcff\x1b"


def test_strange_keys_are_shown_as_they_are(info, tmp_path):
    """Strings are escaped, wrong types and unknown numbers do not matter, trailing bytes are a warning."""
    keys = {"general.architecture": "x\x1b[2J", "general.name": ("str", b"\xff\n"), "general.file_type": 999,
            "x\x1b[2J.block_count": "two", "x\x1b[2J.attention.head_count": [1, 2, 3, 4, 5, 6],
            "tokenizer.ggml.tokens": 3, "tokenizer.chat_template": "{{ x }}"}  # fmt: skip
    content = make.model(keys, {"a\x1b": (2, 3, 4), "b": ()}) + bytes(100)
    path = make.write(tmp_path / "x.gguf", content)
    code, out, err = info(path, "--tensors")
    said = rows(out)
    assert code == 0 and out.replace("\n", "").isprintable()
    assert said["architecture"] == "x\\x1b[2J" and said["name"] == "\\udcff\\n" and said["file type"] == "999"
    assert said["layers"] == "two" and said["heads"] == "1, 2, 3, 4, 5, ..." and said["chat template"] == "yes"
    assert said["vocabulary"] == "none" and "a\\x1b  2 x 3 x 4" in out
    assert err == f"qllama: warning: {path}: 100 bytes after the last tensor are ignored\n"


def test_split_model(info, tmp_path):
    for i in range(2):
        keys = {"split.no": ("u16", i), "split.count": ("u16", 2), "split.tensors.count": ("i32", 2)}
        make.write(tmp_path / f"m-{i + 1:05d}-of-00002.gguf", make.model(keys, {f"t{i}": (8,)}))
    code, out, _ = info(tmp_path / "m-00002-of-00002.gguf", "--tensors")
    assert code == 0 and "GGUF version 3, 2 parts" in out
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["part", "1", "2"]


def test_bad_files_are_one_line(info, tmp_path):
    path = make.write(tmp_path / "x.gguf", b"<html>")
    code, out, err = info(path)
    assert (code, out) == (2, "") and err.startswith(f"qllama: error: {path}: a web page") and err.count("\n") == 1
    assert info(tmp_path)[0] == 2 and info(tmp_path / "none")[0] == 2 and info()[0] == 2
