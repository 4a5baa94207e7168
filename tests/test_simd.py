"""The SIMD vocabulary of every ISA that this CPU has, against exact arithmetic. simd_probe.py runs it."""

import os
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import naive
import numpy as np
import pytest

from qllama import cpu

F32 = np.float32
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, 65504], F32
)


def vectors(values: np.ndarray) -> np.ndarray:
    """Filled up with repetitions to whole vectors of 16."""
    return np.resize(values, -(-len(values) // 16) * 16)


# ---- what goes in; what has to come out is in the tests


def fma_operands() -> list[np.ndarray]:
    """Random ones of all sizes, and products that put the sum just off the middle between two float32.

    2**33 + 1 = 20857 * 683 * 603 and 2**33 - 1 = 599479 * 23 * 623, so the factors are float32 and the sum of such a
    product and a 1 has 57 bits: rounded to float64 first, it is exactly in the middle, and goes the wrong way.
    """
    rng = np.random.default_rng(1)
    x, y, z = (rng.standard_normal(4000) * 2.0 ** rng.integers(-60, 60, 4000) for _ in range(3))
    z[:1000] = -x[:1000] * y[:1000] * (1 + rng.integers(-2, 3, 1000) * 2.0**-23)  # cancels almost everything
    z[1000:2000] = x[1000:2000] * y[1000:2000] * 2.0 ** rng.integers(-30, 30, 1000)
    x[2000:2500] *= 2.0**-40
    y[2000:2500] *= 2.0**-45  # results among the subnormals
    z[2000:2500] *= 2.0**-90
    hard = []
    for a, b in ((20857 * 683, 603), (599479 * 23, 623)):
        for one in (1.0, 1 + 2.0**-23, 1 + 2.0**-22, 2 - 2.0**-23):
            for sign in (1, -1):
                for scale in (0, -100, 60):
                    product = (a * 2.0**-33, b * 2.0**-24 * 2.0**scale)
                    hard += [(*product, one * 2.0**scale), (-product[0], product[1], one * 2.0**scale)]
                    hard += [(product[0], sign * product[1], sign * -one * 2.0**scale)]
    combos = np.array(np.meshgrid(SPECIAL, SPECIAL, SPECIAL)).reshape(3, -1)
    return [vectors(np.concatenate([r.astype(F32), np.array(h, F32), s]))
            for r, h, s in zip((x, y, z), zip(*hard, strict=True), combos, strict=True)]  # fmt: skip


def halfway_cases() -> np.ndarray:
    """Every finite half, the middles between them, the float32 neighbours of both, and float32's own ends."""
    halves = np.arange(0x7C00, dtype="<u2").view("<f2").astype(np.float64)
    upper = np.append(halves[1:], 65536.0)  # what the largest half would be followed by
    points = np.concatenate([halves, (halves + upper) / 2]).astype(F32)
    near = np.concatenate([points, np.nextafter(points, F32(np.inf)), np.nextafter(points, F32(0))])
    values = np.concatenate([near, np.abs(SPECIAL), [np.nan]]).astype(F32)
    return vectors(np.concatenate([values, -values]))


def exp_arguments() -> np.ndarray:
    rng = np.random.default_rng(2)
    ln2 = np.log(2)
    steps = (np.arange(-126, 127) * ln2).astype(F32)  # and the middles, where the exponent changes
    middles = ((np.arange(-125, 126) + 0.5) * ln2).astype(F32)
    near = [np.nextafter(middles, F32(s * 1000)) for s in (-1, 1)]
    ends = [-87.0, np.nextafter(F32(-87), F32(-88)), -1e30, -np.inf, 88, 88.5, 1e30, np.inf, 0, -0.0, 1e-30, -1e-45]
    wide, narrow = rng.uniform(-87, 88, 60_000), rng.standard_normal(60_000)
    return vectors(np.concatenate([wide, narrow, steps, middles, *near, ends]).astype(F32))


def dot_operands(low: int, high: int) -> list[np.ndarray]:
    """Weights low..high as int64, activations -127..127: random ones, then all ends of both ranges."""
    rng = np.random.default_rng(3)
    n = 300
    w, x = rng.integers(low, high + 1, (n, 64)), rng.integers(-127, 128, (n, 16))
    w[100:] = rng.choice([low, high], (200, 64))
    x[200:] = rng.choice([-127, 127], (100, 16))
    w[296:300], x[296:300] = [[low], [high], [low], [high]], [[127], [127], [-127], [-127]]
    return [rng.integers(-(2**22), 2**22, (n, 4)), w, x, np.ones((n, 16), F32)]


def dot_16_operands() -> list[np.ndarray]:
    """Weights 0..15, activations -127..127, what is added to them, scales: random ones and what fills 16 bits."""
    rng = np.random.default_rng(7)
    n = 100
    w, x, start = rng.integers(0, 16, (n, 256)), rng.integers(-127, 128, (n, 64)), rng.integers(-2000, 2000, (n, 4))
    w[50:], x[75:] = rng.choice([0, 15], (50, 256)), rng.choice([-127, 127], (25, 64))
    w[98:], x[98], x[99], start[98], start[99] = 15, 127, -127, 2287, -2288
    return [rng.integers(-(2**20), 2**20, (n, 4)), start, w, rng.integers(-128, 128, (n, 16)), x, np.ones(n, F32)]


def tie_cases() -> np.ndarray:
    rng = np.random.default_rng(4)
    halves = np.arange(-2000, 2001) / 2
    large = rng.integers(-(2**22) + 1, 2**22, 2000) + rng.choice([0, 0.5], 2000)
    near = np.concatenate([np.nextafter(halves.astype(F32), F32(s * 1e9)) for s in (-1, 1)])
    return vectors(np.concatenate([halves, large, near, [2**22 - 0.5, -(2**22) + 0.5]]).astype(F32))


@cache
def inputs() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    floats = [(rng.standard_normal(1600) * 10.0 ** rng.integers(-8, 9, 1600)).astype(F32) for _ in range(2)]
    pairs = np.array(np.meshgrid(np.append(SPECIAL, np.nan), SPECIAL)).astype(F32).reshape(2, -1)
    mixed = [vectors(np.concatenate([f, p])) for f, p in zip(floats, pairs, strict=True)]
    words, anything = rng.integers(-(2**31), 2**31, 1600), rng.integers(0, 256, (2, 3200))
    small, d, n = (
        rng.standard_normal((3, 160)).astype(F32),
        np.ones((160, 16), F32),
        rng.integers(-(2**20), 2**20, (160, 4)),
    )
    dot_8 = dot_operands(-128, 127)
    return {
        "fma16": fma_operands(), "arithmetic": mixed, "where_less": mixed, "exp16": [exp_arguments()],
        "below": [floats[0], np.arange(100) - 20], "rounded": [tie_cases()],
        "scaled": [floats[0] / F32(1e9), rng.integers(-126, 128, 1600)], "across": [floats[0]], "integers": [words],
        "byte_sums": [np.append(rng.integers(-127, 128, 1568), [-127] * 16 + [127] * 16) for _ in range(2)],
        "low_bytes": [words], "signed_bytes": [np.resize(np.arange(-128, 128), 256)], "from_half": [np.arange(65536)],
        "from_bf16": [np.arange(65536)], "to_half": [halfway_cases()], "bits": list(anything),
        "fields": [anything[0]], "codes": [anything[0] % 16], "from_e8m0": [np.arange(256)],
        "from_e4m3": [np.arange(128)],
        "codes_of_a_book": [anything[0] % 16, np.tile((anything[1] - 128).reshape(-1, 64)[:, :16], 4)],
        "dot_small4": dot_operands(0, 127), "dot_8_4": dot_8, "integer_tiles": [n, n[::-1] // 2, d],
        "dot_16_4": dot_16_operands(),
        "scaled_tiles": [n, n[::-1] // 16, np.resize(np.arange(-128, 128), 2560), np.resize(small[0], 640),
                         np.resize(small[2], 2560)],
        "float_tiles": [np.resize(small[0], 2560), np.resize(small[1], 640), n, np.resize(small[2], 2560)],
    }  # fmt: skip


@pytest.fixture(scope="module", params=[i.name for i in cpu.ISAS])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the primitives of an ISA make of `inputs`, and its BIAS8."""
    if not any(cpu.supports(i) for i in cpu.ISAS if i.name == request.param):
        pytest.skip(f"this CPU cannot run {request.param}")
    folder = tmp_path_factory.mktemp("simd")
    environment = {**os.environ, "QLLAMA_ISA": request.param}
    given = {f"{name}/{i}": np.ravel(a) for name, arrays in inputs().items() for i, a in enumerate(arrays)}
    np.savez(folder / "in.npz", **given)
    script = Path(__file__).with_name("simd_probe.py")
    command = [sys.executable, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(command, env=environment, check=True)
    return dict(np.load(folder / "out.npz"))


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, but for those of a NaN."""
    expected = np.ascontiguousarray(expected).reshape(got.shape)
    assert got.dtype == expected.dtype
    if got.dtype.kind == "f":
        nan = np.isnan(expected)
        assert np.array_equal(nan, np.isnan(got))
        got, expected = np.where(nan, 0, got), np.where(nan, 0, expected)
    assert got.tobytes() == expected.tobytes()


def nearest(value: Fraction) -> np.float32:
    """The float32 nearest to `value`, ties to even."""
    if value == 0:
        return F32(0)
    exponent = max(abs(value.numerator).bit_length() - value.denominator.bit_length() - 1, -126)
    if abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - 23)
    units = round(value / step)  # of a Fraction: ties to even
    return F32(np.inf * np.sign(units)) if abs(units * step) >= 2**128 else F32(float(units * step))


def test_fma_rounds_once(results):
    """Against rational arithmetic. What is not finite, and the sign of a zero, against float64."""
    x, y, z = inputs()["fma16"]
    got = results["fma16"]
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    exact = [nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))
             for a, b, c in zip(x[finite], y[finite], z[finite], strict=True)]  # fmt: skip
    assert np.array_equal(got[finite], np.array(exact, F32))
    with np.errstate(all="ignore"):
        twin, wide = naive.fma(x, y, z), np.float64(x) * np.float64(y) + np.float64(z)
    same(got, twin)  # which makes naive.fma a twin to be trusted elsewhere
    assert np.array_equal(got[~finite], wide[~finite].astype(F32), equal_nan=True)
    assert np.array_equal(np.signbit(got[wide == 0]), np.signbit(wide[wide == 0]))


