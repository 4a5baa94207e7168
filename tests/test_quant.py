"""Block formats against gguf-py, and against the bytes that llama-quantize wrote."""

import hashlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import shared
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import NVFP4 as gguf_nvfp4
from gguf.quants import quantize as gguf_quantize
from naive_blocks import weights as naive_weights
from quant_files import dequantized_copy, encoded, quantized_model, recorded

from qllama import cpu, jit
from qllama.errors import InputError
from qllama.ggml import BY_NAME
from qllama.quant import FORMATS, NEEDS_IMPORTANCE, PIECE, dequantize, grids, native, prepare, quantize

WRITTEN_BY_GGUF_PY = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
ENCODED = [name for name, form in FORMATS.items() if form.encode or form.compiled]


def weights(rows: int = 6, n: int = 1024) -> np.ndarray:
    """Rows of very different magnitudes, with ties, zeros and runs of zeros. (rows, n) float32."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((rows, n)) * 10.0 ** rng.integers(-9, 4, (rows, 1))
    x[0] = rng.integers(-127, 128, n) / 2  # d = 1/2 or so: halves are ties
    x[1, : n // 2] = 0
    x[2] *= rng.random(n) < 0.05
    return x.astype(np.float32) + 0  # no -0.0: there gguf-py's Q4_0 is not llama.cpp's, see below


def random_blocks(name: str, n_blocks: int = 300) -> np.ndarray:
    """Blocks of random bits, their scales finite. (n_blocks, block bytes) uint8."""
    rng = np.random.default_rng(6)
    block = FORMATS[name].block
    blocks = rng.integers(0, 256, (n_blocks, block.itemsize), np.uint8).reshape(-1).view(block)
    floats = [blocks[name] for name in block.names if block[name].kind == "f"] if block.names else [blocks.view("<f2")]
    for scales in floats:
        scales[~np.isfinite(scales)] = 0
    if name == "IQ1_M":  # its f16 scale lies in four pieces: the topmost has no exponent of infinity
        blocks["scales"][:, 3] &= 0xBFFF
    return blocks.view(np.uint8).reshape(n_blocks, -1)


def blocks_of(x: np.ndarray, name: str) -> np.ndarray:
    """Encoded with the same importance for all columns where a format insists on having one."""
    return quantize(x, name, np.ones(x.shape[1]) if name in NEEDS_IMPORTANCE else None)


def written_by_llama_quantize(name: str) -> dict[tuple[str, str, bool], str]:
    """(source, tensor, whether an importance matrix went into it) -> sha256, of all recorded tensors of one type."""
    return {
        (kind, t["name"], file_type.endswith("+imatrix")): t["sha256"]
        for kind, files in recorded().items()
        for file_type, file in files["files"].items()
        for t in file.get("tensors", [])  # none where llama-quantize refused
        if t["type"] == name
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_has_the_size_that_the_type_table_says(name):
    assert FORMATS[name].block.itemsize == BY_NAME[name].nbytes


def same_as_naive(blocks: np.ndarray, name: str) -> bool:
    with np.errstate(over="ignore"):  # the largest scales of MXFP4 do
        expected = naive_weights(blocks.reshape(4, -1), name)
    got = dequantize(blocks, name, shape=expected.shape)
    return got.dtype == np.float32 and got.tobytes() == expected.astype("<f4").tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_decode_equals_gguf_py(name):
    """Or, of types that it does not decode, a decoder that takes one value after the other."""
    assert same_as_naive(random_blocks(name, 320), name)


EXTREMES = [0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-14, 65504, -65504, 1]  # zeros, subnormals, the ends of f16


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fill", [None, 0x00, 0xFF, 0x80, 0x7F])
def test_decode_equals_gguf_py_at_the_ends(name, fill):
    """Every bit of the quants alike, or random ones; scales from end to end, zeros of both signs."""
    blocks = random_blocks(name, 8 * len(EXTREMES))
    if fill is not None:
        blocks[:] = fill
    scales = np.tile(EXTREMES, 8)
    block = FORMATS[name].block
    typed = blocks.view(block)[:, 0]
    for field in block.names or ():
        if block[field].kind == "f":
            typed[field] = scales
    if name == "IQ1_M":
        halves = scales.astype("<f2").view("<u2")[:, None] >> np.array([0, 4, 8, 12], np.uint16) << 12
        typed["scales"] = typed["scales"] & 0xFFF | halves
    if block.names is None and fill in (0xFF, 0x7F):
        blocks[:] = 0x7B  # all bits of these would be NaN
    assert same_as_naive(blocks, name)


def test_all_scales_of_nvfp4():
    blocks = random_blocks("NVFP4", 256)
    blocks[:, :4] = np.arange(256)[:, None]
    assert same_as_naive(blocks, "NVFP4")


@pytest.mark.parametrize("name", WRITTEN_BY_GGUF_PY)
def test_encode_equals_gguf_py(name):
    x = weights()
    expected = gguf_quantize(x, GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(quantize(x, name), expected)


@pytest.mark.parametrize("name", [name for name in ENCODED if name != "NVFP4"])  # that it does not write
def test_encode_equals_llama_quantize(name):
    expected = written_by_llama_quantize(name)
    got = {
        (kind, tensor, weighted): hashlib.sha256(encoded(kind, tensor, name, weighted).tobytes()).hexdigest()
        for kind, tensor, weighted in expected
    }
    assert expected
    assert [key for key in expected if got[key] != expected[key]] == []


# What llama.cpp's ggml_quantize_chunk makes of the values below: the first digits of the SHA-256.
UNUSED_COLUMNS = """
Q4_0 4a32d08eb3d0d1c5
Q4_1 81f875393ed59504
Q5_0 2125faf419b163d5
Q5_1 4577753345c1cee3
Q8_0 a218c26fe9329d5f
Q2_K bb66cae7ce9a201b
Q3_K 80602fcb03075669
Q4_K 2dcf0b0e420f2137
Q5_K 6cba336aa6888029
Q6_K f576a744455b7431
IQ1_S 6b26f07dcab7ccdc
IQ1_M 979a8a67f2919155
IQ2_XXS d61ed9fa3c434710
IQ2_XS 8ab50c12b80f1349
IQ2_S 585826f0d9bbca40
IQ3_XXS d30b02c6b09c1e28
IQ3_S 34285c4bb34a25bd
IQ4_NL 8b1fac7c13c3d857
IQ4_XS 368c95cf1de30be3
"""


@pytest.mark.parametrize(("name", "expected"), [line.split() for line in UNUSED_COLUMNS.strip().split("\n")])
def test_columns_of_no_importance(name, expected):
    """Single ones, and so many that a group or a whole block has no other."""
    row, column = np.arange(8)[:, None], np.arange(1024)
    x = ((row * 7919 + column * 104729 + row * column**2) % 2001 - 1000).astype(np.float32) / 512
    importance = (column * 31 % 17).astype(np.float32)
    importance[256:560] = 0
    assert hashlib.sha256(quantize(x, name, importance)).hexdigest()[:16] == expected


TRAINED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("file", TRAINED)
def test_encode_equals_llama_quantize_on_a_trained_model(file):
    values = {t.name: np.asarray(t.data) for t in GGUFReader(shared("models/books-5m-f16.gguf")).tensors}
    for tensor in GGUFReader(shared(f"models/books-5m-{file}.gguf")).tensors:
        name = tensor.tensor_type.name
        if name not in ("F32", "F16"):
            got = quantize(values[tensor.name], name)
            assert np.array_equal(got, tensor.data.view(np.uint8).reshape(got.shape)), (tensor.name, name)


@pytest.mark.parametrize("name", ENCODED)
def test_rows_are_encoded_alike_alone_and_among_many(name):
    x = np.tile(weights(4), (PIECE // 2048, 1))  # two pieces
    many = blocks_of(x, name)
    assert np.array_equal(many[:4], many[-4:])
    assert np.array_equal(many[1:2], blocks_of(x[1:2], name))


@pytest.mark.parametrize("name", FORMATS)
def test_no_blocks_decode_to_no_values(name):
    assert dequantize(b"", name).shape == (0,)


@pytest.mark.parametrize("name", ENCODED)
def test_no_rows_encode_to_no_blocks(name):
    assert blocks_of(np.zeros((0, 256), np.float32), name).shape[0] == 0


@pytest.mark.parametrize("name", ENCODED)
def test_zeros(name):
    zeros = np.zeros((2, 512), np.float32)
    assert not dequantize(blocks_of(zeros, name), name).any()


def test_q4_0_of_negative_zeros_is_that_of_zeros():
    """llama.cpp's search for the largest magnitude starts from +0.0 and is not moved by -0.0."""
    zeros = np.zeros((1, 32), np.float32)
    assert np.array_equal(quantize(-zeros, "Q4_0"), quantize(zeros, "Q4_0"))


