"""Options that several commands share. The sampler flags come from the samplers' own parameters."""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any, TypeVar, cast

import click

from qllama.errors import InputError
from qllama.sampling.order import OPTIONS, build
from qllama.sampling.parameters import flag

F = TypeVar("F", bound=Callable[..., Any])

# llama.cpp's command line has no flag for it.
SAMPLER_OPTIONS = [f for f in OPTIONS.values() if f.name != "min_keep"]

METAVARS: dict[type, str] = {dict: "TOKEN(+/-)BIAS", tuple: "TEXT", str: "TEXT"}

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


TYPES: dict[str, Callable[[str], int | float | bool | str]] = {
    "int": int, "float": float, "str": str, "bool": lambda text: {"true": True, "false": False}[text],
}  # fmt: skip

override_option = click.option(
    "--override-kv",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Metadata that stands for the file's; TYPE is int, float, bool or str. May be repeated.",
)

MODEL_OPTIONS = (
    click.option("-m", "--model", metavar="MODEL", help="The same as the argument MODEL."),
    click.option("-c", "--ctx-size", "n_ctx", type=int, help="Context in tokens. [default: 0, the model's own]"),
    click.option("-t", "--threads", "n_threads", type=int, help="Threads. [default: physical cores that may be used]"),
    click.option("-b", "--batch-size", "n_batch", type=int, help="Tokens of a step. [default: 512]"),
    click.option("-ctk", "--cache-type-k", "type_k", help="Type of the cached keys: f16, f32 or q8_0. [default: f16]"),
    click.option("-ctv", "--cache-type-v", "type_v", help="Type of the cached values. [default: f16]"),
    override_option,
)


def model_options(command: F) -> F:
    """Decorator: adds the options that say which model is loaded and how, as keywords of `qllama.LLM`.

    The command's own argument `file` may name the model too.
    """

    @functools.wraps(command)
    def collected(file: str | None, model: str | None, **kwargs: Any) -> Any:
        if file is not None and model is not None:
            raise InputError(f"two models are given: {file} and -m {model}")
        kwargs["path"] = file if file is not None else model
        if kwargs["n_ctx"] == 0:
            kwargs["n_ctx"] = None
        for name, default in (("n_batch", 512), ("type_k", "f16"), ("type_v", "f16")):
            kwargs[name] = default if kwargs[name] is None else kwargs[name]
        kwargs["override_kv"] = overrides(kwargs["override_kv"])
        return command(**kwargs)

    for add in reversed(MODEL_OPTIONS):
        collected = add(collected)
    return cast(F, collected)


def overrides(texts: Iterable[str]) -> dict[str, int | float | bool | str]:
    """What `--override-kv` says, as `open_gguf` takes it. Raises InputError for what is not KEY=TYPE:VALUE."""
    return dict(_override(text) for text in texts)


def _override(text: str) -> tuple[str, int | float | bool | str]:
    key, _, value = text.partition("=")
    kind, colon, value = value.partition(":")
    try:
        if not (key and colon):
            raise ValueError
        return key, TYPES[kind](value)
    except (KeyError, ValueError):
        needed = "KEY=TYPE:VALUE with TYPE int, float, bool or str, such as tokenizer.ggml.pre=str:llama-bpe"
        raise InputError(f"--override-kv: found {text!r}, needed {needed}") from None


def sampler_options(command: F) -> F:
    """Decorator: adds a flag for every sampler parameter, None or () where the user gives none."""
    for f in reversed(SAMPLER_OPTIONS):
        command = _click_option(f)(command)
    return command


def _click_option(f: Field) -> Callable[[F], F]:
    default = f.metadata["default"]
    several = isinstance(default, dict | tuple)
    shown = " ".join(default).replace("\n", "\\n") if isinstance(default, tuple) else str(default)
    return click.option(
        f.name,
        flag(f.name),
        *f.metadata["flags"],
        type=str if several else type(default),
        multiple=several,
        metavar=METAVARS.get(type(default), "N"),
        help=f.metadata["help"] + (f" [default: {shown}]" if default or default == 0 else ""),
    )


def sampler_settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the sampler options out of click's `kwargs`: those that the user set, checked.

    The result is what `SamplerChain` and `with_file_defaults` take. Raises InputError naming the option.
    """
    given = {f.name: kwargs.pop(f.name) for f in SAMPLER_OPTIONS}
    settings = {name: value for name, value in given.items() if value not in (None, ())}
    if "logit_bias" in settings:
        settings["logit_bias"] = dict(_bias(text) for text in settings["logit_bias"])
    if "dry_sequence_breaker" in settings:
        texts = settings["dry_sequence_breaker"]
        settings["dry_sequence_breaker"] = tuple(_unescaped(text) for text in texts if text != "none")
    build(settings)  # a bad value is refused before a model is loaded
    return settings


def _bias(text: str) -> tuple[int, float]:
    try:
        token, sign, bias = re.split(r"([+-])", text, maxsplit=1)
        return int(token), float(sign + bias)
    except ValueError:
        needed = "TOKEN+BIAS or TOKEN-BIAS, such as 15043-1.5"
        raise InputError(f"--logit-bias: found {text!r}, needed {needed}") from None


def _unescaped(text: str) -> str:
    """What the shell makes hard to write, a new line above all, as in C."""
    return re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[0]), text)