def test_the_hard_cases_are_hard():
    """A float64 sum rounded to float32 is wrong on some of the inputs, or they test nothing."""
    x, y, z = (a[4000:4100].astype(np.float64) for a in inputs()["fma16"])
    assert not np.array_equal((x * y + z).astype(F32), naive.fma(x.astype(F32), y.astype(F32), z.astype(F32)))


def test_dots_are_exact(results):
    for name in ("dot_small4", "dot_8_4"):
        acc, w, x, _ = inputs()[name]
        bias = results["BIAS8"] if name == "dot_8_4" else 0
        products = (w.reshape(-1, 1, 16, 4) + bias) * x.reshape(-1, 4, 1, 4)
        same(results[name], (acc[:, :, None] + products.sum(axis=3)).astype(F32))


def test_scaled_dots_are_exact(results):
    acc, start, w, scale, x, _ = inputs()["dot_16_4"]
    products = w.reshape(-1, 1, 4, 16, 4) * x.reshape(-1, 4, 4, 1, 4)
    dots = start[:, :, None] + products.sum(axis=(2, 4))
    assert (dots.min(), dots.max()) == (-(2**15), 2**15 - 1)
    same(results["dot_16_4"], (acc[:, :, None] + scale[:, None] * dots).astype(F32))


def test_all_halves_are_widened_exactly(results):
    with np.errstate(invalid="ignore"):  # signalling NaN are among them
        expected = np.arange(65536, dtype="<u2").view("<f2").astype(F32).reshape(-1, 16)
    same(results["from_half"], np.hstack([expected, expected]))


