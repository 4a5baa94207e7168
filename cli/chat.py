"""`qllama chat`: a conversation with a model. What a turn is is known by qllama.session, the terminal by cli.repl."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qllama.cli.options import model_options, sampler_options, sampler_settings
from qllama.cli.streams import need_stdout
from qllama.cli.template import template_options
from qllama.errors import InputError, printable, read_file

if TYPE_CHECKING:
    from qllama.chat.history import History


@click.command()
@click.argument("file", metavar="[MODEL]", required=False)
@model_options
@click.option("-p", "--prompt", help="The first message.")
@click.option("-sys", "--system-prompt", "system", metavar="TEXT", help="The system message.")
@click.option("-sysf", "--system-prompt-file", "system_file", metavar="FILE", help="Read the system message from FILE.")
@click.option("-st", "--single-turn", is_flag=True, help="Give one answer and end.")
@click.option("-i", "--interactive", is_flag=True, help="Ask for messages even if standard input is no terminal.")
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "n_predict",
    type=int,
    default=-1,
    help="Most tokens of an answer. [default: -1, no limit]",
)
@template_options
@click.option(
    "--reasoning",
    type=click.Choice(["show", "hide"]),
    help="The model's reasoning, shown dimmed. [default: show; hide without a terminal]",
)
@click.option("--resume", is_flag=True, help="Go on with the last conversation.")
@click.option("--session", "name", metavar="NAME", help="Go on with the conversation NAME, or begin it.")
@click.option(
    "--kv-exact",
    is_flag=True,
    help="Keep every bit of the model's state, twice as large, so that an answer after --resume is the very same.",
)
@click.option("--context-shift", is_flag=True, help="When the context is full, forget the oldest part without asking.")
@click.option("--keep", "n_keep", type=int, default=0, help="First tokens that a context shift keeps. [default: 0]")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no statistics on stderr.")
@sampler_options
def command(
    prompt: str | None, system: str | None, system_file: str | None, single_turn: bool, interactive: bool,
    n_predict: int, reasoning: str | None, resume: bool, name: str | None, context_shift: bool, n_keep: int,
    kv_exact: bool, quiet: bool, chat_template: str | None, template_kwargs: dict[str, Any], **kwargs: Any,
) -> int:  # fmt: skip
    """Talk with a model.

    MODEL is a GGUF file; without one, that of the conversation, or a small model that comes with qllama. Conversations
    are kept as they happen. Without a terminal, standard input is one message and standard output its answer.
    """
    need_stdout("the answer")
    sampling = sampler_settings(kwargs)
    if n_predict < -2 or n_keep < 0:
        raise InputError(f"found -n {n_predict}, --keep {n_keep}, needed numbers of tokens (-1: no limit)")
    if system is not None and system_file is not None:
        raise InputError("-sys and -sysf cannot be used together")
    text = system if system_file is None else _read(system_file)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    single_turn = single_turn or not (terminal or interactive)
    first = prompt if prompt is not None or not single_turn else _standard_input()

    from qllama.chat import warm_up
    from qllama.cli import repl
    from qllama.cli.progress import load
    from qllama.session import Session

    kwargs["chat_template"] = chat_template
    warm_up()
    history = opened(resume, name, kwargs)
    try:
        llm = load(quiet=quiet, **kwargs)
        for warning in llm.chat_template.warnings:  # one that is missing is refused before the first message
            click.echo(f"qllama: warning: {printable(warning)}", err=True)
        session = Session(
            llm, history, sampling, n_predict, n_keep if context_shift else None, kv_exact, template_kwargs
        )
        session.resume()
        if text is not None:
            history.set_system(text)
        show = reasoning == "show" or (reasoning is None and not single_turn)
        if single_turn:
            return repl.one_answer(session, first or "", show, quiet)
        return repl.Repl(session, show, keep=True).run(first)
    finally:
        history.close()


def opened(resume: bool, name: str | None, kwargs: dict[str, Any]) -> "History":
    """The conversation to go on with, or a new one; puts its model into `kwargs` if none is named there."""
    from qllama.chat.history import History, path_of, saved

    if resume and name is not None:
        raise InputError("--resume and --session cannot be used together")
    path = path_of(name) if name is not None else None
    if resume:
        path = next(iter(saved()), None)
        if path is None:
            raise InputError("--resume: there is no conversation yet")
    if path is None or not path.exists():
        model = None if kwargs["path"] is None else str(Path(kwargs["path"]).resolve())
        history = History({"model": model, "chat_template": kwargs["chat_template"]})
        if path is not None:
            history.open(path)
        return history  # one without a name begins with the first message
    history = History.load(path)
    if kwargs["path"] is None:
        kwargs["path"] = history.about.get("model")
    if kwargs["chat_template"] is None:
        kwargs["chat_template"] = history.about.get("chat_template")
    return history


def _read(path: str) -> str:
    return read_file(path, "the system message").decode(errors="replace")


def _standard_input() -> str:
    if sys.stdin is None:
        raise InputError("no message: stdin is closed and -p is not given")
    return sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n")
