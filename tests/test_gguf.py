"""qllama.gguf and qllama.metadata against gguf-py on real files, and against files broken on purpose."""

import mmap
import os
import re
import struct
import sys
import tracemalloc
from pathlib import Path

import gguf as gguf_py
import gguf_maker as make
import numpy as np
import pytest
from conftest import SHARED, shared
from gguf import GGUFValueType
from gguf_maker import array, kv, refused, string, tensor, u32, u64

from qllama.errors import FileError
from qllama.ggml import REMOVED, TYPES
from qllama.gguf import open_gguf
from qllama.metadata import ArrayValue

ARCH = kv("general.architecture", "str", "llama")
ZEROS = bytes(1 << 12)
REAL = sorted(
    str(path.relative_to(SHARED))
    for folder in ("models", "oracles/models", "oracles/quant", "vocabs")
    for path in (SHARED / folder).glob("*.gguf")
)


def one(entry: bytes, data: bytes = ZEROS) -> bytes:
    """A file with a single tensor."""
    return make.gguf([ARCH], [entry], data)


# ---- files as they should be


@pytest.mark.parametrize("name", REAL or ["models/stories260K-f32.gguf"])
def test_real_files_open_without_warnings(name):
    with open_gguf(shared(name)) as file:
        assert file.warnings == []
        assert file.version == 3 and file.alignment == 32
        assert bool(file.tensors) == ("vocab" not in name)


@pytest.mark.parametrize(
    "name", ["models/stories260K-f32.gguf", "models/books-5m-Q4_K_M.gguf", "models/books-5m-IQ4_XS.gguf",
             "oracles/models/gpt-oss.gguf", "oracles/models/deepseek2-yarn.gguf",
             "oracles/quant/q256.imatrix.gguf", "vocabs/ggml-vocab-llama-spm.gguf"],
)  # fmt: skip
def test_reads_what_gguf_py_reads(name):
    path = shared(name)
    reader = gguf_py.GGUFReader(path)
    with open_gguf(path) as file:
        keys = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
        assert list(file.metadata) == list(keys)
        for key, theirs in keys.items():
            check_value(file.metadata[key], theirs)
        assert list(file.tensors) == [t.name for t in reader.tensors]
        for theirs in reader.tensors:
            ours = file.tensors[theirs.name]
            assert ours.shape == tuple(theirs.shape)
            assert ours.type.name == theirs.tensor_type.name
            assert (ours.n_elements, ours.nbytes) == (theirs.n_elements, theirs.n_bytes)
            assert ours.offset == theirs.data_offset
            assert file.data(theirs.name).tobytes() == theirs.data.tobytes()


def check_value(ours, theirs):
    expected = theirs.contents()
    if theirs.types[0] == GGUFValueType.ARRAY and theirs.types[1] == GGUFValueType.STRING:
        assert ours.to_list() == [bytes(theirs.parts[i]) for i in theirs.data]
    elif theirs.types[0] == GGUFValueType.ARRAY:
        assert ours.to_list() == expected
    else:
        assert ours == expected and type(ours) is type(expected)


def test_large_vocabulary_as_its_writer_made_it():
    """gguf-py takes seconds to open this one: published facts of the Llama-3 vocabulary instead."""
    with open_gguf(shared("vocabs/ggml-vocab-llama-bpe.gguf")) as file:
        tokens, merges = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
        assert (tokens.type, tokens.count, merges.count) == ("str", 128256, 280147)
        assert tokens.to_list(3) == [b"!", b'"', b"#"]
        strings = tokens.to_list()
        assert (strings[128000], strings[128009]) == (b"<|begin_of_text|>", b"<|eot_id|>")
        assert merges.to_list(1) == ["Ġ Ġ".encode()]
        assert file.metadata["tokenizer.ggml.bos_token_id"] == 128000


def test_every_type_of_value(tmp_path):
    scalars = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31), "f32": 0.5,
        "bool": True, "str": "é", "u64": 2**64 - 1, "i64": -(2**63), "f64": 1e300,
    }  # fmt: skip
    kvs = [kv(kind, kind, value) for kind, value in scalars.items()]
    kvs += [array(f"{kind}s", kind, [value, value]) for kind, value in scalars.items()]
    with open_gguf(make.write(tmp_path / "x.gguf", make.gguf(kvs))) as file:
        for kind, value in scalars.items():
            assert file.metadata[kind] == value and file.metadata.type_of(kind) == kind
            expected = value.encode() if kind == "str" else value
            values = file.metadata[f"{kind}s"]
            assert file.metadata.type_of(f"{kind}s") == "arr" and values.type == kind
            assert values.to_list() == [expected] * 2
            assert values.to_list(1) == [expected] and values.to_list(9) == [expected] * 2
            assert repr(values) == f"[{kind} x 2]"
        assert len(file.metadata) == 24