def test_mxfp4_at_powers_of_two_and_between_codes():
    """Where the exponent changes (in float32 the logarithm of some values below a power of two is whole), and where
    two codes are equally far."""
    powers = np.ldexp(np.float32(1), np.arange(-120, 126))
    x = np.zeros((3 * len(powers), 32), np.float32)
    x[:, 0] = np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])
    x[:, 1:30] = np.arange(-14, 15) / np.float32(8) * x[:, :1]
    x[:, 30] = np.nextafter(x[:, 17], np.float32(0))
    expected = gguf_quantize(x, GGMLQuantizationType.MXFP4)
    assert np.array_equal(quantize(x, "MXFP4"), expected)


def test_mxfp4_has_a_scale_for_the_smallest_magnitudes():
    """gguf-py's exponent would wrap around there."""
    x = np.ldexp(np.float32(1), np.repeat(np.arange(-128, -120), 32)).reshape(-1, 32)
    x[:, ::2] *= -1
    assert np.array_equal(dequantize(quantize(x, "MXFP4"), "MXFP4", x.shape), x)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q1_0", "Q2_0", "Q6_K", "TQ1_0", "TQ2_0"])
def test_magnitudes_below_f16_become_zero(name):
    x = np.full((1, 256), 1e-41, np.float32)
    assert not dequantize(quantize(x, name), name).any()


