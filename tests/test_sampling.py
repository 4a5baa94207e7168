"""Sampling against llama.cpp's own samplers (recorded by record_samplers.py) and against the definitions."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from record_samplers import MIROSTAT_SHAPES, logits_of

from qllama.errors import FileError, InputError, QllamaError
from qllama.sampling.candidates import GROUP, Candidates
from qllama.sampling.chain import SamplerChain
from qllama.sampling.dry import breaker_tails, since_breaker, z_lengths
from qllama.sampling.order import OPTIONS, build, parameters, with_file_defaults
from qllama.sampling.samplers import SAMPLERS, Mirostat, State

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}  # nothing but the draw


@cache
def recorded() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "samplers.json").read_text())


class RecordedTokenizer:
    """The vocabulary that llama.cpp's DRY was given."""

    def token_bytes(self, id: int, special: bool = False) -> bytes:
        return recorded()["texts"][id].encode("latin-1")

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert isinstance(text, bytes) and not add_special and not parse_special
        return recorded()["tokenized"][text.decode()]


def left_by(names: list[str], options: dict[str, Any], logits: np.ndarray, history: list[int]) -> dict[int, float]:
    """Token -> logit of what samplers leave; a logit of -inf is not left."""
    state = State(len(logits), RecordedTokenizer(), options.get("min_keep", 0), history=history)
    c = Candidates.of(logits)
    for sampler in (parameters(SAMPLERS[name], options) for name in names):
        with np.errstate(divide="ignore"):
            sampler.start(state)
            c = sampler.apply(c, state)
        check_order(c)
    return {t: x for t, x in zip(c.ids.tolist(), c.logits.tolist(), strict=True) if x > -math.inf}


def check_order(c: Candidates) -> None:
    assert c.ids.dtype == np.int32 and c.logits.dtype == np.float32 and len(c.ids) == len(c.logits)
    keys = list(zip((-c.logits).tolist(), c.ids.tolist(), strict=True)) if c.sorted else c.ids.tolist()
    assert keys == sorted(keys) and len(set(c.ids.tolist())) == len(c)


@pytest.mark.parametrize("samplers", sorted({case["samplers"] for case in recorded()["cases"]}))
def test_leaves_what_llama_cpp_leaves(samplers: str) -> None:
    for case in (case for case in recorded()["cases"] if case["samplers"] == samplers):
        options = dict(case["options"])
        if "logit_bias" in options:  # JSON has no integer keys
            options["logit_bias"] = {int(t): b for t, b in options["logit_bias"].items()}
        logits = logits_of(*case["logits"])
        ids = case["ids"] or np.flatnonzero(logits > -np.inf).tolist()
        expected = {t: case["changed"].get(str(t), float(logits[t])) for t in ids}
        found = left_by(samplers.split(";"), options, logits, case.get("history", []))
        assert found.keys() == expected.keys(), case
        assert found == pytest.approx(expected, rel=1e-5), case


# Mirostat and the draw


