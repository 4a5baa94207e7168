"""Split models: opened from any part, and refused when the parts do not fit."""

from pathlib import Path

import gguf as gguf_py
import gguf_maker as make
import numpy as np
import pytest
from gguf_maker import kv, refused, tensor

from qllama.errors import FileError
from qllama.gguf import open_gguf

ARCH = kv("general.architecture", "str", "llama")


def split(folder: Path, parts: dict[int, bytes], count: int = 3) -> list[Path]:
    return [make.write(folder / f"m-{i:05d}-of-{count:05d}.gguf", content) for i, content in parts.items()]


def part(no: int, names: list[str], *more: bytes, count: int = 3, total: int = 4, kind: str = "u16") -> bytes:
    """Part `no` (from 0): tensors of 8 numbers, each number being the length of the tensor's name."""
    kvs = [kv("split.no", kind, no), kv("split.count", kind, count), kv("split.tensors.count", "i32", total)]
    entries = [tensor(name, (8,), offset=32 * i) for i, name in enumerate(names)]
    data = b"".join(np.full(8, len(name), "<f4").tobytes() for name in names)
    return make.gguf([*kvs, *more], entries, data)


def parts() -> dict[int, bytes]:
    """As llama-gguf-split makes them: only the first part has the keys of the model."""
    return {1: part(0, ["a", "bb"], ARCH), 2: part(1, ["ccc"]), 3: part(2, ["dddd"])}


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_split_model_from_any_part(tmp_path, opened):
    paths = split(tmp_path, parts())
    with open_gguf(paths[opened]) as file:
        assert list(file.tensors) == ["a", "bb", "ccc", "dddd"]
        assert [t.part for t in file.tensors.values()] == [0, 0, 1, 2]
        assert [p.path for p in file.parts] == [str(path) for path in paths]
        assert file.nbytes == sum(path.stat().st_size for path in paths)
        assert file.path == str(paths[0]) and file.metadata["general.architecture"] == "llama"
        for name in file.tensors:
            assert file.data(name).view("<f4").tolist() == [len(name)] * 8


def test_split_written_by_gguf_py(tmp_path):
    writer = gguf_py.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"t{i}": np.full((4, 32), i, np.float32) for i in range(5)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "m-00003-of-00003.gguf") as file:
        assert file.tensors.keys() == arrays.keys()
        for name, values in arrays.items():
            assert file.data(name).tobytes() == values.tobytes()


def test_a_split_of_one_is_a_whole_file(tmp_path):
    path = make.write(tmp_path / "any name", part(0, ["a"], ARCH, count=1, total=1))
    with open_gguf(path) as file:
        assert list(file.tensors) == ["a"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({3: None}, "1 of 3 parts are missing: m-00003-of-00003.gguf"),
        ({1: None, 3: None}, "2 of 3 parts are missing: m-00001-of-00003.gguf, m-00003-of-00003.gguf"),
        ({3: part(1, ["dddd"])}, "m-00003-of-00003.gguf: split.no=1: must be 2"),
        ({3: part(2, ["a"])}, "m-00003-of-00003.gguf: tensor=a: is also in m-00001-of-00003.gguf"),
        ({3: part(2, ["d"])[:-16]}, "m-00003-of-00003.gguf: cut off in the data of d"),
        ({3: part(2, [])}, "split.tensors.count=4: the parts have 3 tensors together"),
        ({3: part(2, ["d"], count=4)}, "m-00003-of-00003.gguf: split.count=4: must be 3"),
        ({2: make.gguf([kv("split.count", "u16", 3)])}, "m-00002-of-00003.gguf: missing key split.no"),
        ({3: make.gguf([kv("split.count", "u16", 3)])}, "m-00003-of-00003.gguf: missing key split.no"),
        ({3: make.gguf([])}, "m-00003-of-00003.gguf: missing key split.count"),
        (
            {3: make.gguf([kv("split.count", "u16", 3), kv("split.no", "str", "2")])},
            "split.no=2: is str, must be u16",
        ),
        ({2: part(1, ["c"], kind="u32")}, "split.count=3: is u32, must be u16"),
        (
            {2: part(1, ["c"], count=65535)},
            "split.count=65535: the file must be named NAME-00001-of-65535.gguf",
        ),
        (
            {3: part(2, ["d"], kv("general.architecture", "str", "qwen\x1b"))},
            "general.architecture=qwen\\x1b: the first part is a llama model",
        ),
    ],
)
def test_split_models_that_do_not_fit(tmp_path, change, says):
    """Opened at part 2, which is always there."""
    split(tmp_path, {i: content for i, content in {**parts(), **change}.items() if content is not None})
    with pytest.raises(FileError) as caught:
        open_gguf(tmp_path / "m-00002-of-00003.gguf")
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_part_under_another_name(tmp_path):
    path = make.write(tmp_path / "model.gguf", parts()[1])
    assert "split.count=3: the file must be named NAME-00001-of-00003.gguf" in refused(path)


def test_many_missing_parts_are_one_short_line(tmp_path):
    path = split(tmp_path, {2: part(1, ["c"], count=65535)}, 65535)[0]
    line = refused(path)
    assert "65534 of 65535 parts are missing" in line and len(line) < 500