def test_dequantize_takes_bytes_and_views():
    x = weights()
    blocks = quantize(x, "Q4_0")
    assert np.array_equal(dequantize(blocks.tobytes(), "Q4_0"), dequantize(blocks, "Q4_0"))
    assert np.array_equal(dequantize(blocks[::2], "Q4_0", (3, 1024)), dequantize(blocks, "Q4_0", x.shape)[::2])


def test_quantize_takes_views():
    x = weights(6, 2048)
    assert np.array_equal(quantize(x[::2, :1024], "Q6_K"), quantize(x, "Q6_K")[::2, : 4 * 210])


def test_infinite_scales_of_a_foreign_file_decode_without_a_warning():
    block = np.zeros(1, FORMATS["Q8_0"].block)
    block["d"] = np.inf
    assert np.isnan(dequantize(block.view(np.uint8), "Q8_0")).all()


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(name, bad):
    x = np.ones((PIECE // 256 + 3, 256), np.float32)
    x[-2, 7] = bad
    with pytest.raises(InputError, match=f"^{name}: NaN or infinity in row {PIECE // 256 + 1}$"):
        blocks_of(x, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("F16", 65520),
        ("BF16", 3.4e38),
        ("Q4_0", 6e5),
        ("Q4_1", 2e6),
        ("Q4_1", -7e4),
        ("Q5_0", 1.2e6),
        ("Q5_1", 3e6),
        ("Q5_1", -7e4),
        ("Q8_0", 1e7),
        ("Q6_K", 1e9),
        ("Q6_K", 1e13),
        ("Q6_K", 1e30),
        ("Q1_0", 1e9),
        ("Q2_0", 7e4),
        ("TQ1_0", 7e4),
        ("TQ2_0", 7e4),
    ],
)
def test_values_too_large_are_refused_with_their_row(name, value):
    x = np.ones((3, 256), np.float32)
    x[1, 9] = value
    with pytest.raises(InputError, match=f"^a value too large for {name} in row 1$"):
        quantize(x, name)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 100), np.float32), "rows of 100 values, needed a multiple of 32"),
        (np.zeros((2, 0), np.float32), "rows of 0 values, needed a multiple of 32"),
        (np.zeros(64, np.float32), "1-dimensional float32, needed rows of float32, float16 or bfloat16"),
        (np.zeros((2, 32)), "2-dimensional float64, needed rows of float32, float16 or bfloat16"),
    ],
)
def test_arrays_that_are_not_rows_of_blocks_are_refused(array, reason):
    with pytest.raises(InputError, match=f"^Q8_0: {reason}"):
        quantize(array, "Q8_0")


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_half_precision_is_widened(name):
    half = weights().astype(np.float16)
    brain = quantize(weights(), "BF16").view("<u2")
    assert np.array_equal(quantize(half, name), quantize(half.astype(np.float32), name))
    assert np.array_equal(quantize(brain, name), quantize(dequantize(brain.view(np.uint8), "BF16", brain.shape), name))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_do_not_change_the_blocks(n_threads):
    x = np.tile(weights(4), (PIECE // 1024, 1))  # four pieces
    assert np.array_equal(quantize(x, "Q4_0", n_threads=n_threads), quantize(x, "Q4_0", n_threads=2))


def test_quantize_into_an_array():
    out = np.zeros((6, 1024 // 32 * 18), np.uint8)
    assert quantize(weights(), "Q4_0", out=out) is out
    assert np.array_equal(out, quantize(weights(), "Q4_0"))


@pytest.mark.parametrize(
    "out", [np.zeros((6, 575), np.uint8), np.zeros((6, 576), np.int8), np.zeros((6, 1152), np.uint8)[:, ::2]]
)
def test_an_array_that_does_not_fit_the_blocks_is_refused(out):
    with pytest.raises(InputError, match=r"^Q4_0: out is .*, needed contiguous uint8"):
        quantize(weights(), "Q4_0", out=out)


def test_errors_count_rows_from_the_first():
    x = weights()
    x[2, 5] = np.nan
    with pytest.raises(InputError, match=r"in row 1002$"):
        quantize(x, "Q4_0", first_row=1000)


@pytest.mark.parametrize(
    ("blocks", "shape", "reason"),
    [
        (b"\0" * 33, None, "33 bytes, needed a multiple of 34"),
        (np.zeros(34, np.int8), None, "blocks of dtype int8, needed uint8"),
        (b"\0" * 34, (2, 32), r"32 values, needed shape \(2, 32\)"),
        (b"\0" * 34, (-1,), r"32 values, needed shape \(-1,\)"),
    ],
)
def test_broken_blocks_are_refused(blocks, shape, reason):
    with pytest.raises(InputError, match=f"^Q8_0: {reason}$"):
        dequantize(blocks, "Q8_0", shape)


@pytest.mark.parametrize(("name", "what"), [("I16", "not implemented"), ("Q9_Z", "unknown"), ("q8_0", "unknown")])
def test_other_types_are_refused_by_name(name, what):
    for call in (lambda: dequantize(b"", name), lambda: quantize(weights(), name)):
        with pytest.raises(InputError, match=f"^tensor type {name} is {what}; implemented: F32, F16"):
            call()


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ENCODED])
def test_formats_that_are_only_decoded_are_refused_by_name(name):
    with pytest.raises(InputError, match=f"^quantizing to {name} is not implemented; implemented: F32, F16"):
        quantize(weights(), name)


@pytest.mark.parametrize(
    ("importance", "reason"),
    [
        (np.ones(1023), r"of shape \(1023,\), needed \(1024,\)"),
        (np.append(np.ones(1023), -1), "-1.0 of column 1023, needed 0 or more"),
        (np.append(np.nan, np.ones(1023)), "nan of column 0, needed 0 or more"),
        (np.append(np.inf, np.ones(1023)), "inf of column 0, needed 0 or more"),
    ],
)
def test_importance_that_does_not_fit_is_refused(importance, reason):
    with pytest.raises(InputError, match=f"^Q4_0: importance {reason}$"):
        quantize(weights(), "Q4_0", importance)


@pytest.mark.parametrize("name", NEEDS_IMPORTANCE)
def test_importance_that_is_missing_is_refused(name):
    with pytest.raises(InputError, match=f"^quantizing to {name} needs an importance matrix$"):
        quantize(weights(), name)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "MXFP4"])
