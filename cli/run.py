"""`qllama run`: continue a prompt. Text goes to stdout as it comes, everything else to stderr."""

import sys
from typing import Any

import click

from qllama.cli.options import model_options, sampler_options, sampler_settings
from qllama.cli.streams import need_stdout
from qllama.cli.template import template_options
from qllama.errors import InputError, read_file


@click.command()
@click.argument("file", metavar="[MODEL]", required=False)
@model_options
@click.option("-p", "--prompt", help="Text to continue; '' begins from BOS alone. [default: stdin]")
@click.option("-f", "--file", "prompt_file", metavar="FILE", help="Read the prompt from FILE.")
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "n_predict",
    type=int,
    default=-1,
    help="Tokens to generate. [default: -1, until the end]",
)
@click.option("--messages", "messages_file", metavar="FILE", help="Answer the conversation in FILE (JSON messages).")
@template_options
@click.option("--context-shift", is_flag=True, help="When the context is full, drop the older half and go on.")
@click.option("--keep", "n_keep", type=int, default=0, help="First tokens that a context shift keeps. [default: 0]")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before TEXT; may be repeated.")
@click.option("--no-parse-special", is_flag=True, help="Take the names of special tokens in the prompt as plain text.")
@click.option("--echo", is_flag=True, help="Print the prompt before the text.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no statistics on stderr.")
@sampler_options
def command(
    prompt: str | None, prompt_file: str | None, messages_file: str | None, chat_template: str | None,
    template_kwargs: dict[str, Any], n_predict: int, context_shift: bool, n_keep: int, ignore_eos: bool,
    stop: tuple[str, ...], no_parse_special: bool, echo: bool, quiet: bool, **kwargs: Any,
) -> int:  # fmt: skip
    """Write text that continues a prompt, or the answer to a conversation (--messages, --chat-template).

    MODEL is a GGUF file; without one a small model that comes with qllama is used.
    """
    need_stdout("the text")
    sampling = sampler_settings(kwargs)
    if n_predict < -2:
        raise InputError(f"-n: found {n_predict}, needed a number of tokens, or -1 for no limit")
    if n_keep < 0:
        raise InputError(f"--keep: found {n_keep}, needed a number of tokens")
    chat = chat_template is not None or messages_file is not None or bool(template_kwargs)
    text = b"" if messages_file is not None else read_prompt(prompt, prompt_file)
    if messages_file is not None and (prompt is not None or prompt_file is not None or echo):
        raise InputError("--messages cannot be used with -p, -f or --echo")
    if chat and no_parse_special:
        raise InputError("--no-parse-special: a chat template is made of special tokens")

    from qllama.chat.messages import Conversation, read_messages
    from qllama.cli.progress import load
    from qllama.generate import Stats

    user = {"role": "user", "content": text.decode(errors="surrogateescape")}
    talk = Conversation([user]) if messages_file is None else read_messages(messages_file)
    llm, stats = load(quiet=quiet, chat_template=chat_template, **kwargs), Stats()
    options = {"ignore_eos": ignore_eos, "stats": stats, "n_keep": n_keep if context_shift else None, **sampling}
    if chat:
        pieces = llm.chat(talk.messages, n_predict, stop, talk.tools, template_kwargs, **options)
    else:
        pieces = llm.generate(text, n_predict, stop, parse_special=not no_parse_special, **options)
    out = sys.stdout.buffer
    interrupted = False
    try:
        if echo:
            out.write(text)
        for piece in pieces:
            out.write(piece.encode())
            out.flush()
    except KeyboardInterrupt:
        interrupted = True
    out.write(b"\n")
    out.flush()
    if not quiet:
        click.echo(summary(stats), err=True)
    return 130 if interrupted else 0


def read_prompt(prompt: str | None, prompt_file: str | None) -> bytes:
    """The prompt's bytes from -p, -f or stdin; they need not be UTF-8."""
    if prompt is not None and prompt_file is not None:
        raise InputError("-p and -f cannot be used together")
    if prompt is not None:
        return prompt.encode(errors="surrogateescape")
    if prompt_file is None:
        if sys.stdin is None:
            raise InputError("no prompt: stdin is closed and neither -p nor -f is given")
        return sys.stdin.buffer.read()
    return read_file(prompt_file, "the prompt")


def summary(stats: Any) -> str:
    """One line: tokens, speeds, time to the first token."""

    def rate(n: int, seconds: float) -> str:
        return f"{n / seconds:.1f} t/s" if n > 0 and seconds > 0 else "- t/s"

    ended = f"{stats.finish_reason} (the context is full)" if stats.context_full else stats.finish_reason
    known = f" ({stats.n_cached} of them known)" if stats.n_cached else ""
    dropped = f" | context shifts dropped {stats.n_dropped} tokens" if stats.n_dropped else ""
    n_new = stats.n_prompt - stats.n_cached
    return (
        f"prompt {stats.n_prompt} tokens{known}, {rate(n_new, stats.prompt_seconds)} | generated {stats.n_generated}"
        f" tokens, {rate(stats.n_generated - 1, stats.generation_seconds)} | first token after"
        f" {stats.first_token_seconds:.2f} s | ended by {ended}{dropped} | seed {stats.seed}"
    )
