"""How the parameter of a sampler is declared and checked. Its name is also its flag and its name in messages.

What the parameters mean is samplers.py's business.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

from qllama.errors import InputError

MAX = 3.4e38  # what a float32 can hold


class Need(NamedTuple):
    """What a value has to be: in words, and as a test."""

    text: str
    met: Callable[[Any], bool]


def whole(low: int, high: int = 2**31 - 1) -> Need:
    """A whole number within the bounds."""
    return Need(f"a whole number from {low} to {high}", lambda v: _is(v, Integral) and low <= v <= high)


def number(low: float = -MAX, high: float = MAX, above: float = -math.inf) -> Need:
    """A number within the bounds, and more than `above`; neither infinite nor NaN."""
    bounds = [f"{low:g} or more"] * (low > -MAX) + [f"{high:g} or less"] * (high < MAX)
    bounds += [f"more than {above:g}"] * (above > -math.inf)
    text = ", ".join(["a finite number", *bounds])
    return Need(text, lambda v: _is(v, Real) and low <= v <= high and v > above)


def _is(v: Any, kind: Any) -> bool:
    return isinstance(v, kind) and not isinstance(v, bool)


def _is_bias(v: Any) -> bool:
    return _is(v, Mapping) and all(
        _is(token, Integral) and token >= 0 and _is(bias, Real) and -math.inf <= bias <= MAX
        for token, bias in v.items()
    )


def _are_breakers(v: Any) -> bool:
    return _is(v, tuple | list) and all(
        _is(text, str) and 1 <= len(text.encode(errors="surrogatepass")) <= 40 for text in v
    )


BIAS = Need("token ids with a finite number or -inf each", _is_bias)
BREAKERS = Need("texts of 1 to 40 bytes", _are_breakers)


def option(default: Any, need: Need, help: str, *flags: str, gguf: str | None = None) -> Any:
    """A dataclass field. `flags`: other spellings; `gguf`: its key in a file, after `general.sampling.`."""
    metadata = {"default": default, "need": need, "help": help, "flags": flags, "gguf": gguf}
    return field(default_factory=lambda: default, metadata=metadata)


def flag(name: str) -> str:
    """The spelling of a parameter on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Parameters:
    """Base of the classes of parameters: every field is an `option`, checked when an object is made.

    Raises InputError naming the option, what was found and what was needed.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            found, need = getattr(self, f.name), f.metadata["need"]
            if not need.met(found):
                raise InputError(f"{flag(f.name)}: found {found!r}, needed {need.text}")
            plain = type(f.metadata["default"])(found)  # no NumPy scalars: float64 would widen the logits
            object.__setattr__(self, f.name, plain)
