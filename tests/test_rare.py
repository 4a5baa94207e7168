"""Whole models of the types that share a layout, or are seldom seen: they run, and give the logits of their weights."""

from pathlib import Path

import naive
import numpy as np
import pytest
from rare_files import RARE, SHAPES, models, of_all_rare_types, of_one_type

from qllama.errors import InputError
from qllama.kernels.layouts import GROWTH, LAYOUTS
from qllama.model import Model, warm_up

IDS = np.random.default_rng(3).integers(0, 48, 24)


def logits(path: Path) -> tuple[np.ndarray, list[str]]:
    m = Model(path, n_threads=2, type_k="f32", type_v="f32")
    found = m.forward(IDS, 0, len(IDS))
    warnings = m.warnings
    m.close()
    return found, warnings


@pytest.mark.parametrize("type_name", RARE)
def test_logits_are_those_of_the_naive_forward_pass(type_name, tmp_path):
    """Every matrix and the embedding of one type; the naive pass reads the weights widened to F32."""
    path, wide = of_one_type(type_name, tmp_path / "m.gguf")
    got, warnings = logits(path)
    model = naive.Llama(wide)
    expected = model.logits(IDS, quantized=True)
    rounding = naive.nmse(expected, model.logits(IDS))  # of the activations to int8
    # Until the int8 of an activation that is all but a tie falls the other way, as in test_isa.py.
    assert all(naive.nmse(g, e) < 1e-11 for g, e in zip(got[:3], expected[:3], strict=True))
    assert naive.nmse(got, expected) < 0.5 * rounding < 0.01
    bits, of_file = LAYOUTS[type_name].bits, LAYOUTS[type_name].type.bits
    line = f"weights take more memory than in the file: {type_name} {bits:.2f} bits each instead of {of_file:.2f}"
    assert warnings == ([line] if bits > GROWTH * of_file else [])


def test_products_are_scaled(tmp_path):
    """As NVFP4's are where a file has the scale of a whole matrix."""
    matrices = [name for name, shape in SHAPES.items() if len(shape) == 2 and "embd" not in name]
    scales = dict(zip(matrices, np.random.default_rng(5).uniform(0.5, 1.5, len(matrices)), strict=True))
    path, wide = models(dict.fromkeys(SHAPES, "NVFP4"), tmp_path / "m.gguf", scales)
    got, warnings = logits(path)
    expected = naive.Llama(wide).logits(IDS, quantized=True)
    assert np.median([naive.nmse(g, e) for g, e in zip(got, expected, strict=True)]) < 1e-11
    assert warnings == []


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_a_scale_that_is_no_number_is_refused(scale, tmp_path):
    path, _ = models(dict.fromkeys(SHAPES, "NVFP4"), tmp_path / "m.gguf", {"blk.1.ffn_down.weight": scale})
    with pytest.raises(InputError, match=r"tensor blk.1.ffn_down.scale is (inf|nan), needed a finite number"):
        Model(path)


def test_a_scale_of_what_has_none_is_refused(tmp_path):
    """Else it would be left out like any tensor that is not part of the model."""
    path, _ = models(dict.fromkeys(SHAPES, "NVFP4"), tmp_path / "m.gguf", {"token_embd.weight": 2.0})
    with pytest.raises(InputError, match=r"tensor token_embd.scale scales nothing that is known"):
        Model(path)


def test_growth_is_said_once_for_all_types(tmp_path):
    _, warnings = logits(of_all_rare_types(tmp_path / "m.gguf")[0])
    (line,) = warnings
    assert all(name in line for name in RARE if name not in ("Q8_1", "Q8_K", "Q2_0", "NVFP4"))


def test_a_model_compiles_the_kernels_of_its_types_alone(tmp_path):
    names = {kernel.name for kernel in warm_up(of_one_type("IQ2_XS", tmp_path / "m.gguf")[0])}
    layouts = {name for name in names if name.partition(".")[2] in ("pack", "matmul", "lookup")}
    assert layouts == {"iq2_xs.pack", "book8.matmul", "book8.lookup"}
