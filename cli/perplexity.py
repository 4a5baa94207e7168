"""`qllama perplexity`: llama-perplexity's command line. Results go to stdout, everything else to stderr."""

import contextlib
import json
import sys
import time
from typing import Any

import click

from qllama.cli.options import override_option, overrides
from qllama.cli.streams import need_stdout
from qllama.errors import InputError, read_file

# What llama-perplexity measures besides: refused by name.
FOREIGN = ("--ppl-stride", "--hellaswag", "--winogrande", "--multiple-choice")


def refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False, 0):
        raise InputError(f"{parameter.opts[0]} is not implemented; perplexity and --kl-divergence are")


def foreign_options(command: Any) -> Any:
    """Decorator: the options above, hidden from the help."""
    for flag in FOREIGN:
        kind: dict[str, Any] = {"type": int} if flag == "--ppl-stride" else {"is_flag": True}
        command = click.option(flag, hidden=True, expose_value=False, callback=refuse, **kind)(command)
    return command


@click.command()
@click.argument("model_file", metavar="[MODEL]", required=False)
@click.option("-m", "--model", metavar="MODEL", help="The same as the argument MODEL.")
@click.option("-f", "--file", "text_file", metavar="TEXT", help="The text, a file.")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(8, 1 << 24), help="Tokens of a chunk. [default: 512]")
@click.option("-b", "--batch-size", "n_batch", type=click.IntRange(1), default=2048, help="As in llama.cpp.")
@click.option("-ub", "--ubatch-size", "n_ubatch", type=click.IntRange(1), default=512, help="Tokens of a step.")
@click.option("-t", "--threads", "n_threads", type=int, help="Threads. [default: physical cores that may be used]")
@click.option("-ctk", "--cache-type-k", "type_k", default="f16", help="Type of the cached keys. [default: f16]")
@click.option("-ctv", "--cache-type-v", "type_v", default="f16", help="Type of the cached values. [default: f16]")
@click.option("--chunks", "n_chunks", type=click.IntRange(-1), default=-1, help="Read the first N only. [default: -1]")
@click.option(
    "--ppl-output-type", "output_type", type=click.IntRange(0, 1), default=0, help="1: a line for each chunk."
)
@click.option("--kl-divergence", is_flag=True, help="Compare with the predictions in --kl-divergence-base.")
@click.option(
    "--kl-divergence-base", "--save-all-logits", "base_file", metavar="FILE",
    help="Predictions of a base model: written to FILE, or read from it with --kl-divergence.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@override_option
@foreign_options
def command(
    model_file: str | None, model: str | None, text_file: str | None, n_ctx: int | None, n_batch: int, n_ubatch: int,
    n_threads: int | None, type_k: str, type_v: str, n_chunks: int, output_type: int, kl_divergence: bool,
    base_file: str | None, as_json: bool, override_kv: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure how well a model predicts a text: the lower the perplexity, the better.

    The text is cut into chunks of -c tokens, each begins anew with BOS, and its second half is scored, as in llama.cpp.
    """
    need_stdout("the result")
    if model_file is not None and model is not None:
        raise InputError(f"two models are given: {model_file} and -m {model}")
    if kl_divergence and base_file is None:
        raise InputError("--kl-divergence: needs --kl-divergence-base FILE, which was written with the base model")
    if n_chunks == 0:
        raise InputError("--chunks 0: there is nothing to measure")
    if kl_divergence == (text_file is not None):
        why = "with --kl-divergence the text is that of the base file" if kl_divergence else "no text: -f is needed"
        raise InputError(f"-f: {why}")
    options = {
        "path": model_file or model, "n_threads": n_threads, "n_batch": min(n_batch, n_ubatch), "type_k": type_k,
        "type_v": type_v, "override_kv": overrides(override_kv),
    }  # fmt: skip
    if kl_divergence:
        show_divergence(options, str(base_file), n_ctx, n_chunks, as_json)
    else:
        show_perplexity(options, str(text_file), n_ctx or 512, n_chunks, base_file, output_type, as_json)


def show_perplexity(
    options: dict[str, Any], text_file: str, n_ctx: int, n_chunks: int, base_file: str | None, output_type: int,
    as_json: bool,
) -> None:  # fmt: skip
    from qllama.cli.progress import load
    from qllama.evaluate.base import BaseWriter
    from qllama.evaluate.perplexity import Estimate, perplexity, read
    from qllama.evaluate.report import as_json as numbers
    from qllama.evaluate.report import detailed, final

    raw = read_text(text_file)
    llm = load(n_ctx=n_ctx, **options)
    text = read(llm.tokenizer, raw, n_ctx, n_chunks)
    progress, found, shown = Remaining(len(text.chunks)), Estimate(), []
    with contextlib.ExitStack() as stack:
        save = None
        if base_file is not None:
            save = stack.enter_context(BaseWriter(base_file, text, llm.tokenizer.n_vocab)).save
        for found in perplexity(llm.model, text, save):
            progress(found.n_chunk)
            shown.append(found.ppl)
            if not as_json:
                line = f"[{found.n_chunk}]{found.ppl:.4f}," if output_type == 0 else detailed(found, n_ctx) + "\n"
                click.echo(line, nl=False)
    if as_json:
        facts = {"model": llm.model.path, "text": text_file, "n_ctx": n_ctx, **numbers(found), "running_ppl": shown}
        click.echo(json.dumps(facts))
    else:
        click.echo(("\n" if output_type == 0 else "") + final(found))


def show_divergence(options: dict[str, Any], base_file: str, n_ctx: int | None, n_chunks: int, as_json: bool) -> None:
    from qllama.cli.progress import load
    from qllama.evaluate.base import BaseFile
    from qllama.evaluate.divergence import divergence
    from qllama.evaluate.perplexity import chunk_bos
    from qllama.evaluate.report import TITLES, chunk_line, statistics
    from qllama.evaluate.report import as_json as numbers

    base = BaseFile(base_file, n_chunks)
    if n_ctx is not None and n_ctx < base.n_ctx:
        raise InputError(f"-c {n_ctx}: {base_file} was made with {base.n_ctx}, which is needed here too")
    llm = load(n_ctx=base.n_ctx, **options)
    progress, found = Remaining(len(base.chunks)), None
    for found in divergence(llm.model, base, chunk_bos(llm.tokenizer)):
        progress(found.n_chunk)
        if not as_json:
            click.echo((TITLES + "\n" if found.n_chunk == 1 else "") + chunk_line(found))
    assert found is not None
    if as_json:
        facts = {"model": llm.model.path, "base": base_file, "n_ctx": base.n_ctx, **numbers(found)}
        click.echo(json.dumps(facts))
    elif text := statistics(found):
        click.echo("\n" + text)


def read_text(path: str) -> bytes:
    """The file's bytes without a new line at its end, as llama.cpp reads it."""
    return read_file(path, "the text").removesuffix(b"\n")


class Remaining:
    """The time that is left, on stderr: after the first chunk, and after each where that can be written over."""

    def __init__(self, n_chunk: int) -> None:
        self.n_chunk, self.started = n_chunk, time.monotonic()
        self.rewrite = sys.stderr is not None and sys.stderr.isatty() and not sys.stdout.isatty()

    def __call__(self, done: int) -> None:
        each = (time.monotonic() - self.started) / done
        left = each * (self.n_chunk - done)
        if done == 1:
            click.echo(f"perplexity: {self.n_chunk} chunks, {each:.2f} seconds per pass - ETA {clock(left)}", err=True)
        if self.rewrite:
            click.echo(f"\rchunk {done}/{self.n_chunk}, {clock(left)} left ", nl=done == self.n_chunk, err=True)


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