def test_all_bfloat16_are_widened_exactly(results):
    expected = (np.arange(65536, dtype="<u4") << 16).view("<f4").reshape(-1, 16)
    same(results["from_bf16"], np.hstack([expected, expected]))


def test_all_exponents_give_half_their_power_of_two(results):
    expected = np.exp2(np.arange(256) - 128.0).astype(F32).reshape(-1, 16)
    same(results["from_e8m0"], np.hstack([expected, expected]))


def test_all_scales_of_e4m3_are_halved(results):
    """The 15 normal exponents, and the 7 subnormal values; 0x7F is not a NaN here but the next in line."""
    exponent, mantissa = np.divmod(np.arange(128), 8)
    expected = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 11), mantissa * 2.0**-10)
    expected = expected.astype(F32).reshape(-1, 16)
    same(results["from_e4m3"], np.hstack([expected, expected]))


def test_floats_are_narrowed_to_the_nearest_half(results):
    with np.errstate(over="ignore"):
        expected = np.clip(inputs()["to_half"][0], -65504, 65504).astype("<f2").reshape(-1, 16)
    same(results["to_half"].view("<f2"), np.hstack([expected, expected]))


def test_exp_is_right_to_two_ulp(results):
    x, got = inputs()["exp16"][0], results["exp16"]
    inside = (x >= -87) & (x <= 88)
    expected = np.exp(np.float64(x[inside]))
    ulp = np.spacing(expected.astype(F32)).astype(np.float64)
    assert (np.abs(got[inside] - expected) <= 2 * ulp).all()
    assert (got[x < -87] == 0).all()
    assert (got[x > 88] == got[x == 88][0]).all()
    assert (got[x == 0] == 1).all()


