"""Importance matrices as they are collected, against NumPy."""

import numpy as np
import pytest
from conftest import shared

from qllama.cli import main
from qllama.gguf import open_gguf
from qllama.imatrix import load_imatrix
from qllama.model import Model

TOKENS = [1, 5, 900, 33, 1200, 7, 7, 64]


@pytest.fixture(scope="module")
def collected():
    model = Model(shared("models/books-5m-f16.gguf"), n_ctx=64, n_threads=2, n_batch=4)
    collector = model.collector()
    logits = model.forward(TOKENS, 0, len(TOKENS), collector)
    plain = model.forward(TOKENS, 0, len(TOKENS))
    model.close()
    return collector.sums, logits, plain


def test_the_step_is_the_same(collected):
    np.testing.assert_array_equal(collected[1], collected[2])


def test_inputs_of_the_first_layer(collected):
    """The embeddings, normalized, are what attention's matrices read."""
    with open_gguf(shared("models/books-5m-f16.gguf")) as gguf:
        x = gguf.data("token_embd.weight").view("<f2").reshape(2048, 256)[TOKENS].astype(np.float64)
        weight = gguf.data("blk.0.attn_norm.weight").view("<f4").astype(np.float64)
    normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weight
    for name in ("q", "k", "v"):
        found = collected[0][f"blk.0.attn_{name}.weight"]
        np.testing.assert_allclose(found.sums[0], (normed**2).sum(axis=0), rtol=1e-5)
        assert found.counts.tolist() == [len(TOKENS)]


def test_every_matrix_has_its_sums(collected):
    assert len(collected[0]) == 6 * 7 + 1
    assert {len(s.sums[0]) for name, s in collected[0].items() if "ffn_down" in name} == {768}
    assert all(np.isfinite(s.sums).all() and s.counts == len(TOKENS) for s in collected[0].values())


def test_the_command_writes_a_file_that_quantize_reads(tmp_path):
    model, out = str(shared("models/books-5m-Q8_0.gguf")), str(tmp_path / "m.gguf")
    with pytest.raises(SystemExit) as caught:
        main(["imatrix", "-m", model, "-f", str(shared("models/books-5m-valid.txt")), "-o", out, "-c", "64", "--chunks",
              "2"])  # fmt: skip
    assert not caught.value.code
    matrix = load_imatrix(out)
    assert matrix.n_chunks == 2 and matrix.chunk_size == 64 and len(matrix.tensors) == 42
    assert matrix.tensors["blk.3.ffn_up.weight"].counts.tolist() == [128]
    with pytest.raises(SystemExit) as caught:
        main(
            ["quantize", "--imatrix", out, str(shared("models/books-5m-f16.gguf")), str(tmp_path / "q.gguf"), "Q4_K_M"]
        )
    assert not caught.value.code
