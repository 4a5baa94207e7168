"""Whole models: the logits of the naive forward pass; the same bits on every ISA, by any threads, in any batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from conftest import shared
from logits_probe import BATCHES, THREADS, tokens
from quant_files import quantized_model
from rare_files import of_all_rare_types

from qllama import cpu

ISAS = [i.name for i in cpu.ISAS if cpu.supports(i)]
FLOATS = ["stories260K-f32.gguf", "llama-gqa.gguf"]
QUANTIZED = ["q256-Q8_0.gguf", "q256-Q4_0.gguf"]
RARE = "rare.gguf"
OTHERS = [
    f"books-5m-{t}.gguf" for t in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> file: F32, F16 with grouped heads, one model in Q8_0 and Q4_0 (output in Q6_K), one in other types, and
    one in all the rare ones."""
    folder = tmp_path_factory.mktemp("models")
    paths = [shared("models/stories260K-f32.gguf"), shared("oracles/models/llama-gqa.gguf")]
    paths += [quantized_model("q256", t, folder / f"q256-{t}.gguf") for t in ("Q8_0", "Q4_0")]
    paths += [shared(f"models/{name}") for name in OTHERS]
    paths.append(of_all_rare_types(folder / RARE)[0])
    return {p.name: p for p in paths}


@pytest.fixture(scope="module")
def logits(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ISA -> folder with what logits_probe.py left and printed."""
    folders = {}
    for isa in ISAS:
        folder = tmp_path_factory.mktemp(isa)
        script = Path(__file__).with_name("logits_probe.py")
        command = [sys.executable, str(script), str(folder), *map(str, files.values())]
        environment = {**os.environ, "QLLAMA_ISA": isa}
        printed = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        (folder / "sha256.json").write_bytes(printed)
        folders[isa] = folder
    return folders


def test_the_bits_of_logits_depend_on_nothing_but_the_model(logits):
    """Not on the ISA, nor on the number of threads, nor on how the prompt is cut into batches."""
    by_isa = {isa: json.loads((folder / "sha256.json").read_text()) for isa, folder in logits.items()}
    for name in (*FLOATS, *QUANTIZED, *OTHERS, RARE):
        found = {f"{isa} {how}": sha for isa, files in by_isa.items() for how, sha in files[name].items()}
        assert len(found) == len(ISAS) * len(THREADS) * len(BATCHES)
        assert len(set(found.values())) == 1, (name, found)


@pytest.mark.parametrize("name", FLOATS)
def test_logits_of_float_weights_are_those_of_the_naive_forward_pass(name, files, logits):
    """float32 against float64: what is seen is 3e-13."""
    got = np.load(logits[ISAS[0]] / f"{name}.npy")
    expected = naive.Llama(files[name]).logits(tokens(got.shape[1]))
    assert naive.nmse(got, expected) < 1e-11


@pytest.mark.parametrize("name", QUANTIZED)
def test_logits_of_quantized_weights_are_those_of_the_naive_forward_pass(name, files, logits):
    """Seen is 1e-14, until the int8 of one activation that is all but a tie falls the other way; from that token on the
    logits are off by a part of what quantizing the activations changes at all."""
    got = np.load(logits[ISAS[0]] / f"{name}.npy")
    model, ids = naive.Llama(files[name]), tokens(got.shape[1])
    expected = model.logits(ids, quantized=True)
    assert all(naive.nmse(g, e) < 1e-11 for g, e in zip(got[:10], expected, strict=False))
    assert naive.nmse(got, expected) < 0.5 * naive.nmse(expected, model.logits(ids))


def test_the_naive_forward_pass_gives_the_recorded_logits():
    """Else it would be no judge: llama.cpp's logits, which keep 17 bits (rounded: NMSE 3e-12)."""
    for name in ("llama-gqa", "llama-linear", "llama-yarn", "llama31-ropefreqs", "mistral-nemo-headdim"):
        recorded = np.load(shared(f"oracles/models/{name}.npz"))
        got = naive.Llama(shared(f"oracles/models/{name}.gguf")).logits(recorded["tokens_2"])
        assert naive.nmse(got, recorded["logits_2"]) < 1e-11