def test_rounding_to_integers_takes_ties_to_even(results):
    same(results["rounded"], np.rint(inputs()["rounded"][0]).astype("<i4"))


def test_scaling_by_a_power_of_two_is_exact(results):
    x, n = inputs()["scaled"]
    with np.errstate(all="ignore"):
        same(results["scaled"], x * np.exp2(np.float64(n)).astype(F32))


def test_sums_across_lanes_are_a_fixed_tree(results):
    v = inputs()["across"][0].reshape(-1, 16)
    largest = v.max(axis=1)
    while v.shape[1] > 1:
        half = v.shape[1] // 2
        v = v[:, :half] + v[:, half:]
    same(results["across"], np.stack([v[:, 0], largest], axis=1))


def test_integers(results):
    words = inputs()["integers"][0].reshape(-1, 16)
    same(results["integers"].view("<f4"), words.astype("<i4").astype(F32))
    x, y = (a.reshape(-1, 16) for a in inputs()["byte_sums"])
    same(results["byte_sums"], np.stack([x.sum(axis=1), y.sum(axis=1)], axis=1).astype("<i4"))
    same(results["low_bytes"], words.astype("i1"))
    same(results["signed_bytes"], inputs()["signed_bytes"][0].astype(F32))


def test_floats_lane_by_lane(results):
    x, y = (a.reshape(-1, 16) for a in inputs()["arithmetic"])
    with np.errstate(all="ignore"):
        largest = np.where(np.abs(x) > y, np.abs(x), y)  # y where x is NaN
        same(results["arithmetic"], np.stack([x - y, x * y, x / y, largest], axis=1))
    same(results["where_less"], np.where(x < y, y, x))


def test_lanes_below_a_limit(results):
    x, limit = inputs()["below"]
    expected = np.where(np.arange(16) < limit[:, None], x.reshape(-1, 16), F32(-1))
    same(results["below"], expected)


def test_bit_fields_of_bytes(results):
    x, y = (a.astype("u1").reshape(-1, 64) for a in inputs()["bits"])
    same(results["bits"], np.stack([x & 15, x >> 4, x | y], axis=1))
    same(results["fields"], np.stack([x & 31, (x >> 3) & 28, x >> 6, x >> 1], axis=1))


def test_codes_are_looked_up(results):
    same(results["codes"], np.arange(-128, 128, 17, dtype="i1")[inputs()["codes"][0]])


def test_codes_of_a_book_are_looked_up(results):
    index, book = inputs()["codes_of_a_book"]
    same(results["codes_of_a_book"], np.take_along_axis(book, index.reshape(-1, 64), axis=1).astype("i1"))


def test_tiles(results):
    n, m, _ = inputs()["integer_tiles"]
    same(results["integer_tiles"], np.repeat(np.hstack([(n - m) * 4, -n]), 16, axis=1).astype(F32))
    acc, x, scale, d, v = inputs()["scaled_tiles"]
    total = (acc[:, :, None] + (x[:, :, None] >> 1) * (scale.reshape(-1, 1, 16) >> 4 & 15)).astype(F32)
    total *= d.reshape(-1, 4, 1)
    same(results["scaled_tiles"], np.hstack([total, naive.fma(total, v.reshape(-1, 1, 16), total)]))
    v, x, k, d = inputs()["float_tiles"]
    v, d, x, k = v.reshape(-1, 1, 16), d.reshape(-1, 1, 16), x.reshape(-1, 4, 1), k.reshape(-1, 4, 1).astype(F32)
    zero = F32(0)
    same(results["float_tiles"], naive.fma(v, x, zero) + naive.fma(k, d * x, zero))
