"""Results as text: llama-bench's five formats, byte for byte but for the numbers. Returns strings, prints nothing."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable

from qllama.bench.parameters import Parameters
from qllama.bench.results import BACKEND, BUILD_COMMIT, BUILD_NUMBER, FIELDS, NEUTRAL, Result, deviation, mean

SQL_TYPES = {"text": "TEXT", "int": "INTEGER", "bool": "INTEGER", "float": "REAL"}

# Columns of the Markdown table that appear when they are asked for: title and width (negative: aligned to the left).
COLUMNS: dict[str, tuple[str, int]] = {
    "n_batch": ("n_batch", 7), "n_ubatch": ("n_ubatch", 8), "type_k": ("type_k", 6), "type_v": ("type_v", 6),
    "split_mode": ("sm", 6), "flash_attn": ("fa", 3), "devices": ("dev", -12), "load_mode": ("lm", 10),
    "lazy_mode": ("lazy_mode", -10),
}  # fmt: skip


class Printer(ABC):
    """One format: what comes before the tests, for each test, and after them."""

    def header(self, parameters: Parameters) -> str:
        return ""

    @abstractmethod
    def test(self, result: Result) -> str: ...

    def footer(self) -> str:
        return ""


class CSV(Printer):
    def header(self, parameters: Parameters) -> str:
        return ",".join(FIELDS) + "\n"

    def test(self, result: Result) -> str:
        return ",".join('"' + value.replace('"', '""') + '"' for value in result.values().values()) + "\n"


def json_items(result: Result) -> list[str]:
    """`"field": value` of every field but the samples."""
    shown: dict[str, Callable[[str], str]] = {
        "text": lambda v: json.dumps(v, ensure_ascii=False),
        "bool": lambda v: "false" if v == "0" else "true",
        "int": str,
        "float": str,
    }
    return [f'"{name}": {shown[FIELDS[name]](value)}' for name, value in result.values().items()]


def samples(result: Result) -> tuple[str, str]:
    """The times and the speeds of all runs."""
    ns = ", ".join(map(str, result.samples_ns))
    ts = ", ".join(f"{x:g}" for x in result.samples_ts)
    return f'"samples_ns": [ {ns} ]', f'"samples_ts": [ {ts} ]'


class JSON(Printer):
    def __init__(self) -> None:
        self.between = ""

    def header(self, parameters: Parameters) -> str:
        return "[\n"

    def test(self, result: Result) -> str:
        lines = [*json_items(result), *samples(result)]
        text = self.between + "  {\n" + ",\n".join(f"    {line}" for line in lines) + "\n  }"
        self.between = ",\n"
        return text

    def footer(self) -> str:
        return "\n]\n"


class JSONLines(Printer):
    def test(self, result: Result) -> str:
        ns, ts = samples(result)
        return "{" + ", ".join([*json_items(result), f"{ns},{ts}"]) + "}\n"


class SQL(Printer):
    def header(self, parameters: Parameters) -> str:
        lines = ",\n".join(f"  {name} {SQL_TYPES[kind]}" for name, kind in FIELDS.items())
        return f"CREATE TABLE IF NOT EXISTS llama_bench (\n{lines}\n);\n\n"

    def test(self, result: Result) -> str:
        values = ", ".join("'" + value.replace("'", "''") + "'" for value in result.values().values())
        return f"INSERT INTO llama_bench ({', '.join(FIELDS)}) VALUES ({values});\n"


class Markdown(Printer):
    """The table for people. Its columns depend on what was varied or is not llama-bench's default."""

    def __init__(self) -> None:
        self.fields: dict[str, tuple[str, int]] = {}

    def header(self, parameters: Parameters) -> str:
        self.fields = {
            "model": ("model", -30), "size": ("size", 10), "params": ("params", 10), "backend": ("backend", -10),
            "n_threads": ("threads", 7), **{name: COLUMNS[name] for name in COLUMNS if asked_for(name, parameters)},
            "test": ("test", 15), "t/s": ("t/s", 20),
        }  # fmt: skip
        titles = " | ".join(aligned(title, width) for title, width in self.fields.values())
        rules = " | ".join("-" * (abs(width) - 1) + ("-" if width < 0 else ":") for _, width in self.fields.values())
        return f"| {titles} |\n| {rules} |\n"

    def test(self, result: Result) -> str:
        ts = result.samples_ts
        values = {
            **result.values(), "model": result.about.type, "size": mebibytes(result.about.size),
            "params": millions(result.about.n_params), "backend": BACKEND, "test": result.instance.name,
            "t/s": f"{mean(ts):.2f} ± {deviation(ts):.2f}",
        }  # fmt: skip
        return "| " + " | ".join(aligned(values[name], width) for name, (_, width) in self.fields.items()) + " |\n"

    def footer(self) -> str:
        return f"\nbuild: {BUILD_COMMIT} ({BUILD_NUMBER})\n"


def asked_for(name: str, parameters: Parameters) -> bool:
    """Whether a parameter has several values, or one that is not the default."""
    if name in NEUTRAL:
        return parameters.foreign.get(name, NEUTRAL[name]) != NEUTRAL[name]
    return getattr(parameters, name) != getattr(Parameters, name)


def aligned(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def mebibytes(n: int) -> str:
    return f"{n / 2**20:.2f} MiB" if n < 2**30 else f"{n / 2**30:.2f} GiB"


def millions(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"


FORMATS: dict[str, type[Printer]] = {"csv": CSV, "json": JSON, "jsonl": JSONLines, "md": Markdown, "sql": SQL}
