"""An engine behind a pipe: JSON lines in, seconds out. What to ask is compare.py's business.

Standard library only: it runs in whatever environment an engine lives in.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

N_SAMPLED = 64  # logits that go with an answer, so that two engines can be checked against each other
REST = 0.1  # of a core: below this an engine counts as idle


class Engine(Protocol):
    """A loaded model."""

    n_vocab: int
    about: dict[str, str]  # version and settings, for the report

    def decode(self, ids: Sequence[int], n_past: int) -> None:
        """Run `ids` from position n_past until the logits of the last one are there; n_past 0 begins anew."""

    def logits(self) -> Any:
        """The logits of the last token: (n_vocab,) float32 ndarray."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all workers share."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("model")
    out.add_argument("-t", "--threads", type=int, default=2)
    out.add_argument("-c", "--ctx-size", type=int, default=512)
    out.add_argument("--ids", type=_ids, metavar="I,J,...", help="print the token after these and exit")
    return out


def _ids(text: str) -> list[int]:
    return [int(i) for i in text.split(",")]


def run(engine: Engine, args: argparse.Namespace) -> None:
    """Print one token when `--ids` are given, else answer requests until stdin ends."""
    if args.ids:
        print(first_token(engine, args.ids), flush=True)  # its time is taken where it arrives
    else:
        serve(engine)


def first_token(engine: Engine, ids: Sequence[int]) -> int:
    """The likeliest token after `ids`."""
    engine.decode(ids, 0)
    return int(engine.logits().argmax())


def serve(engine: Engine) -> None:
    """Say {"about"}, then answer each {"op": "pp" or "tg", "n", "depth"} with {"seconds", "cores", "logits"}.

    "pp" reads n tokens at once, "tg" one by one, both after `depth` tokens whose time is not taken.
    "cores" is the CPU time used per second: less than the threads, and something else kept the machine busy.
    """
    _say({"about": engine.about})
    for line in sys.stdin:
        request = json.loads(line)
        depth, end = request["depth"], request["depth"] + request["n"]
        ids = [i * 7919 % engine.n_vocab for i in range(end)]
        n_batch = {"pp": request["n"], "tg": 1}[request["op"]]
        if depth:
            engine.decode(ids[:depth], 0)
        start, cpu = time.perf_counter(), time.process_time()
        for n_past in range(depth, end, n_batch):
            engine.decode(ids[n_past : n_past + n_batch], n_past)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        sampled = engine.logits()[:: -(-engine.n_vocab // N_SAMPLED)]
        _say({"seconds": seconds, "cores": cpu / seconds, "logits": [float(x) for x in sampled]})


def _say(message: dict[str, Any]) -> None:
    _rest()
    print(json.dumps(message), flush=True)


def _rest() -> None:
    """Return when the engine's threads sleep: the other engine, measured next, needs the machine alone."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        wall, cpu = time.monotonic(), time.process_time()
        time.sleep(0.05)
        if time.process_time() - cpu < REST * (time.monotonic() - wall):
            return
    raise SystemExit("the engine's threads still use the CPU ten seconds after its work was done")
