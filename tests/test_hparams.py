"""qllama.hparams: what real files say, what is refused, and RoPE against independent formulas."""

import math
from decimal import Decimal
from fractions import Fraction

import gguf_maker as make
import numpy as np
import pytest
from conftest import shared

from qllama.errors import FileError, InputError
from qllama.gguf import open_gguf
from qllama.hparams import FILE_TYPES, HParams, RopeScaling, rope_frequencies

NONE = object()  # as a value: leave the key out


def load(folder, changes=None, tensors=None, supported=("llama",)) -> HParams:
    """The hyper-parameters of the small model of gguf_maker with `changes` to its keys."""
    keys = {**make.LLAMA, **(changes or {})}
    content = make.model({key: value for key, value in keys.items() if value is not NONE}, tensors)
    with open_gguf(make.write(folder / "x.gguf", content)) as file:
        return HParams.from_metadata(file.metadata, supported, file.tensors if tensors else None)


def refused(folder, changes, tensors=None) -> str:
    with pytest.raises(FileError) as caught:
        load(folder, changes, tensors)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'x.gguf'}: ") and line.isprintable()
    return line.removeprefix(f"{folder / 'x.gguf'}: ")


# ---- models as they should be


def test_small_model(tmp_path):
    hparams = load(tmp_path, tensors=make.LLAMA_TENSORS)
    assert (hparams.architecture, hparams.n_vocab, hparams.n_ctx_train) == ("llama", 4, 128)
    assert (hparams.n_embd, hparams.n_layer, hparams.n_head, hparams.n_head_kv) == (64, 2, 4, 2)
    assert (hparams.head_dim, hparams.n_rot, hparams.n_ff) == (16, 16, 96)
    assert hparams.norm_rms_eps == np.float32(1e-5) and hparams.rope_freq_base == 10000.0
    assert hparams.rope_scaling.factor == 1.0 and hparams.rope_scaling.yarn_ext_factor == 0.0
    assert (hparams.n_expert, hparams.file_type, hparams.warnings) == (0, None, ())


# Numbers from the list of keys and tensors that came with these files.
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("models/stories260K-f32.gguf", (512, 512, 64, 5, 8, 4, 8, 172)),
        ("models/books-5m-Q4_0.gguf", (2048, 512, 256, 6, 8, 4, 32, 768)),
        ("oracles/models/llama-gqa.gguf", (288, 512, 64, 2, 4, 1, 16, 96)),
        ("oracles/models/llama-mha.gguf", (288, 512, 64, 2, 4, 4, 16, 96)),
        ("oracles/models/llama-tied.gguf", (288, 512, 64, 2, 4, 2, 16, 96)),
        ("oracles/models/llama-linear.gguf", (288, 512, 64, 2, 4, 2, 16, 96)),
        ("oracles/models/llama-yarn.gguf", (288, 512, 64, 2, 2, 1, 32, 96)),
        ("oracles/models/llama31-ropefreqs.gguf", (288, 131072, 64, 2, 1, 1, 64, 96)),
        ("oracles/models/mistral-nemo-headdim.gguf", (288, 512, 80, 2, 4, 2, 32, 96)),
    ],
)
def test_real_models(name, shape):
    with open_gguf(shared(name)) as file:
        h = HParams.from_metadata(file.metadata, ("llama",), file.tensors)
    assert (h.n_vocab, h.n_ctx_train, h.n_embd, h.n_layer, h.n_head, h.n_head_kv, h.head_dim, h.n_ff) == shape
    assert h.n_rot == h.head_dim and h.warnings == ()


def test_rope_keys_of_real_models():
    def scaling(name):
        with open_gguf(shared(f"oracles/models/{name}.gguf")) as file:
            return HParams.from_metadata(file.metadata, ("llama",), file.tensors).rope_scaling

    assert scaling("llama-linear") == RopeScaling("linear", 4.0, 512)
    assert scaling("llama-yarn") == RopeScaling("yarn", 4.0, 128, yarn_ext_factor=1.0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("oracles/models/mixtral.gguf", "llama.expert_count=4: not implemented: mixture of experts"),
        ("oracles/models/qwen3.gguf", "general.architecture=qwen3: not implemented; supported: llama"),
        ("oracles/quant/q256.imatrix.gguf", "general.type=imatrix: not a model that can run by itself"),
    ],
)
def test_real_models_that_are_refused(name, says):
    with open_gguf(shared(name)) as file, pytest.raises(FileError, match=says):
        HParams.from_metadata(file.metadata, ("llama",), file.tensors)


