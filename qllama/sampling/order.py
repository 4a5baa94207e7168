"""Which samplers run, in which order: from the options that a user set and what a model file recommends.

Options are a plain dict of what was set; all samplers share one name space, the same as on the command line.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Protocol

from qllama.errors import FileError, InputError
from qllama.sampling.parameters import Need, Parameters, option, whole
from qllama.sampling.samplers import SAMPLERS, Sampler, Temperature

# Letter in --sampler-seq: name in --samplers. In the default order.
LETTERS = {cls.letter: name for name, cls in SAMPLERS.items() if cls.letter}

# Other spellings in --samplers, "-" being "_".
ALIASES = {
    "nucleus": "top_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "typ": "typ_p",
    "temp": "temperature",
}

DEFAULT_ORDER = ";".join(LETTERS.values())


def _names(samplers: str) -> list[str]:
    words = [word.strip().replace("-", "_") for word in samplers.split(";") if word.strip()]
    return [ALIASES.get(word, word) for word in words]


NAMES = Need(f"samplers of {DEFAULT_ORDER}", lambda v: isinstance(v, str) and set(_names(v)) <= set(LETTERS.values()))
SEQUENCE = Need(f"letters of {''.join(LETTERS)}", lambda v: isinstance(v, str) and set(v) <= set(LETTERS))


@dataclass(frozen=True)
class Order(Parameters):
    """The options of the chain as a whole."""

    samplers: str = option(DEFAULT_ORDER, NAMES, "samplers in their order, separated by ;", gguf="sequence")
    sampler_seq: str = option("", SEQUENCE, f"the same by letters, of {''.join(LETTERS)}", "--sampling-seq")
    min_keep: int = option(0, whole(0), "candidates that top-p, min-p, typical and XTC leave at least")

    def names(self) -> list[str]:
        """The samplers asked for."""
        return [LETTERS[letter] for letter in self.sampler_seq] or _names(self.samplers)


OPTIONS: dict[str, Field] = {f.name: f for cls in (*SAMPLERS.values(), Order) for f in fields(cls)}

FILE_KEYS = {name: "general.sampling." + f.metadata["gguf"] for name, f in OPTIONS.items() if f.metadata["gguf"]}


def parameters(cls: type[Parameters], options: Mapping[str, Any]) -> Any:
    """The `cls` of those options that belong to it."""
    return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})


def build(options: Mapping[str, Any]) -> list[Sampler]:
    """The samplers to run, in order, without those that would change nothing; the last one leaves one token.

    Keys of `options` are those of OPTIONS; what is missing has its default. Raises InputError naming one.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise InputError(f"found sampling option {unknown[0]!r}, needed one of {', '.join(OPTIONS)}")
    if "samplers" in options and "sampler_seq" in options:
        raise InputError("found both --samplers and --sampler-seq, needed one of them")
    made: dict[str, Sampler] = {name: parameters(cls, options) for name, cls in SAMPLERS.items()}
    names, last = parameters(Order, options).names(), "dist"
    if options.get("mirostat"):
        names, last = ["temperature"], "mirostat"
        made["temperature"] = parameters(Temperature, {**options, "dynatemp_range": 0.0})
    return _until_greedy([made[name] for name in ("logit_bias", *names, last) if not made[name].idle])


def _until_greedy(chain: list[Sampler]) -> list[Sampler]:
    """Nothing after a temperature of 0 matters, and before it only what changes the likeliest token."""
    for at, sampler in enumerate(chain):
        if isinstance(sampler, Temperature) and sampler.temp <= 0:
            return [*(s for s in chain[:at] if not s.keeps_best), sampler]
    return chain


class Metadata(Protocol):
    """What is asked of a file's metadata."""

    def __contains__(self, key: object) -> bool: ...
    def __getitem__(self, key: str) -> Any: ...
    def error(self, key: str, reason: str) -> FileError: ...


def with_file_defaults(options: Mapping[str, Any], metadata: Metadata) -> dict[str, Any]:
    """`options`, and what the file's `general.sampling.*` recommends for those that are not set.

    Raises FileError for a recommendation that cannot be used.
    """
    taken = dict(options)
    for name, key in FILE_KEYS.items():
        if name in options or key not in metadata or (name == "samplers" and "sampler_seq" in options):
            continue
        need = OPTIONS[name].metadata["need"]
        if not need.met(metadata[key]):
            raise metadata.error(key, f"must be {need.text}")
        taken[name] = metadata[key]
    return taken
