"""The benchmarks run, answer in the shape they promise and have their statistics right. Nothing is timed."""

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from gguf import GGUFReader

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODEL = "oracles/models/llama-mha.gguf"

# Stands in for the Python that has llama-cpp-python: whatever script it is given, it is this engine.
FAKE_PYTHON = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import numpy as np
from worker import parser, run

class Fake:
    about = {{"version": "fake 1.0"}}
    def __init__(self, n_vocab):
        self.n_vocab = n_vocab
    def decode(self, ids, n_past):
        self.last = ids[-1]
    def logits(self):
        return np.ones(self.n_vocab, np.float32)

run(Fake(N_VOCAB), parser("").parse_args(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def _import_from_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    if sys.platform == "win32":
        pytest.skip("needs #! lines")
    with np.load(shared(MODEL).with_suffix(".npz")) as oracle:
        n_vocab = oracle["logits_0"].shape[1]
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON.replace("N_VOCAB", str(n_vocab)))
    path.chmod(0o755)
    return path


def start(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def small_run(peer_python: Path | str, *args: object) -> subprocess.CompletedProcess[str]:
    common = ("-m", shared(MODEL), "--tests", "pp5,tg3,tg2@d4", "-t", 1, "-r", 2, "--read-mib", 1)
    return start("compare.py", *common, "--peer-python", peer_python, *args)


def test_compare_writes_table_json_and_readme(fake_python: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- compare -->\nold\n<!-- /compare -->\nbelow\n")
    done = small_run(fake_python, "--json", tmp_path / "new" / "x.json", "--write-readme", readme)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "new" / "x.json").read_text())
    (model,) = result["models"]
    assert list(model["tests"]) == ["pp5", "tg3", "tg2@d4"]
    assert model["engines"]["llama.cpp"] == {"version": "fake 1.0"}
    assert 2 <= len(model["rounds"]) <= 6  # disturbed rounds are repeated
    for measured in model["rounds"]:
        for op in ("pp5", "tg3", "tg2@d4"):
            assert all(measured["seconds"][op][engine] > 0 for engine in ("qllama", "llama.cpp"))
        assert measured["read_gbps"] > 0
    assert "THEY HARDLY COMPUTE THE SAME" in done.stdout  # the fake's logits are all 1
    assert "| llama-mha.gguf | pp5 |" in done.stdout
    assert readme.read_text() == f"above\n<!-- compare -->\n{done.stdout}<!-- /compare -->\nbelow\n"


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_both_engines_compute_the_same(tmp_path: Path) -> None:
    done = small_run(sys.executable, "--json", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    rounds = json.loads((tmp_path / "x.json").read_text())["models"][0]["rounds"]
    assert max(r["nmse"] for r in rounds) < 1e-5  # both keep an f16 cache


def test_missing_model_is_one_line() -> None:
    done = start("compare.py", "-m", "no-such.gguf", "--read-mib", 1)
    assert done.returncode == 1
    assert "no-such.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_startup_gives_the_recorded_token(fake_python: Path, tmp_path: Path) -> None:
    path = shared(MODEL)
    with np.load(path.with_suffix(".npz")) as oracle:
        prompt, expected = oracle["greedy_prompt"], oracle["greedy_tokens"][0]
    ids = ",".join(map(str, prompt))
    common = ("-m", path, "--ids", ids, "-t", 1, "-r", 1, "--peer-python", fake_python)
    done = start("startup.py", *common, "--json", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert runs["qllama"][0]["output"].strip() == str(expected)
    assert runs["llama.cpp"][0]["output"].strip() == "0"  # of equal logits the first
    assert all(0 < run["first"] <= run["end"] and run["rss"] > 0 for (run,) in runs.values())


class Recorder:
    """An engine that notes what it is asked."""

    n_vocab = 1000

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        self.calls: list[tuple[list[int], int]] = []

    def decode(self, ids: Sequence[int], n_past: int) -> None:
        self.calls.append((list(ids), n_past))

    def logits(self) -> np.ndarray:
        return np.arange(self.n_vocab, dtype=np.float32)


def test_prefill_is_one_call_and_decode_is_one_per_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import worker

    engine = Recorder()
    requests = [{"op": op, "n": n, "depth": depth} for op, n, depth in (("pp", 3, 0), ("tg", 2, 0), ("tg", 1, 2))]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests))))
    worker.serve(engine)
    assert engine.calls == [([0, 919, 838], 0), ([0], 0), ([919], 1), ([0, 919], 0), ([838], 2)]
    about, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert about == {"about": {}}
    assert [a["logits"] for a in answers] == [[float(x) for x in range(0, 1000, 16)]] * 3


@pytest.mark.parametrize("name", ["llama-mha", "llama-tied"])
def test_bytes_per_token_leaves_out_a_separate_embedding(name: str) -> None:
    import compare

    path = shared(f"oracles/models/{name}.gguf")
    sizes = {t.name: int(t.n_bytes) for t in GGUFReader(path).tensors}
    embedding = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    assert compare.bytes_per_token(str(path)) == sum(sizes.values()) - embedding


def test_tests_have_the_names_of_llama_bench() -> None:
    import compare

    assert compare.named_tests("pp512,tg64@d4096") == {
        "pp512": {"op": "pp", "n": 512, "depth": 0},
        "tg64@d4096": {"op": "tg", "n": 64, "depth": 4096},
    }
    for wrong in ("", "pp", "tg0", "xx5", "pp5@4"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no test"):
            compare.named_tests(wrong)


def test_statistics() -> None:
    import compare
    import report

    assert report.spread([3.0, 1.0, 2.26]) == "2.3 (1.0-3.0)"
    assert report.pair_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert compare.nmse([1.0, 2.0], [1.0, 4.0]) == pytest.approx(4 / 17)


def test_only_undisturbed_rounds_count_unless_there_is_none() -> None:
    import compare

    quiet = {"quiet": True, "seconds": {"tg10": {"qllama": 2.0, "llama.cpp": 5.0}}}
    disturbed = {"quiet": False, "seconds": {"tg10": {"qllama": 2.5, "llama.cpp": 20.0}}}
    model = {"tests": {"tg10": {"op": "tg", "n": 10, "depth": 0}}, "rounds": [disturbed, quiet]}
    assert compare.speeds(model, "tg10") == [[5.0], [2.0]]
    model["rounds"] = [disturbed]
    assert compare.speeds(model, "tg10") == [[4.0], [0.5]]


def test_a_round_is_as_quiet_as_its_worst_measurement() -> None:
    import compare

    cores = {"prefill": {"qllama": 1.9, "llama.cpp": 2.0}, "decode": {"qllama": 2.0, "llama.cpp": 0.9}}
    assert compare.least_cores({"cores": cores}) == 0.9


def test_readme_has_a_place_for_every_table() -> None:
    text = (BENCHMARKS / "README.md").read_text()
    for name in ("compare", "startup"):
        assert 0 <= text.find(f"<!-- {name} -->") < text.find(f"<!-- /{name} -->")


def test_a_readme_without_a_place_is_refused(tmp_path: Path) -> None:
    import report

    readme = tmp_path / "README.md"
    readme.write_text("no comments\n")
    with pytest.raises(SystemExit, match="needs the comments"):
        report.replace_block(readme, "compare", "text")