def test_formats_without_a_choice_do_not_heed_importance(name):
    assert np.array_equal(quantize(weights(), name, np.arange(1024)), quantize(weights(), name))


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q6_K", "IQ4_XS"])
def test_a_column_without_importance_may_have_any_error(name):
    """The rest is then approximated better, or as well."""
    x, importance = weights(4, 512), np.ones(512, np.float32)
    importance[::2] = 0

    def error(w):
        d = dequantize(quantize(x, name, w), name, x.shape).astype(np.float64) - x
        return (d**2)[:, 1::2].sum()

    assert error(importance) < error(np.ones(512, np.float32))


def test_encoders_write_the_same_bytes_on_every_isa():
    """One of each kind: they share the rest."""
    found = []
    for isa in (i.name for i in cpu.ISAS if cpu.supports(i)):
        command = [sys.executable, str(Path(__file__).with_name("encode_probe.py")), "Q4_K", "Q6_K", "Q8_0", "IQ3_S"]
        environment = {**os.environ, "QLLAMA_ISA": isa}
        found.append(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(json.loads(found[0])) == 4
    assert len(set(found)) == 1


def test_nvfp4_has_the_scales_of_gguf_py_and_the_nearest_codes():
    x = np.clip(weights(), -2688, 2688)
    blocks = quantize(x, "NVFP4").view(FORMATS["NVFP4"].block)
    groups = x.reshape(-1, 4, 16)
    d = gguf_nvfp4.fp32_to_ue4m3(np.abs(groups).max(axis=2) / np.float32(6))
    assert np.array_equal(blocks["d"].reshape(d.shape), d)
    codes = gguf_nvfp4.ue4m3_to_fp32(d)[:, :, None, None].astype(np.float32) * np.float32(gguf_nvfp4.kvalues)
    nearest = np.abs(groups[..., None] - codes).argmin(axis=3).astype(np.uint8)
    assert np.array_equal(blocks["qs"].reshape(-1, 4, 8), nearest[:, :, :8] | nearest[:, :, 8:] << 4)


def test_nvfp4_ends_at_2688():
    x = np.full((2, 64), 2688, np.float32)
    assert np.array_equal(dequantize(quantize(x, "NVFP4"), "NVFP4", x.shape), x)
    x[1, 5] = 2689
    with pytest.raises(InputError, match=r"^a value too large for NVFP4 in row 1$"):
        quantize(x, "NVFP4")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.compiled])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_blocks_that_do_not_fill_the_lanes(name, rows):
    x = weights(17, 768)
    w = np.random.default_rng(2).random(768) if name.startswith(("Q5", "IQ")) else None
    assert np.array_equal(quantize(x[:rows], name, w), quantize(x, name, w)[:rows])