@pytest.mark.parametrize("kind", ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"])
def test_any_width_of_integer(tmp_path, kind):
    assert load(tmp_path, {"llama.block_count": (kind, 2)}).n_layer == 2


def test_explicit_head_size_and_partial_rotation(tmp_path):
    keys = {"llama.embedding_length": 80, "llama.rope.dimension_count": 8}
    keys |= {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    hparams = load(tmp_path, keys)
    assert (hparams.n_embd, hparams.head_dim, hparams.n_rot) == (80, 32, 8)


def test_defaults(tmp_path):
    """As many key-value heads as heads; the size of the vocabulary from wherever it is told."""
    hparams = load(tmp_path, {"llama.attention.head_count_kv": NONE, "llama.vocab_size": 4})
    assert (hparams.n_head_kv, hparams.n_vocab, hparams.warnings) == (4, 4, ())
    assert load(tmp_path, {"tokenizer.ggml.tokens": NONE, "llama.vocab_size": 7}).n_vocab == 7


def test_values_per_layer_that_are_equal(tmp_path):
    keys = {
        "attention.head_count": [4, 4],
        "attention.head_count_kv": [2, 2],
        "feed_forward_length": [96, 96],
    }
    assert load(tmp_path, {f"llama.{key}": value for key, value in keys.items()}) == load(tmp_path)


def test_another_architecture_has_its_own_keys(tmp_path):
    keys = {key.replace("llama.", "qwen3."): value for key, value in make.LLAMA.items() if "token" not in key}
    content = make.model({**keys, "general.architecture": "qwen3", "qwen3.vocab_size": 9})
    with open_gguf(make.write(tmp_path / "x.gguf", content)) as file:
        hparams = HParams.from_metadata(file.metadata, ("llama", "qwen3"))
    assert (hparams.architecture, hparams.n_layer, hparams.n_vocab) == ("qwen3", 2, 9)


def test_neutral_values_pass(tmp_path):
    neutral = {
        "expert_count": 0, "attention.causal": True, "attention.sliding_window": 0, "logit_scale": 1.0,
        "attention.clamp_kqv": 0.0, "use_parallel_residual": False, "rope.scaling.finetuned": False,
        "tensor_data_layout": "Meta AI original pth", "attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    assert load(tmp_path, {f"llama.{key}": value for key, value in neutral.items()}) == load(tmp_path)


# ---- warnings


@pytest.mark.parametrize("value", [0, 2**31 - 1, 2**32 - 1, ("u64", 2**63), ("i32", -1)])
def test_absurd_context_length_is_replaced(tmp_path, value):
    hparams = load(tmp_path, {"llama.context_length": value})
    (warning,) = hparams.warnings
    assert hparams.n_ctx_train == 4096 and "llama.context_length=" in warning


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general.file_type": 999}, "general.file_type=999: unknown file type"),
        ({"llama.vocab_size": 5}, "llama.vocab_size=5: ignored, the vocabulary has 4 tokens"),
        (
            {"llama.new_key": 1, "llama.other\x1b": "x"},
            "unknown and ignored: llama.new_key, llama.other\\x1b",
        ),
    ],
)
def test_warnings(tmp_path, changes, says):
    (warning,) = load(tmp_path, changes).warnings
    assert says in warning and warning.isprintable()


def test_file_types_are_those_of_llama_cpp(tmp_path):
    import gguf

    theirs = {int(t): t.name for t in gguf.LlamaFileType if t != gguf.LlamaFileType.GUESSED}
    assert {key: name for key, name in FILE_TYPES.items() if key in theirs} == {
        key: name.removeprefix("MOSTLY_").removeprefix("ALL_") for key, name in theirs.items()
    }
    assert load(tmp_path, {"general.file_type": 15}).file_type == 15


# ---- refusals


def test_all_missing_keys_at_once(tmp_path):
    required = ["block_count", "context_length", "embedding_length", "feed_forward_length",
                "attention.head_count", "attention.layer_norm_rms_epsilon"]  # fmt: skip
    line = refused(tmp_path, {f"llama.{key}": NONE for key in required})
    assert line == "missing keys " + ", ".join(f"llama.{key}" for key in required)
    assert refused(tmp_path, {"llama.block_count": NONE}) == "missing key llama.block_count"


@pytest.mark.parametrize("value", ["", "unknown", "../../etc/passwd", "%s%n", "llama\x1b[2J"])
def test_unknown_architectures(tmp_path, value):
    line = refused(tmp_path, {"general.architecture": value})
    assert line.startswith("general.architecture=") and line.endswith("not implemented; supported: llama")


def bad(key, *values, says="", **more):
    return [({f"llama.{key}": value, **more}, f"llama.{key}=", says) for value in values]


WIDE = {"llama.attention.key_length": 16, "llama.attention.value_length": 16}
REFUSED = [
    *bad("block_count", "2", 2.0, [2, 2], says="must be an integer"),
    *bad("block_count", ("i32", -1), 0, 1025, 10**6, 2**32 - 1, says="must be from 1 to 1024"),
    *bad("embedding_length", 0, 2**32 - 1, says="must be from 1 to 1048576"),
    ({"llama.embedding_length": 1}, "llama.attention.head_count=4", "1 % 4 != 0"),
    ({"llama.embedding_length": 63}, "llama.attention.head_count=4", "63 % 4 != 0"),
    *bad("feed_forward_length", 0, 2**32 - 1, "96", says="must be"),
    *bad("feed_forward_length", [96, 64], says="not implemented: values that differ"),
    *bad("attention.head_count", 0, 2**32 - 1, says="must be from 1 to 16384"),
    *bad("attention.head_count", 3, 65, says="must divide", **{"llama.attention.head_count_kv": 1}),
    *bad("attention.head_count", [4], [4, 4, 4], says="one value for each of 2 layers"),
    *bad("attention.head_count", [4, 2], says="not implemented: values that differ"),
    *bad("attention.head_count", [-4, -4], says="each is -4, must be from 1"),
    *bad("attention.head_count", "4", ("arr", "u8", [4, 4]), ["4", "4"], says="must be an"),
    *bad("attention.head_count_kv", 0, 2**32 - 1, says="must be from 1 to 16384"),
    *bad("attention.head_count_kv", 8, 3, says="must divide the 4 heads"),
    *bad("attention.key_length", 0, says="must be from 1"),
    *bad("attention.key_length", 7, 15, says="must be even"),
    ({"llama.embedding_length": 60}, "llama.attention.head_count=4", "a head is 15 wide, must be even"),
    *bad("attention.value_length", 8, says="not implemented: values of another width than keys (16)"),
    *bad("rope.dimension_count", 0, 15, 17, 32, 2**31, says="must be even, from 2 to the head width 16"),
    *bad("rope.freq_base", 0.0, -1.0, says="must be greater than 0"),
    *bad("rope.freq_base", math.nan, math.inf, says="must be finite"),
    *bad("rope.freq_base", 1.0, says="greater than 1 for YaRN", **{"llama.rope.scaling.type": "yarn"}),
    *bad("rope.scaling.factor", 0.0, -1.0, says="must be greater than 0"),
    *bad("rope.scaling.factor", math.nan, math.inf, says="must be finite"),
    *bad("rope.scale_linear", 0.0, says="must be greater than 0"),
    *bad("rope.scaling.type", "zzz", "longrope", "", says="not implemented; supported: none, linear, yarn"),
    *bad("rope.scaling.type", 1, says="must be a string"),
    *bad("rope.scaling.original_context_length", 0, 2**32 - 1, says="must be from 1 to 16777216"),
    *bad("rope.scaling.yarn_beta_fast", 0.0, math.nan, says="must be"),
    *bad("rope.scaling.attn_factor", -1.0, math.inf, says="must be"),
    *bad("attention.layer_norm_rms_epsilon", -1.0, 1.0, says="must be from 0 up to 1"),
    *bad("attention.layer_norm_rms_epsilon", math.nan, math.inf, says="must be finite"),
    *bad("expert_count", 8, 10**9, says="not implemented: mixture of experts", **{"llama.expert_used_count": 9}),
    *bad("attention.causal", False, says="not implemented: attention that is not causal"),
    *bad("attention.sliding_window", 4096, says="not implemented: sliding-window attention"),
    *bad("attention.sliding_window_pattern", [1, 0], says="not implemented: sliding-window attention"),
    *bad("attention.clamp_kqv", 8.0, math.nan, says="not implemented: clamping"),
    *bad("attn_logit_softcapping", 50.0, says="not implemented: softcapping"),
    *bad("final_logit_softcapping", 30.0, says="not implemented: softcapping"),
    *bad("rope.dimension_sections", [8, 8], says="not implemented: RoPE in sections"),
    *bad("logit_scale", 0.5, says="not implemented: scaled output logits"),
    *bad("use_parallel_residual", True, says="not implemented: parallel residual"),
    *bad("vocab_size", ("i32", -1), 2**32 - 1, says="must be from 0"),
    ({"general.architecture": 7}, "general.architecture=7", "is u32, must be a string"),
    ({"general.architecture": NONE}, "missing key general.architecture", ""),
    ({"general.type": "adapter"}, "general.type=adapter", "not a model that can run by itself"),
    ({"general.file_type": "Q4_0"}, "general.file_type=Q4_0", "is str, must be an integer"),
    ({"tokenizer.ggml.tokens": NONE}, "no vocabulary: missing keys tokenizer.ggml.tokens", ""),
    ({"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens=abc", "is str, must be an array"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens=[i32 x 2]", "must be an array of str"),
]


@pytest.mark.parametrize(("changes", "key", "says"), REFUSED)
def test_refused_naming_key_and_value(tmp_path, changes, key, says):
    line = refused(tmp_path, changes)
    assert line.startswith(key) and says in line


@pytest.mark.parametrize(
    ("changes", "tensors", "says"),
    [
        (
            {"llama.block_count": 3},
            {},
            "llama.block_count=3: tensors for 2 layers, too many or missing: blk.2",
        ),
        (
            {"llama.block_count": 1},
            {},
            "llama.block_count=1: tensors for 2 layers, too many or missing: blk.1",
        ),
        (
            {},
            {"blk.1\x1b.x": (1,)},
            "llama.block_count=2: tensors for 3 layers, too many or missing: blk.1\\x1b",
        ),
        ({"tokenizer.ggml.tokens": ["a"] * 3}, {}, "tokens=[str x 3]: token_embd.weight has 4 rows"),
        ({"tokenizer.ggml.tokens": ("arr", "str", [])}, {}, "tokens=[str x 0]: token_embd.weight has 4 rows"),
    ],
)
def test_keys_that_do_not_fit_the_tensors(tmp_path, changes, tensors, says):
    assert refused(tmp_path, changes, {**make.LLAMA_TENSORS, **tensors}).endswith(says)


# ---- RoPE


def frequencies(folder, rope_freqs=None, n_rot=16, **keys):
    changes = {"llama.attention.key_length": n_rot, "llama.attention.value_length": n_rot}
    changes |= {f"llama.rope.{key.replace('__', '.')}": value for key, value in keys.items()}
    return rope_frequencies(load(folder, changes), rope_freqs)


def plain(base, n_rot):
    return np.array([base ** (-2 * i / n_rot) for i in range(n_rot // 2)])


def test_rope_powers_of_ten_are_correctly_rounded(tmp_path):
    inv_freq, mscale = frequencies(tmp_path, n_rot=8)
    assert inv_freq.dtype == np.float64 and inv_freq.tolist() == [1.0, 0.1, 0.01, 0.001] and mscale == 1.0


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6, 150000.0])
def test_rope_frequencies_are_the_nearest_doubles(tmp_path, base):
    """f ** (n_rot / 2) = 1 / base ** i, checked exactly half a unit in the last place to either side."""
    n_rot = 32
    for i, f in enumerate(frequencies(tmp_path, n_rot=n_rot, freq_base=base)[0].tolist()):
        half = Fraction(math.ulp(f)) / 2
        lower, upper = ((Fraction(f) + side) ** (n_rot // 2) for side in (-half, half))
        assert lower <= Fraction(1, int(base) ** i) <= upper


@pytest.mark.parametrize("n_rot", [2, 6, 64, 96, 128])
def test_rope_without_scaling(tmp_path, n_rot):
    inv_freq, mscale = frequencies(tmp_path, n_rot=n_rot, freq_base=5e5)
    np.testing.assert_allclose(inv_freq, plain(5e5, n_rot), rtol=1e-14)
    assert inv_freq.shape == (n_rot // 2,) and mscale == 1.0


def test_rope_linear(tmp_path):
    expected = plain(1e4, 16) / 4
    for keys in (
        {"scaling__type": "linear", "scaling__factor": 4.0},
        {"scaling__factor": 4.0},
        {"scale_linear": 4.0},
    ):
        inv_freq, mscale = frequencies(tmp_path, **keys)
        np.testing.assert_allclose(inv_freq, expected, rtol=1e-14)
        assert mscale == 1.0


def test_rope_type_none_ignores_the_factor(tmp_path):
    inv_freq, _ = frequencies(tmp_path, scaling__type="none", scaling__factor=4.0)
    np.testing.assert_allclose(inv_freq, plain(1e4, 16), rtol=1e-14)


def test_rope_factors_of_llama_3_1():
    """The tensor in the file against the rule Meta published: factor 8, low 1, high 4, 8192 positions."""

    def stretched(freq):
        wavelength = 2 * math.pi / freq
        smooth = min(1.0, max(0.0, (8192 / wavelength - 1) / (4 - 1)))
        return (1 - smooth) * freq / 8 + smooth * freq

    with open_gguf(shared("oracles/models/llama31-ropefreqs.gguf")) as file:
        hparams = HParams.from_metadata(file.metadata, ("llama",), file.tensors)
        factors = file.data("rope_freqs.weight").view("<f4").copy()
    inv_freq, mscale = rope_frequencies(hparams, factors)
    np.testing.assert_allclose(inv_freq, [stretched(freq) for freq in plain(5e5, 64)], rtol=1e-6)
    assert mscale == 1.0


@pytest.mark.parametrize("factors", [np.ones(7), np.ones((8, 1)), np.zeros(8), np.full(8, -1.0), np.full(8, np.nan)])
def test_rope_factors_that_do_not_fit(tmp_path, factors):
    with pytest.raises(InputError, match=r"rope_freqs\.weight: must be 8 numbers greater than 0"):
        frequencies(tmp_path, factors)


def yarn(base, n_rot, factor, n_ctx, fast=32.0, slow=1.0):
    """YaRN as the reference implementation of its authors has it (arXiv 2309.00071), in plain floats."""

    def correction(rotations):
        return n_rot * math.log(n_ctx / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(correction(fast)), 0), min(math.ceil(correction(slow)), n_rot - 1)
    out = []
    for i, freq in enumerate(plain(base, n_rot)):
        ramp = min(1.0, max(0.0, (i - low) / max(high - low, 0.001)))
        out.append(freq / factor * ramp + freq * (1 - ramp))
    return np.array(out), 0.1 * math.log(factor) + 1


@pytest.mark.parametrize(
    ("base", "n_rot", "factor", "n_ctx"),
    [
        (1e4, 32, 4.0, 128),
        (1e4, 128, 16.0, 4096),
        (1e6, 128, 4.0, 32768),
        (5e5, 64, 8.0, 8192),
        (150000.0, 64, 32.0, 4096),
    ],
)
def test_rope_yarn(tmp_path, base, n_rot, factor, n_ctx):
    keys = {"scaling__type": "yarn", "scaling__factor": factor, "scaling__original_context_length": n_ctx}
    inv_freq, mscale = frequencies(tmp_path, n_rot=n_rot, freq_base=base, **keys)
    expected, expected_mscale = yarn(base, n_rot, factor, n_ctx)
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-14)
    assert mscale == pytest.approx(expected_mscale, rel=1e-15)
    assert inv_freq[0] == 1.0 and inv_freq[-1] < plain(base, n_rot)[-1]  # fast kept, slow stretched


def test_rope_yarn_options(tmp_path):
    keys = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 4096}
    betas = {"scaling__yarn_beta_fast": 16.0, "scaling__yarn_beta_slow": 2.0, "scaling__attn_factor": 2.0}
    inv_freq, mscale = frequencies(tmp_path, n_rot=64, **keys, **betas)
    expected, expected_mscale = yarn(1e4, 64, 4.0, 4096, 16.0, 2.0)
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-14)
    assert mscale == pytest.approx(2 * expected_mscale, rel=1e-15)
    # a factor of each frequency, and half a share of what is not stretched
    factors = np.linspace(1, 2, 32)
    inv_freq, _ = frequencies(tmp_path, factors, n_rot=64, **keys, scaling__yarn_ext_factor=0.5)
    base, (full, _) = plain(1e4, 64), yarn(1e4, 64, 4.0, 4096)
    np.testing.assert_allclose(inv_freq, (base / 4 + (full - base / 4) / 2) / factors, rtol=1e-14)


def test_rope_yarn_without_extrapolation_is_linear(tmp_path):
    """llama.cpp then takes the magnitude from the file, too."""
    keys = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__yarn_ext_factor": 0.0}
    inv_freq, mscale = frequencies(tmp_path, **keys, scaling__yarn_attn_factor=1.5)
    np.testing.assert_allclose(inv_freq, plain(1e4, 16) / 4, rtol=1e-14)
    assert mscale == 1.5


def test_rope_yarn_that_shrinks_has_no_magnitude(tmp_path):
    _, mscale = frequencies(tmp_path, scaling__type="yarn", scaling__factor=0.5)
    assert mscale == 1.0


def test_rope_leaves_the_decimal_context_alone(tmp_path):
    before = Decimal(1) / 3
    frequencies(tmp_path, scaling__type="yarn", scaling__factor=4.0)
    assert Decimal(1) / 3 == before
