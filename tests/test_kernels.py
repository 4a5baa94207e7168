"""Every kernel against its NumPy twin, on the ISA of this process (QLLAMA_ISA); whole models are test_isa.py's."""

import math

import naive
import numpy as np
import pytest
from kernel_runner import as_rows, ld, lookup, matmul, memory, pack, q8_rows, quantize, run, same_bits

from qllama.kernels.layouts import LAYOUTS

INTEGER = [name for name, layout in LAYOUTS.items() if layout.activation == "q8"]
ULP = 2.0**-24  # half the distance of float32 neighbours, relative: what one rounding costs at most

# Types that share a wider layout: bits per weight in memory, at most.
RARE = {
    "IQ1_S": 3.45, "IQ1_M": 3.45, "IQ2_XXS": 3.45, "IQ2_XS": 3.45, "IQ2_S": 3.45, "IQ3_XXS": 4.45, "IQ3_S": 4.45,
    "Q1_0": 2.25, "TQ1_0": 2.25, "TQ2_0": 2.25,
}  # fmt: skip

# Rows that fill panels of 32 and half panels of 16, and that do not.
N_OUTS = [1, 31, 32, 45, 97]


def n_ins(type_name: str) -> list[int]:
    block = LAYOUTS[type_name].type.block
    return [1, 5, 80] if block == 1 else [block, 3 * block]


