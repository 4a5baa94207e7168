"""Files in, quantized files out: every byte that llama-quantize wrote, its options, and what is refused."""

import hashlib
import json
import os
import re

import numpy as np
import pytest
from conftest import shared
from gguf_maker import LLAMA, LLAMA_TENSORS, model, write

from qllama.errors import FileError, InputError
from qllama.gguf import open_gguf
from qllama.imatrix import ImportanceMatrix, Sums, load_imatrix
from qllama.quantize import Options, make_plan, quantize_file
from qllama.quantize import run as run_module
from qllama.quantize.run import CHUNK
from qllama.quantize.source import GGUFSource

SAMPLES = ["F32", "BF16", "Q4_0", "Q5_1", "Q8_0", "TQ2_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "IQ4_XS", "Q4_0+imatrix",
           "Q4_K_M+imatrix", "MXFP4_MOE"]  # fmt: skip


def quantized(path, out, file_type, options=None, imatrix=None, **kwargs):
    """The report; the file is as long as the plan says."""
    with open_gguf(path) as gguf:
        source = GGUFSource(gguf)
        plan = make_plan(source, file_type, options, imatrix)
        report = quantize_file(source, out, plan, imatrix, **kwargs)
    if not plan.keep_split:
        assert os.path.getsize(out) == plan.nbytes
    return report


def types(path) -> dict[str, str]:
    with open_gguf(path) as gguf:
        return {t.name: t.type.name for t in gguf.tensors.values()}


@pytest.fixture
def small(tmp_path):
    """A small F32 model of zeros."""
    return write(tmp_path / "in.gguf", model({**LLAMA, "general.file_type": 0, "split.no": ("u16", 0)}, LLAMA_TENSORS))


@pytest.mark.parametrize("kind", ["q256", "q192", "qmoe"])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_llama_quantize(tmp_path, kind, name):
    recorded = json.loads(shared("oracles/quant/quant.json").read_text())["sources"][kind]
    if name not in recorded["files"]:
        assert (kind == "qmoe") != (name == "MXFP4_MOE")  # recorded for others
        return
    file_type, _, with_imatrix = name.partition("+")
    imatrix = load_imatrix(shared(f"oracles/quant/{recorded['imatrix']}")) if with_imatrix else None
    out = tmp_path / "out.gguf"
    quantized(shared(f"oracles/quant/{kind}.gguf"), out, file_type, imatrix=imatrix)
    file = recorded["files"][name]
    with open_gguf(out) as gguf:
        found = {t: (gguf.tensors[t].type.name, hashlib.sha256(gguf.data(t)).hexdigest()) for t in gguf.tensors}
        assert gguf.metadata["general.file_type"] == file["file_type"]
        assert list(gguf.metadata)[-2:] == ["general.quantization_version", "general.file_type"] or with_imatrix
    assert list(found) == [t["name"] for t in file["tensors"]]
    assert found == {t["name"]: (t["type"], t["sha256"]) for t in file["tensors"]}
    if not with_imatrix:  # with one, the name of its file is in the metadata
        assert os.path.getsize(out) == file["bytes"]


def test_the_whole_file_of_llama_quantize(tmp_path):
    """books-5m was quantized by llama-quantize: metadata, order, padding and blocks are the same bytes."""
    for file_type in ("Q4_K_M", "Q4_0"):
        out = tmp_path / f"{file_type}.gguf"
        quantized(shared("models/books-5m-f16.gguf"), out, file_type)
        assert out.read_bytes() == shared(f"models/books-5m-{file_type}.gguf").read_bytes()


# What llama.cpp's llama_model_quantize makes of models of these architectures: the first digits of the file's SHA-256.
WHOLE_FILES = """
qwen2moe Q4_K_M 0ee3ee10b612db8d
qwen2moe Q8_0 20202d49eb4eaee8
llama4 Q4_0 58e59887d1cd8c4a
gptneox COPY 8b32e082e9205ec0
deepseek3 Q4_0 c5ade342439440d8
gpt-oss MXFP4_MOE 925634c51d661b83
gemma3 IQ3_M f1a0c92a5364138a
mistral-nemo-headdim TQ1_0 bd5264f62e5497ba
"""


@pytest.mark.parametrize("line", WHOLE_FILES.strip().split("\n"))
def test_whole_files_of_many_architectures(tmp_path, line):
    """Trailing dimensions of 1, rows of 8 to 80 values, a file that does not say its type, experts of MXFP4."""
    name, file_type, expected = line.split()
    quantized(shared(f"oracles/models/{name}.gguf"), tmp_path / "o", file_type)
    assert hashlib.sha256((tmp_path / "o").read_bytes()).hexdigest()[:16] == expected


