"""What the benchmark programs share: their options, and how measurements are written down."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have; -m is each one's own."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    python = sys.executable
    out.add_argument("-t", "--threads", type=positive, default=2, help="of both engines [%(default)s]")
    out.add_argument("-r", "--runs", type=positive, default=5, help="rounds that count [%(default)s]")
    out.add_argument("--peer-python", default=python, help="the Python that has llama-cpp-python [this one]")
    out.add_argument("--json", type=Path, help="write all measurements to this file")
    out.add_argument("--write-readme", type=Path, nargs="?", const=README, help="put the table into [README.md]")
    return out


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def publish(args: argparse.Namespace, name: str, result: dict[str, Any], text: str) -> None:
    """Print the report, and write what the options ask for; `name` is the README's block."""
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.write_readme:
        replace_block(args.write_readme, name, text)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range: `40.1 (38.0-41.7)`."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low}-{high})"


def pair_ratios(ours: Sequence[float], peers: Sequence[float]) -> list[float]:
    """Each of ours over the peer's of the same round."""
    return [a / b for a, b in zip(ours, peers, strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def machine() -> dict[str, Any]:
    """What the numbers depend on, besides the engines themselves."""
    from llvmlite import binding

    from qllama.cpu import default_threads

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{_cpu_model()} ({binding.get_host_cpu_name()})",
        "cores": default_threads(),
        "ram_gib": _ram_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
        "llvm": ".".join(map(str, binding.llvm_version_info)),
    }


def machine_line(m: dict[str, Any]) -> str:
    """`machine()` as a sentence."""
    return (
        f"{m['date']}, {m['cpu']}, {m['cores']} cores, {m['ram_gib']} GiB of memory, {m['system']}; "
        f"Python {m['python']}, NumPy {m['numpy']}, Numba {m['numba']}, LLVM {m['llvm']}"
    )


def _cpu_model() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _ram_gib() -> float | None:
    """None where the system has no sysconf."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- name -->` and `<!-- /name -->` of a file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = path.read_text().partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{path}: needs the comments {begin} and {end}")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