def test_written_by_gguf_py(tmp_path):
    """All tensor types that gguf-py can write, another alignment."""
    path = tmp_path / "x.gguf"
    writer = gguf_py.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    rng = np.random.default_rng(0)
    for kind, (block, nbytes) in gguf_py.GGML_QUANT_SIZES.items():
        raw = rng.integers(0, 256, (3, 512 // block * nbytes), dtype=np.uint8)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as file:
        assert file.alignment == 128
        for theirs in gguf_py.GGUFReader(path).tensors:
            ours = file.tensors[theirs.name]
            assert (ours.type.name, ours.shape, ours.offset) == (theirs.name, (512, 3), theirs.data_offset)
            if theirs.name != "Q8_1":  # gguf-py takes its block for 40 bytes, ggml has 36; no file uses it
                assert file.data(theirs.name).tobytes() == theirs.data.tobytes()


def test_version_2(tmp_path):
    path = make.write(tmp_path / "x.gguf", make.model(make.LLAMA, make.LLAMA_TENSORS, version=2))
    with open_gguf(path) as file:
        assert file.version == 2 and file.tensors["blk.1.ffn_down.weight"].shape == (96, 64)


def test_scalar_tensor_and_gaps_between_tensors(tmp_path):
    entries = [tensor("b", (2, 3), "F16", 128), tensor("scalar", (), "F64", 0), tensor("a", (8,), "I8", 64)]
    path = make.write(tmp_path / "x.gguf", make.gguf([ARCH], entries, bytes(160)))
    with open_gguf(path) as file:
        assert [(t.shape, t.n_elements, t.nbytes) for t in file.tensors.values()] == [
            ((2, 3), 6, 12), ((), 1, 8), ((8,), 8, 8)
        ]  # fmt: skip
        assert file.warnings == []


def test_last_tensor_need_not_be_padded(tmp_path):
    with open_gguf(make.write(tmp_path / "x.gguf", one(tensor("t", (3,)), bytes(12)))) as file:
        assert file.data("t").tobytes() == bytes(12)


def test_trailing_bytes_are_a_warning(tmp_path):
    path = make.write(tmp_path / "x.gguf", one(tensor("t", (8,)), bytes(1032)))
    with open_gguf(path) as file:
        assert file.warnings == [f"{path}: 1000 bytes after the last tensor are ignored"]


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a\0b", b"\x1b[31mred"])
def test_strings_need_not_be_text(tmp_path, value):
    """Invalid UTF-8, NUL, escape sequences are kept; printing escapes them."""
    content = make.gguf([kv(b"key" + value, "str", value), array("a", "str", [value])])
    with open_gguf(make.write(tmp_path / "x.gguf", content)) as file:
        ((key, text), (_, values)) = file.metadata.items()
        assert key.encode(errors="surrogateescape") == b"key" + value
        assert text.encode(errors="surrogateescape") == value
        assert values.to_list() == [value]
        assert str(file.metadata.error(key, "no")).isprintable()


def test_any_byte_but_zero_is_true(tmp_path):
    content = make.gguf([kv("t", "bool", 7), kv("f", "bool", 0), array("a", "bool", [0, 7, 1])])
    with open_gguf(make.write(tmp_path / "x.gguf", content)) as file:
        assert file.metadata["t"] is True and file.metadata["f"] is False
        assert file.metadata["a"].to_list() == [False, True, True]


def test_tensor_bytes_without_a_copy(tmp_path):
    path = make.write(tmp_path / "x.gguf", one(tensor("t", (4,), "F32", 32), bytes(32) + bytes(range(16))))
    file = open_gguf(path)
    buffer, offset, nbytes = file.locate("t")
    data = file.data("t")
    assert isinstance(buffer, mmap.mmap) and buffer[offset : offset + nbytes] == bytes(range(16))
    assert data.dtype == np.uint8 and data.base is not None and not data.flags.writeable
    file.close()
    file.close()
    assert data.tolist() == list(range(16))  # a view outlives close()
    with pytest.raises(KeyError):
        file.data("nothing")


def test_to_numpy_is_a_copy_of_the_element_type(tmp_path):
    with open_gguf(make.write(tmp_path / "x.gguf", make.gguf([array("a", "i16", [1, -2])]))) as file:
        numbers = file.metadata["a"].to_numpy()
    numbers += 1
    assert numbers.dtype == np.int16 and numbers.tolist() == [2, -1]


def test_empty_strings_cost_no_memory(tmp_path):
    """Arrays stay in the file until asked for, also one of 500,000 strings of nothing."""
    path = make.write(tmp_path / "x.gguf", make.gguf([array("a", 8, bytes(8 * 500_000), 500_000)]))
    tracemalloc.start()
    with open_gguf(path) as file:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert file.metadata["a"].count == 500_000
    assert peak < 1 << 20


# ---- files that are something else, or nothing


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"G", "too short"),
        (b"GG", "too short"),
        (b"hello", "too short"),
        (b"<!DOCTYPE html><html><head><title>404</title>", "web page"),
        (b"\n<html>Not found", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "web page"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
        (u64(80) + b'{"__metadata__":{"format":"pt"}}', "safetensors"),
        (b"lmgg" + bytes(60), "pre-GGUF"),
        (b"tjgg\x03\0\0\0" + bytes(60), "pre-GGUF"),
        (b"fmgg\x01\0\0\0" + bytes(60), "pre-GGUF"),
        (bytes(100), "all zeros"),
        (b"FUGG" + bytes(60), "byte-swapped"),
        (b"\x7fELF" + bytes(60), "not a GGUF file: begins with b'\\x7fELF'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version=50331648: supported are 2 and 3: a big-endian"),
        *[(b"GGUF" + struct.pack("<IQQ", v, 0, 0), f"version={v}: supported are 2 and 3")
          for v in (0, 1, 4, 2**32 - 1)],
    ],
)  # fmt: skip
def test_other_kinds_are_named(tmp_path, content, says):
    assert says in refused(make.write(tmp_path / "x.gguf", content))


def test_what_is_not_a_file(tmp_path):
    assert "directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "missing.gguf")
    with pytest.raises(FileError, match=r"null (byte|character)"):
        open_gguf("a\0b")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_fifo_and_device_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refused(tmp_path / "fifo")
    assert "not a regular file" in refused(Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path):
    path = make.write(tmp_path / "x.gguf", b"GGUF")
    path.chmod(0)
    assert "Permission denied" in refused(path)


# ---- counts, lengths and types that lie

BROKEN = {
    "n_tensors 2^64-1": (make.gguf([ARCH], n_tensors=2**64 - 1), "n_tensors=18446744073709551615: needs"),
    "n_kv 2^64-1": (make.gguf([ARCH], n_kv=2**64 - 1), "n_kv=18446744073709551615: needs"),
    "n_tensors 2e9": (
        make.gguf([ARCH], n_tensors=2 * 10**9),
        "n_tensors=2000000000: needs 48000000000 bytes",
    ),
    "n_kv 1e9": (make.gguf([ARCH], n_kv=10**9), "n_kv=1000000000: needs 13000000000 bytes"),
    "too many tensors": (make.gguf([], [], bytes(24 * 65537), n_tensors=65537), "n_tensors=65537: at most"),
    "too many keys": (make.gguf([], [], bytes(13 * 65537), n_kv=65537), "n_kv=65537: at most"),
    "key length": (
        make.gguf([u64(2**64 - 1) + bytes(64)], n_kv=1),
        "key #0=18446744073709551615: length at byte 24",
    ),
    "key 70000": (make.gguf([kv("k" * 70_000, "u8", 1)]), "key #0=70000: length at byte 24"),
    "key empty": (make.gguf([kv("", "u8", 1)]), "key #0=: empty, at byte 24"),
    **{
        f"string length {length}": (
            make.gguf([string("k") + u32(8) + string("abc", length)]),
            f"k={length}: length at byte 37",
        )
        for length in (2**64 - 1, 2**63, 2**40, 2**31, 2**30, 2**24 + 1)
    },
    "string past the end": (
        make.gguf([string("k") + u32(8) + string("abc", 4)]),
        "cut off in the metadata at byte 45",
    ),
    **{
        f"array length {count}": (
            make.gguf([array("k", "u64", [1], count)]),
            "cut off in the metadata at byte 49",
        )
        for count in (2**64 - 1, 2**63, 2**61, 2**40, 2**30 + 1, 2**28, 2)
    },
    **{
        f"string array length {count}": (
            make.gguf([array("k", "str", ["abc"], count)]),
            "cut off in the metadata",
        )
        for count in (2**64 - 1, 2**61, 2**28, 2)
    },
    "string array cut": (
        make.gguf([array("k", 8, u64(5) + b"abc", 1)]),
        "at byte 49: needs 13 bytes, has 11",
    ),
    "string array element": (
        make.gguf([array("k", 8, u64(2**40) + b"abc", 1)]),
        "k[0]=1099511627776: length at",
    ),
    "string array second": (
        make.gguf([array("k", 8, u64(1) + b"a" + u64(2**63) + b"a", 2)]),
        "k[1]=9223372036854775808",
    ),
    "string array runs out": (
        make.gguf([array("k", 8, u64(10) + bytes(14), 3)]),
        "at byte 49: needs 24 bytes",
    ),
    "array of arrays": (make.gguf([array("k", 9, u32(4) + u64(0), 1)]), "k=[array x 1]: an array of arrays"),
    "nested 100000": (make.gguf([array("k", 9, (u32(9) + u64(1)) * 100_000, 1)]), "an array of arrays"),
    "element type 99": (make.gguf([array("k", 99, b"", 0)]), "k=[type 99 x 0]: unknown element type"),
    "value type 13": (make.gguf([kv("k", 13, bytes(8))]), "k=type 13: unknown value type"),
    "value type max": (make.gguf([kv("k", 2**32 - 1, bytes(8))]), "k=type 4294967295: unknown value type"),
    "key twice": (make.gguf([kv("k", "u8", 1), kv("k", "str", "b")]), "k=b: is there twice, first as 1"),
    "key twice, same": (make.gguf([kv("k", "u8", 1), kv("k", "u8", 1)]), "k=1: is there twice, first as 1"),
    **{
        f"alignment {value}": (
            make.gguf([kv("general.alignment", "u32", value)]),
            f"general.alignment={value}: must be a power of two",
        )
        for value in (0, 1, 3, 4, 13, 24, 2**17, 2**20, 2**31)
    },
    "alignment i32": (
        make.gguf([kv("general.alignment", "i32", 32)]),
        "general.alignment=32: is i32, must be u32",
    ),
    "alignment u64": (make.gguf([kv("general.alignment", "u64", 32)]), "is u64, must be u32"),
    "alignment str": (make.gguf([kv("general.alignment", "str", "32")]), "is str, must be u32"),
    "tensor twice": (
        make.gguf([], [tensor("t", (8,)), tensor("t", (8,), offset=32)], ZEROS),
        "tensor=t: two tensors",
    ),
    "name 64": (one(tensor("n" * 64, (8,))), "name of tensor #0=64: length at byte"),
    "name empty": (one(tensor("", (8,))), "name of tensor #0=: empty, at byte"),
    "n_dims 5": (one(tensor("t", (8, 1, 1, 1, 1))), "t.n_dims=5: tensor #0 may have 0 to 4 dimensions"),
    "n_dims max": (one(tensor("t", (8,), n_dims=2**32 - 1)), "t.n_dims=4294967295:"),
    "dim 0": (one(tensor("t", (8, 0))), "t.shape=8x0: dimension 1 is 0"),
    "dim -1": (one(tensor("t", (2**64 - 1,))), "cut off in the data of t: needs"),
    "dim 2^63": (one(tensor("t", (8, 2**63))), "cut off in the data of t: needs"),
    "product overflow": (one(tensor("t", (2**32, 2**32))), f"cut off in the data of t: needs {2**66 + 128} "),
    "bytes overflow": (one(tensor("t", (2**62,))), "cut off in the data of t: needs"),
    "pad wraps": (one(tensor("t", (2**64 - 16,), "I8")), "cut off in the data of t: needs"),
    "2^58": (one(tensor("t", (2**58,))), "cut off in the data of t: needs"),
    "not blocks": (one(tensor("t", (65, 2), "Q8_0")), "t.shape=65x2: Q8_0 has blocks of 32"),
    "scalar of blocks": (one(tensor("t", (), "Q4_K")), "t.shape=: Q4_K has blocks of 256"),
    **{
        f"type {id}": (one(tensor("t", (8,), id % 2**32)), f"t.type={id % 2**32}: unknown tensor type")
        for id in (43, 99, -1, -2, 2**31 - 1)
    },
    **{
        f"type {id}": (one(tensor("t", (8,), id)), f"t.type={id}: removed from ggml ({name}): convert")
        for id, name in REMOVED.items()
    },
    "offset 7": (one(tensor("t", (8,), offset=7)), "t.offset=7: not a multiple of the alignment 32"),
    "offset overlap": (
        make.gguf([ARCH], [tensor("a", (16,)), tensor("b", (8,), offset=32)], ZEROS),
        "b.offset in the file=",
    ),
    "offset same": (make.gguf([ARCH], [tensor("a", (8,)), tensor("b", (8,))], ZEROS), "overlaps a"),
    "offset 2^64-32": (one(tensor("t", (8,), offset=2**64 - 32)), "cut off in the data of t: needs"),
    "offset 1e9": (one(tensor("t", (8,), offset=10**9)), "cut off in the data of t: needs"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_on_purpose(tmp_path, name):
    """One line, and next to no memory, whatever a length claims."""
    content, says = BROKEN[name]
    tracemalloc.start()
    line = refused(make.write(tmp_path / "x.gguf", content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert says in line
    assert peak < 1 << 20


def test_ids_of_removed_and_known_types_are_all_there_are():
    assert not REMOVED.keys() & TYPES.keys()
    assert {t.value for t in gguf_py.GGMLQuantizationType} <= TYPES.keys()


@pytest.mark.parametrize("change", [{"n_kv": 1}, {"n_kv": -1}, {"n_tensors": 1}])
def test_counts_off_by_one(tmp_path, change):
    """Keys are then read as tensors, or data as the tensor directory."""
    counts = {"n_kv": len(make.LLAMA), "n_tensors": len(make.LLAMA_TENSORS)}
    counts = {name: counts[name] + by for name, by in change.items()}
    line = refused(make.write(tmp_path / "x.gguf", make.model(make.LLAMA, make.LLAMA_TENSORS, **counts)))
    assert "n_kv" not in change or "(is n_kv wrong?)" in line
    assert "n_tensors" not in change or "tensor #20" in line or "n_tensors" in line


def test_one_tensor_too_few_shows_in_the_padding(tmp_path):
    content = make.gguf([ARCH], [tensor("a", (8,)), tensor("b", (8,), offset=32)], bytes(64), n_tensors=1)
    assert "n_tensors=1: no zero padding" in refused(make.write(tmp_path / "x.gguf", content))


def test_cut_anywhere(tmp_path):
    """Every truncation is refused, and says where."""
    keys = {**make.LLAMA, "tokenizer.ggml.scores": [0.0] * 4}
    whole = make.model(keys, {"token_embd.weight": (64, 4), "output_norm.weight": (64,)})
    path, sections = tmp_path / "x.gguf", set()
    for size in range(len(whole)):
        line = refused(make.write(path, whole[:size]))
        if found := re.search(r"cut off in the (header|metadata|tensor directory|data) ", line):
            sections.add(found[1])
        else:
            assert size < 4 or re.match("n_(kv|tensors)=.*download incomplete", line)
    assert sections == {"header", "metadata", "tensor directory", "data"}
    assert f"needs {len(whole)} bytes, has {len(whole) - 1} (download incomplete?)" in line
    open_gguf(make.write(path, whole)).close()


def test_a_flipped_byte_never_escapes(tmp_path):
    """Whatever a byte is changed to: the file opens, or one line says why not."""
    whole = bytearray(make.model(make.LLAMA, {"token_embd.weight": (64, 4)}))
    end = len(whole) - 64 * 4 * 4
    path, rng = tmp_path / "x.gguf", np.random.default_rng(1)
    for _ in range(2000):
        broken = bytearray(whole)
        for position in rng.integers(0, end, rng.integers(1, 4)):
            broken[position] = rng.integers(0, 256)
        try:
            with open_gguf(make.write(path, bytes(broken))) as file:
                for value in file.metadata.values():
                    assert not isinstance(value, ArrayValue) or len(value.to_list()) == value.count
        except FileError as error:
            assert str(error).isprintable()


def test_many_tensors(tmp_path):
    """Quadratic lookup of names would take minutes here."""
    entries = [tensor(f"t{i}", (1,), offset=32 * i) for i in range(50_000)]
    path = make.write(tmp_path / "x.gguf", make.gguf([ARCH], entries, bytes(32 * 50_000)))
    with open_gguf(path) as file:
        assert len(file.tensors) == 50_000