class Fixed(Random):
    """Random numbers that are known."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


@pytest.mark.parametrize("run", recorded()["mirostat"], ids=lambda run: str(run["options"]))
def test_mirostat_cuts_where_llama_cpp_cuts(run: dict[str, Any]) -> None:
    """Eight tokens in a row: every cut depends on the surprises of the tokens before."""
    state, sampler = State(200), Mirostat(**run["options"])
    sampler.start(state)
    for i, step in enumerate(run["steps"]):
        c = Candidates.of(logits_of(run["seed"] + i, 200, MIROSTAT_SHAPES[i % 2]))
        kept = sampler.truncate(c, state)
        assert sorted(kept.ids.tolist()) == step["left"]
        upto = np.cumsum(kept.probs())[np.flatnonzero(kept.ids == step["drawn"])[0]]
        state.rng = Fixed(upto - 1e-9)  # so that the recorded token is drawn here too
        assert sampler.apply(c, state).ids.tolist() == [step["drawn"]]


# Chi-square with 7 degrees of freedom exceeds this once in a thousand (Abramowitz and Stegun, table 26.8).
CHI_SQUARE = 24.32


@pytest.mark.parametrize("options", [OFF, {**OFF, "mirostat": 1, "mirostat_lr": 0.0}, {**OFF, "mirostat": 2}])
def test_draws_by_probability(options: dict[str, Any]) -> None:
    logits = np.log(np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.float32))
    chain = SamplerChain(8, {"seed": 5, "mirostat_ent": 9.0, **options})
    counts = Counter(chain.sample(logits) for _ in range(7200))
    assert sum((counts[i] - 200 * (i + 1)) ** 2 / (200 * (i + 1)) for i in range(8)) < CHI_SQUARE


def test_xtc_happens_with_its_probability() -> None:
    logits = np.array([3, 2, -9, -9], dtype=np.float32)
    chain = SamplerChain(4, {**OFF, "seed": 5, "xtc_probability": 0.25})
    firsts = sum(chain.sample(logits) == 0 for _ in range(4000))
    expected = 4000 * 0.75 * math.e / (1 + math.e)
    assert abs(firsts - expected) < 4 * math.sqrt(expected)


def test_the_stream_of_a_seed_is_python_s() -> None:
    """Documented not to change between versions: one number of Random(seed) per token, on the running sum."""
    chain, rng = SamplerChain(1000, {**OFF, "seed": 42}), Random(42)
    flat = np.zeros(1000, dtype=np.float32)
    assert [chain.sample(flat) for _ in range(20)] == [int(rng.random() * 1000) for _ in range(20)]


@pytest.mark.parametrize("seed", [-1, 0xFFFFFFFF])
def test_seeds_are_random_by_default(seed: int) -> None:
    seeds = {SamplerChain(2, {"seed": seed}).seed for _ in range(5)}
    assert len(seeds) > 1 and seed not in seeds


def test_reset_starts_over() -> None:
    chain = SamplerChain(50, {"seed": 3, "repeat_penalty": 1.5, "min_p": 0.0})
    logits = logits_of(1, 50, "flat")

    def text() -> list[int]:
        tokens = []
        for _ in range(30):
            tokens.append(chain.sample(logits))
            chain.accept(tokens[-1])
        return tokens

    first = text()
    assert text() != first
    chain.reset()
    assert text() == first


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_never_draws_what_is_impossible(u: float) -> None:
    c = Candidates.of(np.array([-np.inf, 0, -np.inf, 0, -np.inf], dtype=np.float32))
    assert c.draw(u) in (1, 3)


# The likeliest token


@pytest.mark.parametrize("temp", [0, -1.0])
def test_zero_temperature_is_greedy_and_takes_the_lowest_id(temp: float) -> None:
    logits = np.array([1, 5, 2, 5, 5], dtype=np.float32)
    assert SamplerChain(5, {"temp": temp}).sample(logits) == 1
    assert SamplerChain(5, {"temp": temp, "dynatemp_range": 2.0}).sample(logits) == 1
    assert SamplerChain(5, {"temp": temp, "mirostat": 2}).sample(logits) == 1


def test_greedy_skips_what_cannot_change_the_likeliest() -> None:
    options = {"temp": 0, "repeat_penalty": 1.1, "typical_p": 0.5, "xtc_probability": 0.5, "top_n_sigma": 1.0}
    assert [type(s).__name__ for s in build(options)] == ["Penalties", "Typical", "XTC", "Temperature"]
    assert [type(s).__name__ for s in build({"temp": 0})] == ["Temperature"]


def test_greedy_heeds_bias_and_penalties() -> None:
    logits = np.array([1, 5, 4, 2], dtype=np.float32)
    assert SamplerChain(4, {"temp": 0, "logit_bias": {1: -np.inf}}).sample(logits) == 2
    chain = SamplerChain(4, {"temp": 0, "repeat_penalty": 2.0})
    chain.accept(1)
    assert chain.sample(logits) == 2
    assert logits.tolist() == [1, 5, 4, 2]  # the caller's logits are left as they are


# Cutting off


@pytest.mark.parametrize("n", [1, 5, GROUP, 10 * GROUP + 3, 5000])
@pytest.mark.parametrize("k", [1, 3, 9, 40, 600])
def test_top_k_is_the_head_of_a_stable_sort(n: int, k: int) -> None:
    logits = np.round(logits_of(n, n, "wide"))  # many equals
    expected = np.argsort(-logits, kind="stable")[:k]
    top = Candidates.of(logits).top(k)
    assert top.ids.tolist() == expected.tolist() and top.logits.tolist() == logits[expected].tolist()
    assert top.top(2).ids.tolist() == expected[:2].tolist()


@pytest.mark.parametrize("flatness", [1.0, 0.05, 0.0])
def test_top_p_on_a_large_vocabulary(flatness: float) -> None:
    """Whether a few tokens make up the sum, some thousands, or nearly all."""
    logits = flatness * logits_of(7, 20000, "wide")
    p = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    n = int(np.searchsorted(np.cumsum(p[order]), 0.9 * p.sum())) + 1
    assert left_by(["top_p"], {"top_p": 0.9}, logits, []).keys() == set(order[:n].tolist())


def test_a_sum_that_is_met_exactly() -> None:
    """Top-p stops at the token that reaches the sum, typical at the one that exceeds it."""
    equal = np.zeros(4, dtype=np.float32)
    assert left_by(["top_p"], {"top_p": 0.5}, equal, []).keys() == {0, 1}
    assert left_by(["typ_p"], {"typical_p": 0.5}, equal, []).keys() == {0, 1, 2}


def test_min_keep_above_what_top_p_sorts_first() -> None:
    logits = 3 * logits_of(7, 20000, "wide")
    assert len(left_by(["top_p"], {"top_p": 0.5, "min_keep": 300}, logits, [])) == 300


@pytest.mark.parametrize(("min_keep", "left"), [(2, {2, 3}), (3, {0, 1, 2, 3})])
def test_xtc_spares_the_choices_if_too_few_are_left(min_keep: int, left: set[int]) -> None:
    logits = np.array([3, 2, 1, -1], dtype=np.float32)  # three probabilities are 0.09 or more
    options = {"xtc_probability": 1.0, "xtc_threshold": 0.05, "min_keep": min_keep}
    assert left_by(["xtc"], options, logits, []).keys() == left


def test_min_keep_beyond_the_vocabulary_keeps_it() -> None:
    for name in ("top_p", "min_p", "typ_p", "xtc"):
        options = {"top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "xtc_probability": 1.0, "min_keep": 9999}
        assert len(left_by([name], options, logits_of(1, 9, "wide"), [])) == 9


def test_mirostat_1_keeps_all_of_a_flat_distribution() -> None:
    """Its estimate of how many tokens to keep goes beyond every number there."""
    c, state = Candidates.of(logits_of(1, 500, "flat")), State(500, mu=10.0)
    assert len(Mirostat(mirostat=1).truncate(c, state)) == 500


def test_xtc_keeps_the_highest_id_among_equal_choices() -> None:
    logits = np.array([2, 2, 2, 0], dtype=np.float32)
    options = {"xtc_probability": 1.0}
    assert left_by(["xtc"], options, logits, []).keys() == {2, 3}
    assert left_by(["top_k", "xtc"], options, logits, []).keys() == {2, 3}
    assert left_by(["xtc"], options, logits[:1], []).keys() == {0}


def test_dynamic_temperature_of_a_single_candidate() -> None:
    assert left_by(["top_k", "temperature"], {"top_k": 1, "dynatemp_range": 0.5}, logits_of(1, 9, "wide"), [])


def test_z_lengths_are_common_prefixes() -> None:
    rng = Random(1)
    for n in range(40):
        s = [int(rng.random() * 2) for _ in range(n)]
        naive = [next((m for m in range(n - k) if s[m] != s[k + m]), n - k) for k in range(1, n)]
        assert z_lengths(s)[1:] == naive


def test_dry_penalty_stops_growing_before_it_overflows() -> None:
    history = [7, 8] * 1000
    left = left_by(["dry"], {**DRY, "dry_base": 4.0}, np.zeros(16, dtype=np.float32), history)
    assert left[7] == pytest.approx(-(4.0**63)) and left[8] == 0  # 4**64 is too much for float32


DRY = {"dry_multiplier": 1.0, "dry_penalty_last_n": -1, "dry_sequence_breaker": []}


def test_dry_breaker_in_one_token_is_never_penalized() -> None:
    colon = recorded()["texts"].index(":")
    options = {**DRY, "dry_sequence_breaker": (":",)}
    zeros, history = np.zeros(512, dtype=np.float32), [300, 301, 302, colon, 300, 301, 302]
    assert left_by(["dry"], options, zeros, history)[colon] == 0
    assert left_by(["dry"], DRY, zeros, history)[colon] == pytest.approx(-1.75)


def test_dry_takes_the_longest_breaker_that_begins_with_a_token() -> None:
    tails = {5: {(), (6,), (6, 7), (8,)}}
    assert since_breaker([1, 2, 5], tails) == 2
    assert since_breaker([1, 2, 6, 5], tails) == 2
    assert since_breaker([1, 7, 6, 5, 5], tails) == 1
    assert since_breaker([1, 2, 3], tails) == 3


def test_dry_needs_a_tokenizer_for_breakers_only() -> None:
    with pytest.raises(InputError, match="--dry-sequence-breaker: found no tokenizer"):
        SamplerChain(4, {"dry_multiplier": 1.0})
    SamplerChain(4, {"dry_multiplier": 1.0, "dry_sequence_breaker": ()})
    SamplerChain(512, {"dry_multiplier": 1.0}, RecordedTokenizer()).reset()
    assert breaker_tails((), 4, None) == {}


# Strange logits


def every_sampler() -> list[dict[str, Any]]:
    """Options that put all of them to work."""
    all_on = {
        "repeat_penalty": 1.2,
        "dry_multiplier": 1.0,
        "dry_sequence_breaker": (),
        "top_n_sigma": 2.0,
        "seed": 1,
    }
    all_on |= {"typical_p": 0.9, "xtc_probability": 0.5, "dynatemp_range": 0.5, "logit_bias": {0: 1.0}}
    orders = [
        {},
        {"sampler_seq": "txmpyksde"},
        {"mirostat": 1},
        {"mirostat": 2},
        {"temp": 0},
        {"temp": 1e-45},
    ]
    return [{**all_on, **order} for order in orders]


STRANGE = {
    "equal": [0.0] * 8,
    "one left": [-np.inf] * 7 + [1.0],
    "two left": [-np.inf] * 6 + [1.0, 1.0],
    "infinite": [1.0, np.inf, 2.0, np.inf, -np.inf, 0.0, 0.0, 0.0],
    "all infinite": [np.inf] * 8,
    "huge": [3e38, -3e38, 3e38, 1e38, 0.0, 1.0, -3e38, 3e38],
    "tiny": [1e-45, -1e-45, 0.0, 1e-38, 0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("options", every_sampler(), ids=lambda o: str(list(o.items())[9:]))
def test_survives_strange_logits(name: str, options: dict[str, Any]) -> None:
    logits = np.array(STRANGE[name], dtype=np.float32)
    chain = SamplerChain(8, options)
    for _ in range(40):
        token = chain.sample(logits)
        assert logits[token] > -np.inf and (logits[token] == np.inf or "infinite" not in name)
        chain.accept(token)


def test_a_single_token_vocabulary() -> None:
    for options in every_sampler():
        assert SamplerChain(1, options).sample(np.zeros(1, dtype=np.float32)) == 0


def test_mirostat_bound_beyond_every_surprise() -> None:
    """A text without surprise raises the bound with every token; 2**mu overflows at last."""
    chain = SamplerChain(4, {"mirostat": 1, "mirostat_lr": 100.0, "temp": 1.0, "seed": 1})
    for logits in ([9, -90, -90, -90],) * 30 + ([1, 0.9, 0.8, 0.7],) * 10:
        assert chain.sample(np.array(logits, dtype=np.float32)) in range(4)


@pytest.mark.parametrize("options", [{}, {"temp": 0}, {"mirostat": 2}])
def test_nan_is_refused(options: dict[str, Any]) -> None:
    logits = np.array([1, np.nan, np.inf, np.nan], dtype=np.float32)
    with pytest.raises(QllamaError, match="the model produced NaN logits: found 2 among 4"):
        SamplerChain(4, options).sample(logits)


def test_no_choice_is_refused() -> None:
    with pytest.raises(QllamaError, match="no token can be chosen"):
        SamplerChain(2).sample(np.full(2, -np.inf, dtype=np.float32))
    with pytest.raises(QllamaError, match="no token can be chosen"):
        SamplerChain(2, {"logit_bias": {0: -np.inf, 1: -np.inf}}).sample(np.zeros(2, dtype=np.float32))


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(QllamaError, match=r"found logits of shape \(3,\), needed \(4,\)"):
        SamplerChain(4).sample(np.zeros(3, dtype=np.float32))


# Options and their order


def names(options: dict[str, Any]) -> list[str]:
    return [type(sampler).__name__ for sampler in build(options)]


def test_the_default_chain() -> None:
    assert names({}) == ["TopK", "TopP", "MinP", "Temperature", "Dist"]
    assert names(OFF) == ["Dist"]
    full = [
        "LogitBias",
        "Penalties",
        "Dry",
        "TopNSigma",
        "TopK",
        "Typical",
        "TopP",
        "MinP",
        "XTC",
        "Temperature",
    ]
    assert names({**every_sampler()[0]}) == [*full, "Dist"]


def test_defaults_are_llama_cpp_s() -> None:
    """As in common/common.h, October 2026."""
    expected = dict(  # noqa: C408
        seed=-1, min_keep=0, temp=0.8, dynatemp_range=0.0, dynatemp_exp=1.0, top_k=40, top_p=0.95, min_p=0.05,
        typical_p=1.0, top_n_sigma=-1.0, xtc_probability=0.0, xtc_threshold=0.1, repeat_penalty=1.0,
        repeat_last_n=64, frequency_penalty=0.0, presence_penalty=0.0, dry_multiplier=0.0, dry_base=1.75,
        dry_allowed_length=2, dry_penalty_last_n=64, dry_sequence_breaker=("\n", ":", '"', "*"), mirostat=0,
        mirostat_ent=5.0, mirostat_lr=0.1, logit_bias={}, sampler_seq="",
        samplers="penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
    )  # fmt: skip
    assert {name: f.metadata["default"] for name, f in OPTIONS.items()} == expected
    letters = "".join(cls.letter for cls in SAMPLERS.values())
    assert letters == "edskypmxt"


def test_order() -> None:
    assert names({"samplers": "min-p; temp;nucleus"}) == ["MinP", "Temperature", "TopP", "Dist"]
    assert names({"sampler_seq": "tkk"}) == ["Temperature", "TopK", "TopK", "Dist"]
    assert names({"samplers": ""}) == ["Dist"]
    assert names({"mirostat": 1, "repeat_penalty": 2.0}) == ["Temperature", "Mirostat"]
    assert names({"mirostat": 2, "temp": 1.0, "dynatemp_range": 1.0}) == ["Mirostat"]
    with pytest.raises(InputError, match="found both --samplers and --sampler-seq"):
        build({"samplers": "top_k", "sampler_seq": "k"})


REFUSED = [
    ("top_p", 1.5, "found 1.5, needed a finite number, 0 or more, 1 or less"),
    ("min_p", math.nan, "found nan"),
    ("temp", math.inf, "found inf, needed a finite number"),
    ("temp", 10**400, "needed a finite number"),
    ("temp", "warm", "found 'warm'"),
    ("top_k", 2.5, "found 2.5, needed a whole number from -1 to 2147483647"),
    ("top_k", True, "found True, needed a whole number"),
    ("seed", 2**32, "needed a whole number from -1 to 4294967295"),
    ("repeat_penalty", 0, "needed a finite number, more than 0"),
    ("repeat_last_n", -2, "found -2"),
    ("dry_base", 0.5, "needed a finite number, 1 or more"),
    ("dry_sequence_breaker", ("",), "needed texts of 1 to 40 bytes"),
    ("dry_sequence_breaker", ("x" * 41,), "needed texts of 1 to 40 bytes"),
    ("dry_sequence_breaker", "text", "needed texts"),
    ("mirostat", 3, "needed a whole number from 0 to 2"),
    ("logit_bias", {1: math.nan}, "needed token ids with a finite number or -inf each"),
    ("logit_bias", {1: math.inf}, "needed token ids"),
    ("logit_bias", {-1: 0.0}, "needed token ids"),
    ("samplers", "top_k;infill", "needed samplers of penalties;dry;"),
    ("samplers", 5, "needed samplers of"),
    ("sampler_seq", "ka", "needed letters of edskypmxt"),
    ("min_keep", None, "found None"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_bad_values_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        build({name: value})
    assert str(error.value).startswith("--" + name.replace("_", "-") + ": found ") and message in str(error.value)


def test_unknown_options_and_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="found sampling option 'top_q', needed one of logit_bias, "):
        build({"top_q": 1})
    with pytest.raises(InputError, match="--logit-bias: found token 4, needed 0 to 3"):
        SamplerChain(4, {"logit_bias": {0: 1.0, 4: 1.0}})


def test_numpy_numbers_become_plain_and_parameters_stay() -> None:
    sampler = build({**OFF, "temp": np.float64(0.5)})[0]
    assert type(sampler.temp) is float
    with pytest.raises(FrozenInstanceError):
        sampler.temp = 2.0


class FileMetadata(dict):
    def error(self, key: str, reason: str) -> FileError:
        return FileError("m.gguf", reason, key, self[key])


def test_a_file_s_defaults_fill_what_is_not_set() -> None:
    keys = {"top_k": 20, "temp": 0.6, "penalty_last_n": 32, "penalty_repeat": 1.1, "mirostat_tau": 4.0}
    keys |= {"sequence": "top_k;temperature", "mirostat_eta": 0.2, "mirostat": 0, "xtc_threshold": 0.2}
    metadata = FileMetadata({f"general.sampling.{key}": value for key, value in keys.items()} | {"other": 1})
    expected = {"top_k": 20, "temp": 0.0, "repeat_last_n": 32, "repeat_penalty": 1.1, "mirostat_ent": 4.0}
    expected |= {"samplers": "top_k;temperature", "mirostat_lr": 0.2, "mirostat": 0, "xtc_threshold": 0.2}
    assert with_file_defaults({"temp": 0.0}, metadata) == expected
    assert "samplers" not in with_file_defaults({"sampler_seq": "k"}, metadata)
    assert with_file_defaults({"temp": 0.0}, FileMetadata()) == {"temp": 0.0}


def test_a_file_s_bad_default_is_refused_unless_overridden() -> None:
    metadata = FileMetadata({"general.sampling.top_p": "high"})
    with pytest.raises(FileError, match=r"m.gguf: general.sampling.top_p=high: must be a finite number"):
        with_file_defaults({}, metadata)
    assert with_file_defaults({"top_p": 0.5}, metadata) == {"top_p": 0.5}


def test_options_are_known_without_numpy() -> None:
    code = "import sys, qllama.sampling.order; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