def random_blocks(type_name: str, n_out: int, n_in: int, seed: int = 0) -> np.ndarray:
    """Rows of random bits, their scales small and finite. (n_out, bytes of a row) uint8."""
    rng = np.random.default_rng((seed, n_out, n_in))
    layout = LAYOUTS[type_name]
    if layout.type.block == 1:
        values = rng.standard_normal((n_out, n_in)).astype(np.float32)
        values[rng.random(values.shape) < 0.05] *= np.float32(2.0**-20)  # subnormal in f16
        if type_name == "BF16":
            return np.ascontiguousarray(values.view("<u2")[:, 1::2]).view(np.uint8)
        return values.astype({"F32": "<f4", "F16": "<f2"}[type_name]).view(np.uint8)
    blocks = rng.integers(0, 256, (n_out, n_in // layout.type.block, layout.type.nbytes), np.uint8)
    exponents = rng.integers(-24, 2, blocks.shape[:2])  # some scales subnormal, of both signs
    set_scales(blocks, type_name, rng.standard_normal(blocks.shape[:2]) * 2.0**exponents)
    return blocks.reshape(n_out, -1)


def set_scales(blocks: np.ndarray, type_name: str, d: np.ndarray | float) -> None:
    """Set the f16 scale of (..., block bytes), and that of the mins; in MXFP4 to the power of two below.

    NVFP4 has none. That of Q8_K is a float32, that of IQ1_M lies in the highest nibbles of four words.
    """
    if type_name == "MXFP4":
        blocks[..., 0] = np.frexp(d)[1] + 127
    if type_name == "Q8_K":
        blocks[..., :4] = np.asarray(d, "<f4")[..., None].view(np.uint8)
    if type_name == "IQ1_M":
        nibbles = np.asarray(d, "<f2").view("<u2")[..., None] >> np.array([0, 4, 8, 12], np.uint16)
        blocks[..., 49::2] = blocks[..., 49::2] & 15 | (nibbles & 15) << 4
    for at, factor in ((naive.PARTS[type_name].d, 1), (naive.PARTS[type_name].dmin, -0.75)):
        if at is not None:
            blocks[..., at : at + 2] = np.asarray(np.multiply(d, factor), "<f2")[..., None].view(np.uint8)


def random_activations(n_tokens: int, n: int, seed: int = 1) -> np.ndarray:
    """Blocks of very different size, some of them zero. (n_tokens, n) float32."""
    rng = np.random.default_rng((seed, n_tokens, n))
    x = rng.standard_normal((n_tokens, n)).astype(np.float32)
    for start in range(0, n, 32):
        x[:, start : start + 32] *= np.float32(10.0) ** rng.integers(-3, 3, (n_tokens, 1))
    x[-1, : n // 2] = 0
    return x


def magnitude(blocks: np.ndarray, type_name: str, x: np.ndarray) -> np.ndarray:
    """What rounding errors of W x are relative to: the sum of the sizes of all terms. (n_tokens, n_out)."""
    if type_name in INTEGER:
        scales, q, mins = naive.take_apart(blocks, type_name)
        w = (np.abs(np.float64(scales))[:, :, None] * np.abs(q) + np.abs(mins)[:, :, None]).reshape(len(blocks), -1)
    else:
        w = np.abs(np.float64(naive.weights(blocks, type_name)))
    return np.abs(np.float64(x)) @ w.T


# ---- packed weights


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_packed_weights_take_the_bits_of_the_file_but_for_rare_types(type_name):
    layout = LAYOUTS[type_name]
    n_in = 16 * layout.type.block
    growth = layout.size(320, n_in) / (320 * n_in * layout.type.bits / 8)
    assert growth == pytest.approx(layout.bits / layout.type.bits)
    assert (growth <= 1.06) == (type_name not in RARE)
    assert layout.bits <= RARE.get(type_name, 32)


@pytest.mark.parametrize("type_name", LAYOUTS)
@pytest.mark.parametrize("n_out", [1, 45, 97])
def test_lookup_gives_the_values_of_gguf_py(type_name, n_out):
    n_in = n_ins(type_name)[-1]
    blocks = random_blocks(type_name, n_out, n_in)
    tokens = [n_out - 1, *range(n_out), 0]
    got = lookup(type_name, pack(type_name, blocks), n_in, tokens)
    assert same_bits(got.copy(), naive.weights(blocks, type_name)[tokens])


def test_lookup_of_all_finite_halves():
    bits = np.arange(65536, dtype="<u2")
    halves = bits[np.isfinite(bits.view("<f2"))].reshape(-1, 64)
    got = lookup("F16", pack("F16", halves.view(np.uint8)), 64, list(range(len(halves))))
    assert same_bits(got.copy(), halves.view("<f2").astype(np.float32))


def test_lookup_of_all_exponents_and_codes_of_mxfp4():
    blocks = np.zeros((256, 17), np.uint8)
    blocks[:, 0] = np.arange(256)
    blocks[:, 1:] = np.arange(16) * 17
    with np.errstate(over="ignore"):  # 12 * 2**127
        expected = naive.weights(blocks, "MXFP4")
    assert same_bits(lookup("MXFP4", pack("MXFP4", blocks), 32, list(range(256))).copy(), expected)


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_packing_is_the_same_by_any_number_of_threads(type_name):
    blocks = random_blocks(type_name, 300, n_ins(type_name)[-1])
    one = pack(type_name, blocks)
    assert all(np.array_equal(pack(type_name, blocks, n_threads), one) for n_threads in (2, 4))


# ---- matmul


@pytest.mark.parametrize("type_name", LAYOUTS)
@pytest.mark.parametrize("n_tokens", range(1, 10))
def test_matmul_gives_the_bits_of_its_twin(type_name, n_tokens):
    for n_in in n_ins(type_name):
        n_out = N_OUTS[n_tokens % len(N_OUTS)]
        blocks, x = random_blocks(type_name, n_out, n_in), random_activations(n_tokens, n_in)
        product = naive.matmul_bits(blocks, type_name, x)
        packed = pack(type_name, blocks)
        assert same_bits(matmul(type_name, packed, n_out, x).copy(), product)
        residual = random_activations(n_tokens, n_out, seed=2)
        assert same_bits(matmul(type_name, packed, n_out, x, add_to=residual).copy(), residual + product)


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_matmul_is_the_product_with_the_weights_of_gguf_py(type_name):
    """A running sum of n FMAs whose scales are rounded once is off by at most (n + 2) roundings of the terms' sizes."""
    n_out, n_in = 97, n_ins(type_name)[-1]
    blocks, x = random_blocks(type_name, n_out, n_in, seed=3), random_activations(5, n_in)
    got = matmul(type_name, pack(type_name, blocks), n_out, x)
    w = naive.weights(blocks, type_name)
    read = naive.dequantized_activations(x) if type_name in INTEGER else x
    bound = (n_in + 2) * ULP * magnitude(blocks, type_name, read)
    assert (np.abs(got - np.float64(read) @ np.float64(w).T) <= bound).all()


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_matmul_does_not_depend_on_batch_threads_or_grain(type_name):
    n_out, n_in = 203, n_ins(type_name)[-1]
    packed = pack(type_name, random_blocks(type_name, n_out, n_in))
    x = random_activations(9, n_in)
    whole = matmul(type_name, packed, n_out, x).copy()
    for t in range(9):
        assert same_bits(matmul(type_name, packed, n_out, x[t : t + 1]).copy(), whole[t : t + 1])
    for n_threads, grain in ((1, 100), (2, 1), (2, 3), (4, 1)):
        assert same_bits(matmul(type_name, packed, n_out, x, n_threads=n_threads, grain=grain).copy(), whole)


def extreme_blocks(type_name: str, n_out: int, n_in: int, fill: int, group_scale: int) -> np.ndarray:
    """Every byte of the quants is `fill`, every byte of the groups' scales `group_scale`, d is 1."""
    layout = LAYOUTS[type_name]
    blocks = np.full((n_out, n_in // layout.type.block, layout.type.nbytes), fill, np.uint8)
    set_scales(blocks, type_name, 1.0)
    set_already = type_name in ("MXFP4", "Q8_K", "IQ1_M")
    scales_at = {} if set_already else naive.PARTS[type_name].scales
    for at, scales in scales_at.items():
        blocks[:, :, at : at + len(scales)] = np.uint8(group_scale % 256)
    return blocks.reshape(n_out, -1)


# Signs of activations that make the sums of 2 and of 4 neighbours as large as they get, and mixed ones.
SIGNS = [(1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, 1, -1), (1, 1, -1, -1)]


@pytest.mark.parametrize("type_name", INTEGER)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0])  # in Q8_0: 0, -1, -128, 127
@pytest.mark.parametrize("group_scale", [-128, 127, -1])  # in K-quants -1 is 63, the most that 6 bits hold
def test_integer_dots_never_saturate(type_name, fill, group_scale):
    n_in = n_ins(type_name)[0]
    blocks = extreme_blocks(type_name, 33, n_in, fill, group_scale)
    x = np.array([np.tile(signs, n_in // 4) for signs in SIGNS], np.float32) * 3  # -127 and 127 when quantized
    assert same_bits(matmul(type_name, pack(type_name, blocks), 33, x).copy(), naive.matmul_bits(blocks, type_name, x))


@pytest.mark.parametrize("type_name", INTEGER)
def test_alternating_extremes(type_name):
    """Weights from end to end of their range with the activations' signs: the largest products there are."""
    n_in = n_ins(type_name)[-1]
    rng = np.random.default_rng(4)
    blocks = extreme_blocks(type_name, 64, n_in, 0, 127)
    size = LAYOUTS[type_name].type.nbytes
    shaped = blocks.reshape(64, -1, size)
    shaped[:] = rng.choice(np.array([0x00, 0xFF, 0x80, 0x7F], np.uint8), shaped.shape)
    set_scales(shaped, type_name, -1.5)
    x = rng.choice(np.array([-1, 1], np.float32), (4, n_in))
    assert same_bits(matmul(type_name, pack(type_name, blocks), 64, x).copy(), naive.matmul_bits(blocks, type_name, x))


# ---- activations to int8


def hard_activations() -> np.ndarray:
    """Rows of 96: zeros, ties, one huge or tiny value among small ones, the ends of float32, subnormals."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((12, 96)).astype(np.float32)
    x[0] = 0
    x[1] = (rng.integers(-254, 255, 96) / 2).astype(np.float32)  # with amax 127 every half is a tie
    x[1, ::32] = 127
    x[2, 5], x[2, 40] = 1e30, -1e-20
    x[3] *= np.float32(1e-30)
    x[4] *= np.float32(1e-38)  # subnormal after a few
    x[5] *= np.float32(3e37)
    x[6] = np.float32(3.4028235e38) * np.sign(x[6])
    x[7, :32], x[7, 32:64] = np.float32(1e-30), np.nextafter(np.float32(1e-30), np.float32(0))
    x[8] = -1
    x[9] = np.where(np.arange(96) % 2, 127, -127)
    x[10] = -0.0
    return x


def test_quantized_activations_have_the_bytes_of_their_twin():
    x = hard_activations()
    assert quantize(x).tobytes() == naive.quantize(x).tobytes()


def test_a_quantized_value_is_off_by_half_a_step_at_most():
    x = random_activations(9, 352)
    d = naive.quantize(x)["d"].repeat(32, axis=1)
    read = naive.dequantized_activations(x)
    assert (np.abs(read - x) <= 0.5 * d * (1 + 512 * ULP)).all()  # 127 / amax and the product are rounded


def test_quantizing_is_the_same_by_any_number_of_threads():
    x = random_activations(50, 96)
    assert all(np.array_equal(quantize(x, n_threads), quantize(x)) for n_threads in (2, 4))


def test_zero_tokens_give_zero_products():
    x = np.zeros((3, 256), np.float32)
    for type_name in LAYOUTS:
        assert not matmul(type_name, pack(type_name, random_blocks(type_name, 40, 256)), 40, x).any()


# ---- norm, feed-forward


@pytest.mark.parametrize("n", [8, 64, 80, 1024, 2080])
def test_rms_norm(n):
    """16 running sums of n / 16 squares: (n / 16 + 8) roundings at most, halved by the square root, and a few more."""
    x, weight = random_activations(5, n), random_activations(1, n, seed=6)[0]
    rows, out, padded = as_rows(x), as_rows(np.zeros((5, n))), as_rows(weight[None])[0]
    run("norm.rms_f32", n_threads=2, step={"n_tokens": 5}, x=rows, weight=padded, out=out, n=n, eps=1e-5, ld_x=ld(rows),
        ld_out=ld(out))  # fmt: skip
    np.testing.assert_allclose(out[:, :n], naive.rms_norm(x, weight, float(np.float32(1e-5))), rtol=(n / 32 + 10) * ULP)
    assert not out[:, n:].any()


def test_rms_norm_of_zeros_is_zero_and_of_one_large_value_finite():
    x = np.zeros((2, 64), np.float32)
    x[1, 3] = 1e15
    rows, out, weight = as_rows(x), as_rows(np.zeros((2, 64))), as_rows(np.ones((1, 64)))
    run(
        "norm.rms_f32",
        step={"n_tokens": 2},
        x=rows,
        weight=weight,
        out=out,
        n=64,
        eps=1e-6,
        ld_x=ld(rows),
        ld_out=ld(out),
    )
    expected = np.zeros((2, 64))
    expected[1, 3] = 8
    np.testing.assert_allclose(out, expected, rtol=20 * ULP)


def test_the_fused_norm_quantizes_what_the_norm_alone_gives():
    n, x = 352, random_activations(7, 352)
    rows, plain, scratch, out = (
        as_rows(x),
        as_rows(np.zeros((7, n))),
        as_rows(np.zeros((7, n))),
        q8_rows(7, n),
    )
    common = {
        "x": rows,
        "weight": as_rows(random_activations(1, n, seed=6)),
        "n": n,
        "eps": 1e-5,
        "ld_x": ld(rows),
    }
    run("norm.rms_f32", step={"n_tokens": 7}, **common, out=plain, ld_out=ld(plain))
    run("norm.rms_q8", n_threads=2, step={"n_tokens": 7}, **common, scratch=scratch, ld_scratch=ld(scratch), out=out,
        ld_out=ld(out))  # fmt: skip
    assert out.tobytes() == naive.quantize(plain[:, :n]).tobytes()
    assert same_bits(scratch, plain)


@pytest.mark.parametrize("head_dim", [8, 16, 40, 128])
def test_rms_norm_of_each_head(head_dim):
    n_head, n_tokens = 3, 5
    x, weight = random_activations(n_tokens, n_head * head_dim), random_activations(1, head_dim, seed=6)[0]
    rows = as_rows(x)
    run("norm.rms_heads", n_threads=2, step={"n_tokens": n_tokens}, x=rows, weight=as_rows(weight[None])[0],
        n_head=n_head, head_dim=head_dim, eps=1e-6, ld_x=ld(rows))  # fmt: skip
    expected = naive.rms_norm(x.reshape(n_tokens, n_head, head_dim), weight, float(np.float32(1e-6)))
    got = rows[:, : n_head * head_dim].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=(head_dim / 32 + 10) * ULP)
    assert not rows[:, n_head * head_dim :].any()


def run_swiglu(kind: str, gate: np.ndarray, up: np.ndarray, n_threads: int = 1) -> np.ndarray:
    n_tokens, n = gate.shape
    rows, out = (
        (as_rows(gate), as_rows(up)),
        as_rows(np.zeros(gate.shape)) if kind == "f32" else q8_rows(n_tokens, n),
    )
    run(f"ffn.swiglu_{kind}", n_threads=n_threads, step={"n_tokens": n_tokens}, gate=rows[0], up=rows[1], out=out, n=n,
        ld_in=ld(rows[0]), ld_out=ld(out))  # fmt: skip
    return out


@pytest.mark.parametrize("n", [96, 172, 1100])  # a segment is 512; stories260K has 172, which is no multiple of 32
def test_swiglu(n):
    """exp is right to 2 ulp (test_simd.py), and an add, a division and a product follow: 7 roundings are enough."""
    gate, up = random_activations(3, n) / 10, random_activations(3, n, seed=7)
    got = run_swiglu("f32", gate, up, n_threads=2)
    np.testing.assert_allclose(got[:, :n], naive.swiglu(gate, up), rtol=7 * ULP, atol=1e-34)


def test_swiglu_far_out():
    """Below -88 exp is held at e**88: the result is 1e-36 instead of even less, for large x it is x itself."""
    gate = np.array([[-1e30, -1000, -90, -20, 0, 20, 90, 1000, 1e30, -0.0] + [0] * 22], np.float32)
    got = run_swiglu("f32", gate, np.ones_like(gate))[0, :10]
    np.testing.assert_allclose(
        got[1:], [0, 0, -20 / (1 + math.exp(20)), 0, 20, 90, 1000, 1e30, 0], rtol=7 * ULP, atol=1e-35
    )
    assert abs(got[0]) <= 1e30 / math.exp(88) * 1.01


def test_the_fused_swiglu_quantizes_what_swiglu_alone_gives():
    gate, up = random_activations(4, 1120), random_activations(4, 1120, seed=8)
    plain = run_swiglu("f32", gate, up)
    assert run_swiglu("q8", gate, up, n_threads=2).tobytes() == naive.quantize(plain[:, :1120]).tobytes()


def test_add_bias():
    x, bias = random_activations(5, 80), random_activations(1, 80, seed=9)
    rows = as_rows(x)
    run("ffn.add_bias", n_threads=2, step={"n_tokens": 5}, x=rows, bias=as_rows(bias), n=96, ld_x=ld(rows))
    assert same_bits(rows[:, :80].copy(), x + bias)


@pytest.mark.parametrize("n_out", [1, 3, 7])
def test_last_rows(n_out):
    rows = as_rows(random_activations(7, 80))
    out = as_rows(np.zeros((n_out, 80)))
    run(
        "ffn.last_rows",
        rows="n_out",
        step={"n_tokens": 7, "n_out": n_out},
        x=rows,
        out=out,
        n=96,
        ld=ld(rows),
    )
    assert same_bits(out, rows[7 - n_out :])


# ---- rope


def rope_table(n_tokens: int, n_past: int, inv_freq: np.ndarray, mscale: float) -> np.ndarray:
    """(n_tokens, n_pair, 2) float32: cos, sin."""
    n = 2 * len(inv_freq)
    out = as_rows(np.zeros((n_tokens, n)))
    run("rope.table", n_threads=2, step={"n_tokens": n_tokens, "n_past": n_past}, inv_freq=inv_freq, mscale=mscale,
        out=out, n_pair=len(inv_freq), ld_out=ld(out))  # fmt: skip
    return out[:, :n].reshape(n_tokens, -1, 2)


@pytest.mark.parametrize(("n_past", "mscale"), [(0, 1.0), (250, 1.25), (131_000, 1.0), (1_000_000, 1.0)])
def test_rope_table(n_past, mscale):
    """Rounded to float32 once, and once more with mscale; the angle itself is right to 2**-53 of its size."""
    inv_freq = 500000.0 ** (-np.arange(32) / 32)
    got = rope_table(40, n_past, inv_freq, mscale)
    expected = np.stack(naive.rope_angles(np.arange(n_past, n_past + 40), inv_freq, mscale), axis=2)
    assert np.abs(got - expected).max() <= 2.01 * ULP * mscale


@pytest.mark.parametrize(("pairing", "naive_rope"), [("interleaved", naive.rope), ("neox", naive.rope_neox)])
@pytest.mark.parametrize(("head_dim", "n_rot"), [(8, 8), (16, 16), (80, 32), (64, 64)])
def test_rope_rotates_the_pairs_of_each_head(head_dim, n_rot, pairing, naive_rope):
    """Two products and a sum, each rounded: the bits that float32 NumPy gives. What is behind n_rot is left alone."""
    n_head, n_tokens = 3, 9
    x = random_activations(n_tokens, n_head * head_dim)
    table = rope_table(n_tokens, 100, 10000.0 ** (-np.arange(n_rot // 2) * 2 / n_rot), 1.0)
    rows, angles = as_rows(x), as_rows(table.reshape(n_tokens, -1))
    run(f"rope.{pairing}", n_threads=2, step={"n_tokens": n_tokens}, x=rows, angles=angles, n_head=n_head,
        head_dim=head_dim, n_pair=n_rot // 2, ld_x=ld(rows), ld_angles=ld(angles))  # fmt: skip
    expected = naive_rope(x.reshape(n_tokens, n_head, head_dim), table[:, :, 0], table[:, :, 1])
    assert same_bits(rows[:, : n_head * head_dim].copy(), expected.reshape(n_tokens, -1))


# ---- rows are handed out


def test_nothing_is_done_for_no_rows():
    out = memory(1, 64, dtype=np.float32)
    run("ffn.last_rows", rows="n_out", step={"n_tokens": 1, "n_out": 0}, x=as_rows(np.ones((1, 64))), out=out,
        n=64, ld=256)  # fmt: skip
    assert not out.any()