def test_metadata_of_an_importance_matrix(tmp_path):
    imatrix = load_imatrix(shared("oracles/quant/q256.imatrix.gguf"))
    quantized(shared("oracles/quant/q256.gguf"), tmp_path / "o", "Q8_0", imatrix=imatrix)
    with open_gguf(tmp_path / "o") as gguf:
        keys = [k for k in gguf.metadata if k.startswith("quantize.")]
        assert keys == [f"quantize.imatrix.{k}" for k in ("file", "dataset", "entries_count", "chunks_count")]
        assert gguf.metadata["quantize.imatrix.entries_count"] == len(imatrix.tensors)
        assert gguf.metadata["quantize.imatrix.file"] == imatrix.path


def test_options_decide_in_llama_cpps_order(small, tmp_path):
    options = Options(
        tensor_types=[(r"blk\.0\.FFN", "Q8_0"), ("ffn", "Q5_0")], token_embedding_type="Q4_1",
        override_kv={"general.name": "x", "a": 7, "b": 0.5},
    )  # fmt: skip
    quantized(small, tmp_path / "o", "Q4_0", options)
    found = types(tmp_path / "o")
    assert found["blk.0.ffn_up.weight"] == "Q8_0" and found["blk.1.ffn_up.weight"] == "Q5_0"
    assert found["token_embd.weight"] == "Q4_1" and found["blk.0.attn_q.weight"] == "Q4_0"
    with open_gguf(tmp_path / "o") as gguf:
        assert (gguf.metadata["general.name"], gguf.metadata["a"], gguf.metadata["b"]) == ("x", 7, 0.5)
        assert gguf.metadata.type_of("a") == "u32" and gguf.metadata.type_of("b") == "f32"
        assert "split.no" not in gguf.metadata


def test_pure_leave_output_and_copy(small, tmp_path):
    quantized(small, tmp_path / "pure", "Q4_0", Options(pure=True))
    assert types(tmp_path / "pure")["token_embd.weight"] == "Q4_0"
    quantized(small, tmp_path / "tied", "Q4_0", Options(output_tensor_type="Q5_0"))
    assert types(tmp_path / "tied")["token_embd.weight"] == "Q5_0"
    report = quantized(small, tmp_path / "copy", "COPY")
    assert set(types(tmp_path / "copy").values()) == {"F32"} and report.nbytes_in == report.nbytes_out
    keys = {**LLAMA, "tokenizer.ggml.tokens": ["a"] * 32}
    untied = write(tmp_path / "u.gguf", model(keys, {**LLAMA_TENSORS, "output.weight": (64, 32)}))
    quantized(untied, tmp_path / "leave", "Q4_0", Options(leave_output_tensor=True))
    assert types(tmp_path / "leave")["output.weight"] == "F32"
    quantized(untied, tmp_path / "out", "Q4_0", Options(output_tensor_type="Q8_0"))
    assert types(tmp_path / "out")["output.weight"] == "Q8_0"


def test_layers_are_pruned(small, tmp_path):
    quantized(small, tmp_path / "o", "Q8_0", Options(prune_layers=[0]))
    with open_gguf(tmp_path / "o") as gguf:
        assert gguf.metadata["llama.block_count"] == 1 and list(gguf.metadata)[-1] == "llama.block_count"
        assert {n.split(".")[1] for n in gguf.tensors if n.startswith("blk.")} == {"0"}
        assert len(gguf.tensors) == 11
    with pytest.raises(InputError, match="has no layer 2"):
        quantized(small, tmp_path / "p", "Q8_0", Options(prune_layers=[2]))


def test_a_split_model_is_joined_or_kept(tmp_path):
    names = list(LLAMA_TENSORS)
    for i, part in enumerate((names[:9], names[9:])):
        keys = {"split.no": ("u16", i), "split.count": ("u16", 2), "split.tensors.count": ("i32", len(names))}
        content = model({**(LLAMA if i == 0 else {}), **keys}, {n: LLAMA_TENSORS[n] for n in part})
        write(tmp_path / f"m-0000{i + 1}-of-00002.gguf", content)
    source = tmp_path / "m-00001-of-00002.gguf"
    quantized(source, tmp_path / "one.gguf", "Q8_0")
    quantized(source, tmp_path / "s.gguf", "Q8_0", Options(keep_split=True))
    assert types(tmp_path / "s-00002-of-00002.gguf") == types(tmp_path / "one.gguf")
    with open_gguf(tmp_path / "s-00001-of-00002.gguf") as gguf:
        assert [t.part for t in gguf.tensors.values()] == [0] * 9 + [1] * (len(names) - 9)
        assert list(gguf.metadata)[-3:] == ["split.no", "split.count", "split.tensors.count"]
    with open_gguf(tmp_path / "one.gguf") as gguf:
        assert not [key for key in gguf.metadata if key.startswith("split.")]


