"""The checked getters of qllama.metadata."""

import gguf_maker as make
import pytest
from gguf_maker import array, kv

from qllama.errors import FileError
from qllama.gguf import open_gguf


@pytest.fixture
def metadata(tmp_path):
    kvs = [
        kv("i", "i8", -5), kv("u", "u64", 2**63), kv("f", "f32", 0.5), kv("nan", "f64", float("nan")),
        kv("s", "str", "text\x1b" * 30), kv("b", "bool", 1), array("a", "i32", [1, 2]),
    ]  # fmt: skip
    with open_gguf(make.write(tmp_path / "x.gguf", make.gguf(kvs))) as file:
        yield file.metadata


def test_getters(metadata):
    assert metadata.integer("i", low=-10) == -5
    assert metadata.integer("u", high=2**64) == 2**63
    assert metadata.number("f") == 0.5 and metadata.number("i") == -5.0
    assert metadata.text("s").startswith("text") and metadata.boolean("b") is True
    assert metadata.array("a", ("u32", "i32")).to_list() == [1, 2]


def test_getters_give_the_default(metadata):
    getters = (metadata.integer, metadata.number, metadata.text, metadata.boolean)
    assert all(get("none", None) is None for get in getters)
    assert metadata.integer("none", 7) == 7 and metadata.array("none", ("i32",), None) is None


@pytest.mark.parametrize(
    ("get", "says"),
    [
        (lambda m: m.integer("none"), "missing key none"),
        (lambda m: m.integer("f"), "f=0.5: is f32, must be an integer"),
        (lambda m: m.integer("b"), "b=True: is bool, must be an integer"),
        (lambda m: m.integer("i"), "i=-5: must be from 0 to 9223372036854775807"),
        (lambda m: m.integer("u"), "u=9223372036854775808: must be from 0"),
        (lambda m: m.integer("i", kinds=("u16",)), "i=-5: is i8, must be u16"),
        (lambda m: m.number("nan"), "nan=nan: must be finite"),
        (lambda m: m.number("a"), "a=[i32 x 2]: is arr, must be a number"),
        (lambda m: m.text("i"), "i=-5: is i8, must be a string"),
        (lambda m: m.boolean("s"), "\\x1b"),
        (lambda m: m.array("s", ("str",)), "is str, must be an array"),
        (lambda m: m.array("a", ("str", "u8")), "a=[i32 x 2]: must be an array of str or u8"),
    ],
)
def test_getters_name_key_and_value(metadata, get, says):
    with pytest.raises(FileError) as caught:
        get(metadata)
    line = str(caught.value)
    assert says in line and line.isprintable() and len(line) < 250 + len(metadata.path)
