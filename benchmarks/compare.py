"""qllama and llama.cpp side by side: prompt processing and decoding of the same files, measured in turns.

    python benchmarks/compare.py -m model-Q4_0.gguf -m model-Q8_0.gguf -t 2 --json results/NAME.json

Each engine is a process of its own that loads the model once (ours.py, peer.py). This file decides what is
measured and in which order; report.py writes it down.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandwidth import PlainRead
from report import machine, machine_line, pair_ratios, parser, positive, publish, spread, table

from qllama.gguf import open_gguf

HERE = Path(__file__).parent
ENGINES = ("qllama", "llama.cpp")
QUIET = 0.95  # of the cores asked for: an engine that gets less was disturbed by something else
PATIENCE = 3  # rounds that are measured at most for each one that is to count
DEFAULT = "pp512,tg64"
DOUBTFUL = 0.05  # NMSE between the engines' logits beyond which they hardly compute the same thing

Result = dict[str, Any]


class Worker:
    """One engine with a loaded model, idle except while it is asked."""

    def __init__(self, name: str, python: str, script: str, model: str, n_threads: int, n_ctx: int) -> None:
        self.name = name
        command = [python, str(HERE / script), model, "-t", str(n_threads), "-c", str(n_ctx)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()["about"]

    def ask(self, test: Result) -> Result:
        """The answer to one request: `seconds`, `cores` and sampled `logits`."""
        assert self._process.stdin
        print(json.dumps(test), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Result:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()


def bytes_per_token(path: str) -> int:
    """The weights that decoding one token reads; of a separate token embedding it reads one row only."""
    with open_gguf(path) as gguf:
        looked_up = {"token_embd.weight"} if "output.weight" in gguf.tensors else set()
        return sum(t.nbytes for name, t in gguf.tensors.items() if name not in looked_up)


def nmse(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Squared difference over squared size."""
    return sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / sum(b * b for b in theirs)


def measure_round(workers: Sequence[Worker], tests: dict[str, Result], read: PlainRead) -> Result:
    """Every test on both engines in turn, then the plain read."""
    answers = {name: [w.ask(test) for w in workers] for name, test in tests.items()}
    out: Result = {"nmse": max(nmse(a["logits"], b["logits"]) for a, b in answers.values())}
    for key in ("seconds", "cores"):
        out[key] = {name: {e: a[key] for e, a in zip(ENGINES, pair, strict=True)} for name, pair in answers.items()}
    out["read_gbps"] = read.gbps()
    return out


def measure_model(path: str, args: argparse.Namespace, read: PlainRead) -> Result:
    """All rounds of one file, until enough were undisturbed; one before them warms everything up."""
    tests = args.tests
    common = (path, args.threads, max(test["depth"] + test["n"] for test in tests.values()))
    with (
        Worker("qllama", sys.executable, "ours.py", *common) as ours,
        Worker("llama.cpp", args.peer_python, "peer.py", *common) as peer,
    ):
        measure_round((ours, peer), tests, read)
        rounds: list[Result] = []
        while len(rounds) < PATIENCE * args.runs and sum(r["quiet"] for r in rounds) < args.runs:
            rounds.append(measure_round((ours, peer), tests, read))
            rounds[-1]["quiet"] = least_cores(rounds[-1]) >= QUIET * args.threads
            print(f"{Path(path).name}: round {len(rounds)}", file=sys.stderr, flush=True)
        engines = {w.name: w.about for w in (ours, peer)}
    result = {"file": Path(path).name, "bytes_per_token": bytes_per_token(path), "tests": tests}
    return result | {"engines": engines, "rounds": rounds}


def least_cores(measured: Result) -> float:
    """What the worst-off engine got in a round."""
    return min(cores for test in measured["cores"].values() for cores in test.values())


def counted(model: Result) -> list[Result]:
    """The rounds that count: the undisturbed ones, or all when there was none."""
    return [r for r in model["rounds"] if r["quiet"]] or model["rounds"]


def speeds(model: Result, name: str) -> list[list[float]]:
    """Tokens per second of each engine, round by round."""
    return [[model["tests"][name]["n"] / r["seconds"][name][e] for r in counted(model)] for e in ENGINES]


def rows(model: Result) -> list[list[str]]:
    """The lines of one file in the table."""
    out = []
    for name, test in model["tests"].items():
        ours, theirs = speeds(model, name)
        row = [model["file"], name, spread(ours), spread(theirs), spread(pair_ratios(ours, theirs), 2)]
        shallow = test["op"] == "tg" and not test["depth"]  # deeper, decoding reads the cache too
        out.append(row + (_gbps(model, ours, theirs) if shallow else ["", "", ""]))
    return out


def _gbps(model: Result, ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    weights = [f"{statistics.median(s) * model['bytes_per_token'] / 1e9:.1f}" for s in (ours, theirs)]
    return [*weights, spread([r["read_gbps"] for r in counted(model)])]


def quality(models: Sequence[Result]) -> list[str]:
    """Whether the numbers can be trusted: was the machine quiet, did both engines compute the same."""
    n_quiet = ", ".join(f"{sum(r['quiet'] for r in m['rounds'])} of {len(m['rounds'])}" for m in models)
    busy = " THE MACHINE WAS BUSY: measure again." if not all(r["quiet"] for m in models for r in counted(m)) else ""
    worst = max(r["nmse"] for m in models for r in m["rounds"])
    differ = "" if worst <= DOUBTFUL else " THEY HARDLY COMPUTE THE SAME."
    return [
        f"Rounds that count, as each engine got {QUIET:.0%} of its cores or more: {n_quiet}.{busy}",
        f"Largest NMSE between the engines' logits: {worst:.1e}.{differ}",
    ]


def markdown(result: Result) -> str:
    """The report: the table, then what it was measured on."""
    header = ["model", "test", "qllama t/s", "llama.cpp t/s", "ratio"]
    header += ["qllama GB/s", "llama.cpp GB/s", "plain read GB/s"]
    models = result["models"]
    engines = "; ".join(f"{e}: {', '.join(about.values())}" for e, about in models[0]["engines"].items())
    notes = [
        f"{result['threads']} threads. {machine_line(result['machine'])}.",
        f"{engines}.",
        *quality(models),
    ]
    return table(header, [row for m in models for row in rows(m)]) + "\n\n" + "\n".join(f"- {n}" for n in notes)


def named_tests(text: str) -> dict[str, Result]:
    """Tests by llama-bench's names: pp512 is a prompt, tg64 is 64 tokens one by one, @d4096 after 4096 others."""
    tests = {}
    for name in text.split(","):
        match = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:@d(\d+))?", name)
        if not match:
            raise argparse.ArgumentTypeError(f"{name} is no test: pp512, tg64 or tg64@d4096 are")
        tests[name] = {"op": match[1], "n": int(match[2]), "depth": int(match[3] or 0)}
    return tests


def parse() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("-m", "--model", action="append", required=True, help="a GGUF file; repeat for several")
    cli.add_argument("--tests", type=named_tests, default=DEFAULT, metavar="T,...", help=f"what to measure [{DEFAULT}]")
    cli.add_argument("--read-mib", type=positive, default=1024, help="memory of the plain read [%(default)s]")
    return cli.parse_args()


def main() -> None:
    args = parse()
    read = PlainRead(args.threads, args.read_mib << 20)
    models = [measure_model(path, args, read) for path in args.model]
    result = {"machine": machine(), "threads": args.threads, "models": models}
    publish(args, "compare", result, markdown(result))


if __name__ == "__main__":
    main()
