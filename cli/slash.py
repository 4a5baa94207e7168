"""The commands of a conversation, one function each: what `/name argument` does."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qllama.errors import FileError, InputError, printable

if TYPE_CHECKING:
    from qllama.cli.repl import Repl

MAX_FILE = 16 << 20  # bytes that /read takes
SHOWN = ["model", "template", "parameters", "context", "memory"]
MAIN = ("temp", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "n_predict")
OWN = {"n_predict": int, "reasoning": str}  # what /set knows besides the samplers' parameters


class Command(NamedTuple):
    """What a command does, and what is said of it."""

    run: Callable[["Repl", str], None]
    argument: str
    help: str


def run(repl: "Repl", text: str) -> None:
    """Do what a line that begins with / says. Raises InputError for what is no command."""
    name, _, argument = text[1:].strip().partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        raise InputError(f"/{name} is no command; /help lists them")
    COMMANDS[name].run(repl, argument.strip())


def _help(repl: "Repl", argument: str) -> None:
    names = [argument.removeprefix("/")] if argument else list(COMMANDS)
    for name in names:
        if name not in COMMANDS:
            raise InputError(f"/{name} is no command; /help lists them")
        command = COMMANDS[name]
        repl.screen.line(f"  {f'/{name} {command.argument}':<22}{command.help}")
    if not argument:
        repl.screen.line('  """ begins and ends a message of several lines; Alt-Enter breaks a line.')
        repl.screen.line("  Ctrl-G edits the message in $EDITOR. Ctrl-C stops an answer, twice ends.")


def _exit(repl: "Repl", argument: str) -> None:
    repl.quit = True


def _clear(repl: "Repl", argument: str) -> None:
    old = repl.session.history
    new = type(old)(old.about)
    if old.system is not None:
        new.set_system(old.system)
    new.settings = dict(old.settings)
    _switch(repl, new)
    repl.screen.line("(a new conversation)")


def _switch(repl: "Repl", history: Any) -> None:
    repl.session.history.close()
    repl.session.history = history
    repl.prefix = ""
    repl.session.measure()


def _regen(repl: "Repl", argument: str) -> None:
    repl.answer(repl.session.again())


def _undo(repl: "Repl", argument: str) -> None:
    text = repl.session.undo()
    repl.screen.line(f"(taken back: {_begin(text)})")


def _edit(repl: "Repl", argument: str) -> None:
    repl.draft = repl.session.undo()


def _begin(text: str) -> str:
    return printable(text[:60] + ("..." if len(text) > 60 else ""))


def _system(repl: "Repl", argument: str) -> None:
    history = repl.session.history
    if not argument:
        repl.screen.line(history.system if history.system is not None else "(no system message)")
        return
    history.set_system(None if argument == '""' else argument)
    repl.session.measure()


def settable() -> list[str]:
    """The names that /set knows."""
    from qllama.sampling.order import OPTIONS

    return [*(name for name, f in OPTIONS.items() if not isinstance(f.metadata["default"], dict | tuple)), *OWN]


def _set(repl: "Repl", argument: str) -> None:
    from qllama.sampling.order import OPTIONS, build

    if not argument:
        return _show_parameters(repl, [name for name in settable() if name != "reasoning"])
    name, _, value = argument.partition(" ")
    name, value = name.lstrip("-").replace("-", "_"), value.strip()
    if name not in settable():
        raise InputError(f"/set: found {name!r}, needed one of {', '.join(settable())}")
    if name == "reasoning":
        if value not in ("show", "hide"):
            raise InputError(f"/set reasoning: found {value!r}, needed show or hide")
        repl.reasoning = value == "show"
        return None
    kind = OWN.get(name) or type(OPTIONS[name].metadata["default"])
    try:
        parsed = kind(value)
    except ValueError:
        raise InputError(f"/set {name}: found {value!r}, needed a value of type {kind.__name__}") from None
    if name in OPTIONS:
        build({**repl.session.sampling, **_samplers(repl.session.history.settings), name: parsed})
    repl.session.history.set(name, parsed)
    return None


def _samplers(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OWN}


def _show(repl: "Repl", argument: str) -> None:
    wanted = argument.split() or SHOWN
    shows: dict[str, Callable[[Repl], None]] = {
        "parameters": lambda repl: _show_parameters(repl, MAIN),
        "model": _show_model, "template": _show_template, "context": _show_context,
        "memory": _show_memory,
    }  # fmt: skip
    for name in wanted:
        if name not in shows:
            raise InputError(f"/show: found {name!r}, needed of {', '.join(SHOWN)}")
        shows[name](repl)


def _show_model(repl: "Repl") -> None:
    model = repl.session.llm.model
    h = model.hparams
    repl.screen.line(f"model       {printable(model.path)}")
    repl.screen.line(f"            {h.architecture}, {h.n_layer} layers, trained for {h.n_ctx_train} tokens of context")
    kinds = " and ".join(dict.fromkeys(kind for kind, _, _ in model.cache.parts))
    repl.screen.line(f"            {model.team.n_threads} threads, {kinds} cache")


def _show_template(repl: "Repl") -> None:
    template = repl.session.llm.chat_template
    repl.screen.line(f"template    {template.origin}: {_begin(template.source)}")
    if repl.session.history.system is not None:
        repl.screen.line(f"system      {_begin(repl.session.history.system)}")


