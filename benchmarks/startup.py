"""How long a first token takes from the start of a process, and how much memory: both engines in turns.

    python benchmarks/startup.py -m model-Q8_0.gguf -p "Once upon a time"
    python benchmarks/startup.py -m model-Q4_0.gguf --ids 1,2,3

A text is continued by `qllama run -n 1` and by a Python script that does the same with llama-cpp-python
(peer.py). With --ids both sides are Python scripts that are given token ids (ours.py, peer.py). POSIX only:
it needs os.wait4.
"""

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import machine, machine_line, pair_ratios, parser, publish, spread, table

HERE = Path(__file__).parent
QLLAMA = str(Path(sysconfig.get_path("scripts")) / "qllama")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
CTX = "512"
ENGINES = ("qllama", "llama.cpp")

Result = dict[str, Any]


def measure(command: Sequence[str]) -> Result:
    """Run a command: seconds to its first output and to its end, peak resident bytes, what it wrote."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        output = process.stdout.read(1)
        first = time.perf_counter() - start
        output += process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    end = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with exit code {process.returncode}")
    rss = usage.ru_maxrss * RSS_UNIT
    return {"first": first, "end": end, "rss": rss, "output": output.decode(errors="replace")}


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The two commands that are compared, by engine."""
    common = ["-t", str(args.threads), "-c", CTX]
    peer = [args.peer_python, str(HERE / "peer.py"), args.model, *common]
    if args.ids:
        ours = [sys.executable, str(HERE / "ours.py"), args.model, *common]
        return dict(zip(ENGINES, ([*ours, "--ids", args.ids], [*peer, "--ids", args.ids]), strict=True))
    ours = [QLLAMA, "run", "-m", args.model, "-p", args.prompt, "-n", "1", "--temp", "0", "--quiet", *common]
    return dict(zip(ENGINES, (ours, [*peer, "--text", args.prompt]), strict=True))


def in_turns(programs: dict[str, list[str]], n_rounds: int) -> dict[str, list[Result]]:
    """Every program once per round; a round before them fills caches and is not counted."""
    rounds = [{name: measure(command) for name, command in programs.items()} for _ in range(n_rounds + 1)]
    return {name: [r[name] for r in rounds[1:]] for name in programs}


def column(runs: Sequence[Result], key: str) -> list[float]:
    return [r[key] for r in runs]


def markdown(result: Result) -> str:
    """The report: one line per command, then what it was measured on."""
    size = result["file_bytes"]
    first = {name: column(runs, "first") for name, runs in result["runs"].items()}
    rows = []
    for name, runs in result["runs"].items():
        rss = statistics.median(column(runs, "rss"))
        of_file = f"{rss / size:.2f}" if name in ENGINES else ""
        times = [spread(column(runs, key), 3) for key in ("first", "end")]
        rows.append([name, *times, f"{rss / 1e6:.0f}", of_file])
    header = ["", "first output, s", "until exit, s", "peak memory, MB", "of the file's size"]
    ratio = spread(pair_ratios(*(first[name] for name in ENGINES)), 2)
    tokens = " and ".join(repr(result["runs"][name][0]["output"].strip()) for name in ENGINES)
    notes = (
        f"{result['file']} ({size / 1e6:.0f} MB), {result['threads']} threads, {len(runs)} rounds. "
        f"qllama's time to the first token over llama.cpp's: {ratio}. They wrote {tokens}. "
        f"{machine_line(result['machine'])}."
    )
    return table(header, rows) + "\n\n" + notes


def parse() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("-m", "--model", required=True, help="a GGUF file")
    cli.add_argument("-p", "--prompt", default="Once upon a time", help="[%(default)s]")
    cli.add_argument("--ids", help="token ids to give instead of a text, such as 1,2,3")
    return cli.parse_args()


def main() -> None:
    args = parse()
    programs = commands(args)
    programs |= {"qllama --help": [QLLAMA, "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    model = Path(args.model)
    result: Result = {"file": model.name, "file_bytes": model.stat().st_size, "threads": args.threads}
    result |= {"runs": in_turns(programs, args.runs), "machine": machine()}
    publish(args, "startup", result, markdown(result))


if __name__ == "__main__":
    main()