def random_model(path, name="blk.0.attn_q.weight", rows=6, bad=None):
    """One matrix of normal random values; `bad` is (row, value)."""
    values = np.random.default_rng(1).normal(size=(rows, 64)).astype("<f4")
    if bad:
        values[bad[0], 3] = bad[1]
    content = model({"general.architecture": "llama"}, {name: (64, rows)})
    return write(path, content[: -values.nbytes] + values.tobytes()), values


def test_chunks_do_not_show(tmp_path, monkeypatch):
    path, values = random_model(tmp_path / "in.gguf", rows=64)
    whole = quantized(path, tmp_path / "a", "Q4_0")
    monkeypatch.setattr(run_module, "CHUNK", 5 * 64)
    seen = []
    chunked = quantized(path, tmp_path / "b", "Q4_0", n_threads=1, progress=seen.append)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [p.done for p in seen] == [min(i * 5, 64) * 256 for i in range(1, 14)] and seen[-1].total == values.nbytes
    assert chunked.types["Q4_0"].sampled == whole.types["Q4_0"].sampled == values.size
    assert CHUNK * 4 < 1 << 28


def test_the_report_measures_the_error(tmp_path):
    path, values = random_model(tmp_path / "in.gguf")
    report = quantized(path, tmp_path / "o", "Q8_0")
    with open_gguf(tmp_path / "o") as gguf:
        blocks = gguf.data("blk.0.attn_q.weight").reshape(-1, 34)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float64)
    errors = (blocks[:, 2:].view(np.int8) * scales).reshape(values.shape) - values
    assert report.types["Q8_0"].rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
    plain = report.to_json()
    assert plain["bits_per_weight"] == 8.5 and plain["types"]["Q8_0"]["bytes"] == 6 * 68


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "F16", "F32", "COPY"])
def test_values_that_are_not_finite_name_tensor_and_row(tmp_path, value, file_type):
    path, _ = random_model(tmp_path / "in.gguf", bad=(4, value))
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight: .*row 4"):
        quantized(path, tmp_path / "o", file_type)
    assert sorted(os.listdir(tmp_path)) == ["in.gguf"]


def test_importance_is_by_expert_and_must_fit(tmp_path):
    path, _ = random_model(tmp_path / "in.gguf")
    sums = Sums(np.ones((1, 64)), np.array([2]))
    quantized(path, tmp_path / "o", "Q4_0", imatrix=ImportanceMatrix({"blk.0.attn_q.weight": sums}))
    wrong = ImportanceMatrix({"blk.0.attn_q.weight": Sums(np.ones((1, 32)), np.array([2]))}, path="m")
    with pytest.raises(FileError, match="1x32 values, the tensor needs 1x64"):
        quantized(path, tmp_path / "p", "Q4_0", imatrix=wrong)


def test_types_that_need_an_importance_matrix(tmp_path):
    source, other = shared("oracles/quant/q256.gguf"), ImportanceMatrix({"x": Sums(np.ones((1, 2)), np.ones(1))})
    with pytest.raises(InputError, match="needs an importance matrix"):
        quantized(source, tmp_path / "o", "IQ2_XS")
    with pytest.raises(FileError, match="has no data of blk"):
        quantized(source, tmp_path / "o", "IQ2_XS", imatrix=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(tensor_types=[("(", "Q8_0")]), "not a regular expression"),
        (Options(tensor_types=[("a", "Q9")]), "Q9 is unknown"),
        (Options(output_tensor_type="Q9"), "Q9 is unknown"),
        (Options(override_kv={"a": -1}), "from 0 to"),
        (Options(override_kv={"llama.block_count": "x"}), "small integer"),
        (Options(token_embedding_type="Q4_K"), "needs a multiple of 256"),
    ],
)
def test_options_that_are_refused(small, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        quantized(small, tmp_path / "o", "Q4_0", options)


def test_quantized_tensors_are_not_quantized_again_unasked(tmp_path):
    source = shared("models/books-5m-Q8_0.gguf")
    with pytest.raises(FileError, match=r"is Q8_0, needed .*--allow-requantize"):
        quantized(source, tmp_path / "o", "Q4_0")
    report = quantized(source, tmp_path / "o", "Q4_0", Options(allow_requantize=True))
    assert report.types["Q4_0"].n_tensors > 30


def test_a_file_without_architecture_or_over_itself(small, tmp_path):
    path = write(tmp_path / "n.gguf", model({"a": 1}, {"x.weight": (32, 2)}))
    with pytest.raises(FileError, match=re.escape("missing key general.architecture")):
        quantized(path, tmp_path / "o", "Q4_0")
    before = small.read_bytes()
    with pytest.raises(FileError, match="is the same file"):
        quantized(small, small, "Q4_0", force=True)
    assert small.read_bytes() == before
