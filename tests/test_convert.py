"""Folders of Hugging Face become the files that llama.cpp's converter makes of them; damaged ones get one line."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hf_maker import LLAMA3, MODELS, make, safetensors
from record_convert import OUT, summary

from qllama.cli import main
from qllama.convert import FolderSource
from qllama.convert.pre import KNOWN
from qllama.convert.safetensors import folder_tensors, read_header
from qllama.errors import FileError
from qllama.gguf import open_gguf
from qllama.tokenizer.pre import PRE_TOKENIZERS

RECORDED = json.loads(OUT.read_text())


def qllama(*args) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, args)))
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, made once."""
    made: dict[str, Path] = {}
    where = tmp_path_factory.mktemp("hf")

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(where, name)
        return made[name]

    return get


@pytest.fixture
def mistral(folders, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(folders("mistral-v0.3"), tmp_path / "mistral-v0.3"))


def edit(path: Path, **values) -> None:
    """Set keys of a JSON file; None removes one."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.mark.parametrize("name", MODELS)
def test_files_are_those_of_llama_cpps_converter(folders, tmp_path, name):
    """All keys in order with types and values, all tensors in order with types, shapes and bytes."""
    folder, bpe = folders(name), MODELS[name][2] != "spm"
    for kind in ["auto"] if bpe else ["auto", "f32", "q8_0"]:
        out = tmp_path / f"{kind}.gguf"
        assert qllama("convert", folder, out, "--type", kind) == 0
        found, wanted = summary(out), RECORDED[name][kind]
        assert found["tensors"] == wanted["tensors"] and list(found["tensors"]) == list(wanted["tensors"])
        assert found["keys"] == wanted["keys"] and list(found["keys"]) == list(wanted["keys"])


def test_a_folder_is_quantized_as_its_converted_file_is(folders, tmp_path):
    folder = folders("mistral-v0.3")
    assert qllama("convert", folder, tmp_path / "f.gguf") == 0
    assert qllama("quantize", tmp_path / "f.gguf", tmp_path / "a.gguf", "Q4_K_M") == 0
    assert qllama("quantize", folder, tmp_path / "b.gguf", "Q4_K_M") == 0
    assert qllama("convert", folder, tmp_path / "c.gguf", "--type", "Q4_K_M") == 0
    assert (
        (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    )


def test_rows_come_the_same_a_few_at_a_time(folders):
    """A chunk may begin and end anywhere, also in the middle of a head whose rows change places."""
    source = FolderSource(folders("mistral-v0.3"))
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.attn_v.weight"):
        tensor = next(t for t in source.tensors if t.name == name)
        whole = source.rows(tensor, 0, tensor.n_rows)
        parts = [source.rows(tensor, i, min(5, tensor.n_rows - i)) for i in range(0, tensor.n_rows, 5)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_known_rules_are_rules_that_the_tokenizer_has():
    assert len(KNOWN) == 71 and set(KNOWN.values()) <= PRE_TOKENIZERS.keys()


def test_an_existing_file_stays(mistral, tmp_path, capsys):
    out = tmp_path / "o.gguf"
    out.write_bytes(b"mine")
    assert qllama("convert", mistral, out) == 2 and out.read_bytes() == b"mine"
    assert "--force" in capsys.readouterr().err
    assert qllama("convert", mistral, out, "--force") == 0 and out.read_bytes()[:4] == b"GGUF"


def test_an_input_is_not_overwritten(mistral, capsys):
    part = sorted(mistral.glob("*.safetensors"))[0]
    before = part.read_bytes()
    assert qllama("convert", mistral, part, "--force") == 2 and part.read_bytes() == before
    assert "is the same file" in capsys.readouterr().err


def test_an_unknown_type(mistral, tmp_path, capsys):
    assert qllama("convert", mistral, tmp_path / "o", "--type", "Q9") == 2
    assert "--type: found Q9, needed auto, F32" in capsys.readouterr().err


def test_a_value_that_does_not_fit_names_tensor_and_row(mistral, tmp_path, capsys):
    """float32 1e6 is too large for float16."""
    header = read_header(mistral / "model-00001-of-00003.safetensors")
    name = next(n for n, t in header.items() if len(t.shape) == 2)
    tensors = {n: np.zeros(t.shape, np.float32) for n, t in header.items()}
    tensors[name][1, 0] = 1e6
    (mistral / "model-00001-of-00003.safetensors").write_bytes(safetensors(tensors, "F32"))
    assert qllama("convert", mistral, tmp_path / "o", "--type", "f16") == 2
    assert "row 1" in capsys.readouterr().err and not (tmp_path / "o").exists()


CONFIG = [
    ({"architectures": ["BertModel"]}, r"architectures=BertModel: needed one of LlamaForCausalLM"),
    ({"architectures": None}, r"architectures=None: needed one of"),
    ({"architectures": [3]}, r"architectures=3: needed one of"),
    ({"hidden_size": None}, "missing key hidden_size"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000: must be 1024 at most"),
    ({"num_hidden_layers": 1}, r"tensor=model.layers.1.*: has no place in a llama model"),
    ({"num_attention_heads": 0}, "num_attention_heads=0: must be an integer from 1"),
    ({"num_attention_heads": 33}, "needed an even number for each of 33 heads"),
    ({"num_key_value_heads": True}, "num_key_value_heads=True: must be an integer"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps=x: must be a number above 0"),
    ({"rope_scaling": 3}, "rope_scaling=3: must be an object"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_type=longrope: needed default, linear, yarn or llama3"),
    ({"rope_scaling": {"type": "linear"}}, "rope_parameters.factor=None: must be a number"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings=None: yarn needs a number"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor=1.0: must be above low_freq_factor"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config=gptq: quantized weights are not"),
    ({"vocab_size": 2**30}, "vocab_size=1073741824: must be 16777216 at most"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), CONFIG, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_what_is_wrong_in_config_json_is_named(mistral, values, message):
    edit(mistral / "config.json", **values)
    with pytest.raises(FileError, match=message):
        FolderSource(mistral)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("config.json", None, "cannot read it"),
        ("config.json", b"[1]", "is a JSON list, needed an object"),
        ("config.json", b'{"a": 1, "a": 2}', "an object has a key twice"),
        ("config.json", b"[" * 200_000, "is not JSON"),
        ("tokenizer.model", None, "has no tokenizer: needed tokenizer.model or tokenizer.json"),
        ("tokenizer.model", b"\xff" * 50, "a tokenizer that cannot be read"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "x=.*no added token"),
        ("README.md", b"---\na: [\n---\n", "the model's card cannot be read: ParserError"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}', "a=../x.safetensors: must name"),
        ("model-00002-of-00003.safetensors", None, "cannot be read: No such file"),
        ("model-00002-of-00003.safetensors", b"abc", "is no safetensors file"),
        ("model-00002-of-00003.safetensors", safetensors({}, "F32"), "needed by the index"),
        ("model-00002-of-00003.safetensors", safetensors({"z": np.zeros(1)}, "F32"), "z: does not place it"),
    ],
)  # fmt: skip
def test_files_that_are_missing_or_damaged_are_named(mistral, name, raw, message):
    (mistral / name).unlink(missing_ok=True)
    if raw is not None:
        (mistral / name).write_bytes(raw)
    with pytest.raises(FileError, match=message):
        FolderSource(mistral)


def test_no_folder_and_no_weights(mistral, tmp_path):
    with pytest.raises(FileError, match="is no folder"):
        FolderSource(tmp_path / "none")
    for path in mistral.glob("model*"):
        path.unlink()
    with pytest.raises(FileError, match="has no model"):
        FolderSource(mistral)
    (mistral / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FileError, match=r"as a pickle \(pytorch_model.bin\), which runs code when read"):
        FolderSource(mistral)


def test_a_file_that_is_cut_short_anywhere(tmp_path):
    """No cut is accepted, none raises anything else."""
    raw = safetensors({"a": np.ones((3, 2)), "b": np.ones(5)}, "F16")
    path = tmp_path / "model.safetensors"
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(FileError):
            folder_tensors(tmp_path)
    path.write_bytes(raw)
    assert {name: t.shape for name, t in folder_tensors(tmp_path).items()} == {"a": (3, 2), "b": (5,)}


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63 - 1]},
    ],
)
def test_headers_that_lie(tmp_path, entry):
    head = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    with pytest.raises(FileError, match=r"model\.safetensors: tensor=a:"):
        folder_tensors(tmp_path)


def test_a_tensor_in_two_files(mistral):
    (mistral / "model.safetensors.index.json").unlink()
    first, second, *_ = sorted(mistral.glob("*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(FileError, match=r"is in model-00001-of-00003\.safetensors too"):
        FolderSource(mistral)


def test_a_file_that_shrinks_while_it_is_read(mistral):
    source = FolderSource(mistral)
    for path in mistral.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(FileError, match="became shorter"):
        source.rows(source.tensors[0], 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, x: t.pop(x), "its layer has 8 matrices of experts, needed 9"),
        (lambda t, x: t.update({x: np.zeros((2, 2))}), r"is BF16 \(2, 2\), its layer's first BF16"),
        (lambda t, x: t.update({x.replace("experts.1", "experts.7"): t.pop(x)}), "its layer has no expert 1"),
    ],
)
def test_experts_that_are_missing_or_differ(folders, tmp_path, change, message):
    folder = shutil.copytree(folders("mixtral-3x"), tmp_path / "m")
    found = {n: np.zeros(t.shape) for n, t in folder_tensors(folder).items()}
    for path in folder.glob("model*"):
        path.unlink()
    change(found, "model.layers.0.block_sparse_moe.experts.1.w2.weight")
    (folder / "model.safetensors").write_bytes(safetensors(found, "BF16"))
    with pytest.raises(FileError, match=message):
        FolderSource(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"type": "WordPiece"}}, "its model is WordPiece, needed BPE"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "byte_fallback, needed tokenizer.model beside it"),
        ({"model": {"type": "BPE", "vocab": 3}}, "a tokenizer that cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 9}, "merges": []}}, r"pre-tokenizer is unknown \(finger"),
    ],
)
def test_tokenizers_that_are_not_known(mistral, values, message):
    (mistral / "tokenizer.model").unlink()
    (mistral / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **values}))
    with pytest.raises(FileError, match=message):
        FolderSource(mistral)


def test_a_vocabulary_that_is_larger_than_the_model(folders, tmp_path):
    folder = shutil.copytree(folders("qwen2"), tmp_path / "m")
    edit(folder / "config.json", vocab_size=1000)
    with pytest.raises(FileError, match="vocab_size=1000: the tokenizer has an id"):
        FolderSource(folder)


def test_without_the_package_of_tokenizers(mistral, monkeypatch, capsys, tmp_path):
    (mistral / "tokenizer.model").unlink()
    (mistral / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert qllama("convert", mistral, tmp_path / "o") == 2
    assert "pip install 'qllama[convert]'" in capsys.readouterr().err


def test_code_llama_ends_an_infill(mistral):
    edit(mistral / "config.json", vocab_size=32016)
    assert FolderSource(mistral).metadata["tokenizer.ggml.eot_token_id"] == ("u32", 32010)


def test_granites_small_models_add_no_bos(mistral):
    edit(mistral / "config.json", vocab_size=49152)
    assert FolderSource(mistral).metadata["tokenizer.ggml.add_bos_token"] == ("bool", False)


def test_a_converted_model_opens(folders, tmp_path):
    assert qllama("convert", folders("tiny-yarn"), tmp_path / "o.gguf") == 0
    with open_gguf(tmp_path / "o.gguf") as gguf:
        assert gguf.metadata["general.file_type"] == 1 and len(gguf.tensors) == 21
