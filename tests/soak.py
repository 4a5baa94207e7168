"""Thousands of turns of `qllama chat` in one process: memory, descriptors and threads must stay flat.

By hand: `python tests/soak.py [TURNS [TOKENS]]` (10,000 turns of 100 tokens, a million in all). The conversation is
cleared now and then, as messages are kept; every context overflows several times in between.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

QLLAMA = [sys.executable, "-c", "from qllama.cli import main; main()"]
MODEL = Path(os.environ.get("QLLAMA_SHARED", "../shared")) / "models/stories260K-f32.gguf"
CLEAR = 50  # turns
CONTEXT = 512
PROMPT = b"\n> "


@dataclass(frozen=True)
class Sample:
    """What a process holds after some turns."""

    turns: int
    rss: int  # KiB
    descriptors: int
    threads: int

    @classmethod
    def take(cls, pid: int, turns: int) -> "Sample":
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(turns, int(status["VmRSS"][0]), descriptors, int(status["Threads"][0]))


def soak(model: Path, turns: int, tokens: int, data: Path, every: int) -> list[Sample]:
    """Talk for `turns` turns of at most `tokens` tokens; a sample each `every` turns. Raises when the program ends."""
    options = [
        "-i", "-q", "-n", tokens, "-c", CONTEXT, "--chat-template", "chatml", "--context-shift",
        "--logit-bias", "2-100",  # the end of text: every answer is as long as it may be
    ]  # fmt: skip
    process = subprocess.Popen(
        [*QLLAMA, "chat", str(model), *map(str, options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "QLLAMA_DATA": str(data)},
    )  # fmt: skip
    samples = []
    with process:
        try:
            _until_prompt(process)
            for turn in range(1, turns + 1):
                _say(process, "/clear" if turn % CLEAR == 0 else f"What happened on day {turn}?")
                if turn % every == 0:
                    samples.append(Sample.take(process.pid, turn))
            _end(process)
        except BaseException:
            process.kill()
            raise
    return samples


def _say(process: "subprocess.Popen[bytes]", text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode() + b"\n")
    process.stdin.flush()
    _until_prompt(process)


def _until_prompt(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    text = b""
    while not text.endswith(PROMPT):
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            raise EOFError(f"the program ended: {text[-500:]!r}")
        text = text[-16:] + piece


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.wait(60) != 0:
        raise RuntimeError(f"exit code {process.returncode}")


def growth(samples: list[Sample]) -> tuple[int, int, int]:
    """KiB, descriptors and threads that were added from the end of the first fifth on."""
    first, last = samples[len(samples) // 5], samples[-1]
    return last.rss - first.rss, last.descriptors - first.descriptors, last.threads - first.threads


if __name__ == "__main__":
    n_turns, n_tokens = (int(text) for text in (*sys.argv[1:], *("10000", "100")[len(sys.argv) - 1 :]))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(MODEL, n_turns, n_tokens, Path(folder), max(1, n_turns // 20))
    for sample in found:
        print(
            f"{sample.turns:>6} turns  {sample.rss:>8} KiB  {sample.descriptors} descriptors  {sample.threads} threads"
        )
    print(f"from the first fifth on: {growth(found)} KiB, descriptors, threads; {time.monotonic() - start:.0f} s")
