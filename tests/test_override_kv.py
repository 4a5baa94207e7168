"""Metadata that a user puts in the place of the file's: from Python and by --override-kv."""

from pathlib import Path

import pytest
from conftest import shared
from gguf_maker import LLAMA, model, write

from qllama.cli import main
from qllama.cli.options import overrides
from qllama.errors import FileError, InputError
from qllama.gguf import open_gguf
from qllama.tokenizer import load_tokenizer


def test_values_stand_for_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", model(LLAMA))
    with open_gguf(path, {"llama.block_count": 7, "new": "x", "rate": 0.5, "on": False}) as gguf:
        assert gguf.metadata.integer("llama.block_count") == 7
        assert gguf.metadata.text("new") == "x"
        assert gguf.metadata.number("rate") == 0.5
        assert gguf.metadata.boolean("on") is False
        assert gguf.metadata.text("general.architecture") == "llama"
    with pytest.raises(InputError, match=r"override of a: found \[1\], needed an int"):
        open_gguf(path, {"a": [1]})  # type: ignore[dict-item]


def test_an_unknown_pre_tokenizer_is_refused_by_name_and_another_chosen() -> None:
    """The vocabulary is Llama 3's; under the name of the rule of its family it gives Llama 3's ids."""
    path = shared("vocabs/ggml-vocab-llama-bpe.gguf")
    key, text = "tokenizer.ggml.pre", "I'VE 12345"
    with (
        pytest.raises(FileError, match=r"pre=my-own: is no pre-tokenizer .* --override-kv tokenizer.ggml.pre=str:NAME"),
        open_gguf(path, {key: "my-own"}) as gguf,
    ):
        load_tokenizer(gguf.metadata)
    with open_gguf(path, {key: "llama3"}) as gguf:
        same = load_tokenizer(gguf.metadata).encode(text)
    with open_gguf(path, {key: "gpt-2"}) as gguf:
        other = load_tokenizer(gguf.metadata).encode(text)
    assert load_tokenizer(path).encode(text) == same != other


def test_the_flag() -> None:
    texts = ["a.b=int:-3", "c=float:1e-5", "d=bool:true", "e=bool:false", "f=str:x=y:z", "g=str:"]
    assert overrides(texts) == {"a.b": -3, "c": 1e-5, "d": True, "e": False, "f": "x=y:z", "g": ""}
    for wrong in ("a", "a=", "a=int", "a=int:x", "a=bool:1", "a=list:1", "=int:1", "a=1"):
        with pytest.raises(InputError, match="needed KEY=TYPE:VALUE"):
            overrides([wrong])


def test_commands_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(shared("vocabs/ggml-vocab-llama-spm.gguf"))
    for value, ids in (("true", "[1, 15043]\n"), ("false", "[15043]\n")):
        with pytest.raises(SystemExit):
            main(["tokenize", path, "Hello", "--ids", "--override-kv", f"tokenizer.ggml.add_bos_token=bool:{value}"])
        assert capsys.readouterr().out == ids