def test_prepare_loads_the_encoders_that_are_compiled():
    prepare(["Q4_K", "F16"])
    assert "encode.q4_k" in jit._loaded
    assert "encode.f16" not in jit._loaded


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_quantized_model_is_the_file_that_llama_quantize_wrote(name, tmp_path: Path):
    path = quantized_model("q256", name, tmp_path / "model.gguf")
    file = recorded()["q256"]["files"][name]
    reader = GGUFReader(path)
    assert path.stat().st_size == file["bytes"]
    assert reader.fields["general.file_type"].contents() == file["file_type"]
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        (t["name"], t["type"], t["shape"]) for t in file["tensors"]
    ]


def test_dequantized_copy_holds_the_same_values_in_f32(tmp_path: Path):
    path = quantized_model("q256", "Q4_0", tmp_path / "model.gguf")
    copy = GGUFReader(dequantized_copy(path, tmp_path / "f32.gguf"))
    original = GGUFReader(path)
    names = set(original.fields) - {"general.file_type"}
    assert all(copy.fields[n].contents() == original.fields[n].contents() for n in names)
    for ours, theirs in zip(copy.tensors, original.tensors, strict=True):
        assert ours.tensor_type == GGMLQuantizationType.F32
        assert np.array_equal(ours.data.reshape(-1), dequantize(theirs.data.view(np.uint8), theirs.tensor_type.name))


def test_a_table_lives_as_long_as_its_kernel_runs(monkeypatch):
    """Also one that no cache keeps, as when two threads make the first one at the same time."""
    made, alive = [], []

    def fresh(type_name):
        found = grids.search.__wrapped__(type_name)
        made.extend(weakref.ref(array) for array in found)
        return found

    def call(address):
        alive.extend(array() is not None for array in made[-3:])
        return callable_at(address)

    callable_at = jit.callable_at
    monkeypatch.setattr(native, "grids", SimpleNamespace(search=fresh))
    monkeypatch.setattr(jit, "callable_at", call)
    quantize(np.ones((1, 256), np.float32), "IQ3_S", n_threads=1)
    assert alive == [True] * 3