def _show_parameters(repl: "Repl", names: Sequence[str] = ()) -> None:
    """Those that are set, and `names`."""
    from qllama.sampling.order import OPTIONS

    session = repl.session
    given = {**session.sampling, **session.history.settings}
    values = {name: f.metadata["default"] for name, f in OPTIONS.items()} | {"n_predict": session.n_predict} | given
    shown = [*names, *(name for name in given if name not in names)]
    text = ", ".join(f"{name} {values[name]}" for name in shown)
    repl.screen.line(f"parameters  {printable(text)}")


def _show_context(repl: "Repl") -> None:
    session = repl.session
    n = session.measure()
    repl.screen.line(f"context     {n} of {session.llm.n_ctx} tokens used, {session.llm.n_ctx - n} left")
    history = session.history
    left_out = f", of which prompts leave out {history.forgotten}" if history.forgotten else ""
    repl.screen.line(f"            {len(history.messages)} messages{left_out}")


def _show_memory(repl: "Repl") -> None:
    model = repl.session.llm.model
    cached = model.cache.nbytes(len(model.cached))
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        repl.screen.line(f"memory      {_size(peak)} at most so far, of which the cache has {_size(cached)}")
    except ImportError:
        repl.screen.line(f"memory      the cache has {_size(cached)}")


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _read(repl: "Repl", argument: str) -> None:
    from qllama.cli.prompt import expanded

    if not argument:
        raise InputError("/read: needed the name of a file")
    path = expanded(argument)
    try:
        if path.stat().st_size > MAX_FILE:
            raise FileError(path, f"has more than {MAX_FILE >> 20} MiB")
        text = path.read_bytes().decode()
    except OSError as error:
        raise FileError(path, f"cannot read it: {error.strerror}") from error
    except UnicodeDecodeError:
        raise FileError(path, "is no UTF-8 text") from None
    repl.prefix += f"--- File: {path.name} ---\n{text}\n\n"
    n = len(repl.session.llm.tokenize(repl.prefix, add_special=False, parse_special=False))
    repl.screen.line(f"({path.name}: goes before the next message, {n} tokens)")


def _save(repl: "Repl", argument: str) -> None:
    from qllama.chat.history import path_of

    history = repl.session.history
    if not argument:
        repl.begin_file()
        repl.screen.line(f"(kept as {printable(history.name)})")
        return
    copy = history.fork(path_of(argument))
    copy.close()
    repl.screen.line(f"(a copy is kept as {printable(argument)})")


def _load(repl: "Repl", argument: str) -> None:
    from qllama.chat.history import History, path_of

    if not argument:
        return _sessions(repl, "")
    named = path_of(argument) if "/" not in argument and not argument.endswith(".jsonl") else Path(argument)
    if named == repl.session.history.path:
        raise InputError(f"{argument} is this conversation")
    _switch(repl, History.load(named))
    repl.session.resume()
    repl.greet()
    return None


def _sessions(repl: "Repl", argument: str) -> None:
    import time

    from qllama.chat.history import saved

    paths = saved()
    for path in paths[:20]:
        here = "*" if path == repl.session.history.path else " "
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        repl.screen.line(f"{here} {day}  {printable(path.stem)}")
    if len(paths) > 20:
        repl.screen.line(f"  and {len(paths) - 20} older ones in {printable(paths[0].parent)}")
    if not paths:
        repl.screen.line("(none yet)")


def _fork(repl: "Repl", argument: str) -> None:
    from qllama.chat.history import path_of

    copy = repl.session.history.fork(path_of(argument) if argument else None)
    _switch(repl, copy)
    repl.screen.line(f"(now in {printable(copy.name)})")


def _stats(repl: "Repl", argument: str) -> None:
    from qllama.cli.run import summary

    if not repl.session.stats.n_prompt:
        raise InputError("there is no answer yet")
    repl.screen.line(summary(repl.session.stats))


def _tokens(repl: "Repl", argument: str) -> None:
    """Of a text, or of the conversation as the model reads it."""
    llm = repl.session.llm
    ids = (
        llm.tokenize(argument, add_special=False) if argument else repl.session.read(repl.session.history.prompt()).ids
    )
    shown = " ".join(printable(llm.tokenizer.token_bytes(id, special=True).decode(errors="backslashreplace"))
                     + f"[{id}]" for id in ids)  # fmt: skip
    repl.screen.line(f"{len(ids)} tokens: {shown}")


COMMANDS = {
    "help": Command(_help, "[COMMAND]", "say what the commands do"),
    "exit": Command(_exit, "", "end"),
    "clear": Command(_clear, "", "begin a new conversation, with the same system message"),
    "regen": Command(_regen, "", "answer the last message again"),
    "undo": Command(_undo, "", "take back the last message and its answer"),
    "edit": Command(_edit, "", "take them back and edit the message"),
    "system": Command(_system, "[TEXT]", 'show or change the system message; "" takes it away'),
    "set": Command(_set, "[NAME VALUE]", "show the parameters, or change one"),
    "show": Command(_show, "[WHAT]", f"show {', '.join(SHOWN)}"),
    "read": Command(_read, "FILE", "put a text file before the next message"),
    "save": Command(_save, "[NAME]", "say where the conversation is kept, or keep a copy"),
    "load": Command(_load, "NAME", "go on with another conversation"),
    "sessions": Command(_sessions, "", "list the conversations"),
    "fork": Command(_fork, "[NAME]", "go on in a copy, the conversation stays as it is"),
    "stats": Command(_stats, "", "show what the last answer took"),
    "tokens": Command(_tokens, "[TEXT]", "show the tokens of a text, or of the whole conversation"),
}
ALIASES = {"quit": "exit", "bye": "exit", "?": "help", "q": "exit"}
