"""The sampler flags of the command line: spelled as llama.cpp's, read from the samplers' parameters."""

import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qllama.cli.options import SAMPLER_OPTIONS, sampler_options, sampler_settings
from qllama.errors import InputError

# From `llama-completion --help`, October 2026: the sampling parameters that are implemented.
LLAMA_CPP_FLAGS = """
--samplers -s --seed --sampler-seq --sampling-seq --temp --temperature --top-k --top-p --min-p --top-nsigma
--top-n-sigma --xtc-probability --xtc-threshold --typical --typical-p --repeat-last-n --repeat-penalty
--presence-penalty --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n
--dry-sequence-breaker --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l --logit-bias
"""


def settings(*args: str) -> dict[str, Any]:
    """What a command with the sampler flags gets from `args`."""
    got: list[dict[str, Any]] = []

    @click.command()
    @click.option("-n", type=int, default=3)
    @sampler_options
    def command(**kwargs: Any) -> None:
        got.append(sampler_settings(kwargs))
        assert kwargs == {"n": 3}

    CliRunner().invoke(command, args, catch_exceptions=False, standalone_mode=False)
    return got[0]


@click.command(add_help_option=False)
@sampler_options
def with_flags() -> None:
    """A command that has the flags."""


def test_flags_are_llama_cpp_s() -> None:
    found = [word for option in with_flags.params for word in option.opts]
    assert sorted(found) == sorted(LLAMA_CPP_FLAGS.split())


def test_only_what_is_set_is_passed_on() -> None:
    assert settings() == {}
    assert settings("--temp", "0", "-s", "7", "--top-k", "0") == {"temp": 0.0, "seed": 7, "top_k": 0}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--temperature", "1"], {"temp": 1.0}),
        (["--typical", "0.5"], {"typical_p": 0.5}),
        (["--top-nsigma", "-1"], {"top_n_sigma": -1.0}),
        (["--sampling-seq", "kt"], {"sampler_seq": "kt"}),
        (["--samplers", "top_k;temperature"], {"samplers": "top_k;temperature"}),
        (["--mirostat", "2", "--mirostat-lr", "0.2"], {"mirostat": 2, "mirostat_lr": 0.2}),
        (["-l", "15043+1", "--logit-bias", "7-2.5", "-l", "9-inf"],
         {"logit_bias": {15043: 1.0, 7: -2.5, 9: float("-inf")}}),
        (["--dry-sequence-breaker", r"\n", "--dry-sequence-breaker", r"a\"\d"],
         {"dry_sequence_breaker": ("\n", r'a"\d')}),
        (["--dry-sequence-breaker", "none"], {"dry_sequence_breaker": ()}),
    ],
)  # fmt: skip
def test_values(args: list[str], expected: dict[str, Any]) -> None:
    assert settings(*args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--top-p", "1.5"], "--top-p: found 1.5, needed a finite number, 0 or more, 1 or less"),
        (["--temp", "nan"], "--temp: found nan, needed a finite number"),
        (["--top-k", "99999999999"], "--top-k: found 99999999999, needed a whole number"),
        (["--sampler-seq", "ki"], "--sampler-seq: found 'ki', needed letters of edskypmxt"),
        (["--samplers", "infill"], "--samplers: found 'infill', needed samplers of penalties;"),
        (["-l", "5"], "--logit-bias: found '5', needed TOKEN+BIAS or TOKEN-BIAS"),
        (["-l", "x+1"], "--logit-bias: found 'x+1'"),
        (["-l", "5+x"], "--logit-bias: found '5+x'"),
        (["-l", "5+nan"], "--logit-bias: found {5: nan}, needed token ids"),
        (
            ["--dry-sequence-breaker", ""],
            "--dry-sequence-breaker: found ('',), needed texts of 1 to 40 bytes",
        ),
    ],
)
def test_bad_values_name_option_found_and_needed(args: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        settings(*args)
    assert str(error.value).startswith(message)


def test_a_value_of_the_wrong_kind_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError, match="'many' is not a valid integer"):
        settings("--top-k", "many")


def test_help_tells_defaults() -> None:
    with click.Context(with_flags, max_content_width=200, terminal_width=200) as ctx:
        text = with_flags.get_help(ctx)
    for expected in (
        "[default: 0.95]",
        "[default: -1]",
        r'[default: \n : " *]',
        "-l, --logit-bias TOKEN(+/-)BIAS",
    ):
        assert expected in text
    assert len(SAMPLER_OPTIONS) == text.count("\n  -")


def test_flags_need_no_numpy() -> None:
    code = "import sys, qllama.cli.options; sys.exit(bool({'numpy', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
