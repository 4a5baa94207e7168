"""`qllama quantize` as a shell sees it."""

import json

import pytest
from gguf_maker import LLAMA, LLAMA_TENSORS, model, write

from qllama.cli import main
from qllama.cli.progress import Meter, clock
from qllama.gguf import open_gguf


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "in.gguf", model(LLAMA, LLAMA_TENSORS))


def qllama(capsys, *args) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["quantize", *map(str, args)])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_writes_a_file_and_a_report(small, tmp_path, capsys):
    stats = tmp_path / "s.json"
    code, out, err = qllama(capsys, "--stats", stats, "-t", 1, small, tmp_path / "o.gguf", "q8_0")
    assert code == 0 and err == ""
    assert "model size  =     0.24 MiB (32.00 BPW)" in out and "Q8_0" in out
    assert json.loads(stats.read_text())["file_type"] == "Q8_0"
    with open_gguf(tmp_path / "o.gguf") as gguf:
        assert gguf.metadata["general.file_type"] == 7


def test_without_out_the_name_is_llama_cpps(small, tmp_path, capsys):
    assert qllama(capsys, small, "2", "1")[0] == 0
    assert (tmp_path / "ggml-model-Q4_0.gguf").exists()
    code, _, err = qllama(capsys, small, "Q4_0")
    assert code == 2 and "--force" in err and len(err.splitlines()) == 1
    assert qllama(capsys, "--force", small, "Q4_0")[0] == 0


def test_a_dry_run_tells_the_exact_size(small, tmp_path, capsys):
    code, out, _ = qllama(capsys, "--dry-run", small, "Q4_K_M")
    assert code == 0 and "converting to Q5_0 (fallback) .. size =     0.01 MiB -> " in out
    assert "14 of 20 tensors fall back" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf"]
    assert qllama(capsys, small, tmp_path / "o.gguf", "Q4_K_M")[0] == 0
    assert out.splitlines()[-1] == f"file size = {(tmp_path / 'o.gguf').stat().st_size} bytes"


def test_a_dry_run_says_that_an_importance_matrix_is_needed(tmp_path, capsys):
    shape = {"output.weight": (256, 4), "blk.0.attn_q.weight": (256, 256)}
    path = write(tmp_path / "in.gguf", model({"general.architecture": "llama"}, shape))
    code, out, _ = qllama(capsys, "--dry-run", path, "IQ2_XS")
    assert code == 0 and "IQ2_XS needs an importance matrix (--imatrix)" in out
    code, _, err = qllama(capsys, path, "IQ2_XS")
    assert code == 2 and "needs an importance matrix" in err


def test_tensor_types_from_a_file(small, tmp_path, capsys):
    (tmp_path / "types.txt").write_text("attn_v=q8_0\nattn_k=f16 \n")
    args = ("--tensor-type-file", tmp_path / "types.txt", "--tensor-type", "attn_q=q5_1")
    assert qllama(capsys, *args, small, tmp_path / "o", "Q4_0")[0] == 0
    with open_gguf(tmp_path / "o") as gguf:
        found = [gguf.tensors[f"blk.1.attn_{x}.weight"].type.name for x in "qkv"]
    assert found == ["Q5_1", "F16", "Q8_0"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["IN"], "too few arguments"),
        (["IN", "out"], "TYPE: found none"),
        (["IN", "out", "Q9"], "TYPE: found Q9, needed one of F32"),
        (["IN", "out", "Q4_0", "1", "2"], "found 5 arguments"),
        (["IN", "out", "Q4_0", "x"], "NTHREADS: found x"),
        (["--tensor-type", "a", "IN", "out", "Q4_0"], "needed REGEX=TYPE"),
        (["--prune-layers", "a", "IN", "out", "Q4_0"], "needed a number"),
        (["--imatrix", "IN", "IN", "out", "Q4_0"], "missing key imatrix.datasets"),
        (["--imatrix", "none", "IN", "out", "Q4_0"], "none"),
        (["--tensor-type-file", "none", "IN", "out", "Q4_0"], "none"),
    ],
)
def test_bad_usage_is_one_line(small, tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = qllama(capsys, *(str(small) if a == "IN" else a for a in args))
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_meter_shows_speed_and_time_left(capsys, monkeypatch):
    from qllama.ggml import BY_NAME
    from qllama.gguf_writer import NewTensor
    from qllama.quantize import Progress, Step
    from qllama.quantize.source import SourceTensor

    step = Step(SourceTensor("a", (32, 4), BY_NAME["F16"]), NewTensor("a", (32, 4), BY_NAME["Q8_0"]))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    meter = Meter()
    meter.quantize(Progress(step, 0, 2, 50_000_000, 100_000_000, 2.0))
    meter.close()
    assert "[1/2] a  F16 -> Q8_0   50 %  25 MB/s  0:02 left" in capsys.readouterr().err
    assert [clock(s) for s in (7, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
