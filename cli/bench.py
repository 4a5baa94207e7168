"""`qllama bench`: llama-bench's command line. Tables go to stdout, progress to stderr."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qllama.cli.streams import need_stdout
from qllama.errors import FileError, InputError

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("csv", "json", "jsonl", "md", "sql", "none")

# Options of llama-bench that have one meaning here: flags, the field of its output that shows them (empty for none),
# and what they may be -> what that field then says.
FOREIGN: tuple[tuple[tuple[str, ...], str, dict[str, str]], ...] = (
    (("-ngl", "--n-gpu-layers"), "n_gpu_layers", {"-1": "-1", "0": "0"}),
    (("-ncmoe", "--n-cpu-moe"), "n_cpu_moe", {"0": "0"}),
    (("-sm", "--split-mode"), "split_mode", {"layer": "layer", "none": "none"}),
    (("-mg", "--main-gpu"), "main_gpu", {"0": "0"}),
    (("-nkvo", "--no-kv-offload"), "no_kv_offload", {"0": "0"}),
    (("-fa", "--flash-attn"), "flash_attn", {"auto": "-1", "on": "1", "1": "1"}),
    (("-dev", "--device"), "devices", {"auto": "auto", "none": "none"}),
    (("-ts", "--tensor-split"), "tensor_split", {"0": "0.00"}),
    (("-ot", "--override-tensor"), "", {}),
    (("-lm", "--load-mode"), "load_mode", {"auto": "auto", "mmap": "mmap", "none": "none"}),
    (("-mmp", "--mmap"), "load_mode", {"1": "mmap", "0": "none"}),
    (("-dio", "--direct-io"), "load_mode", {"0": "none"}),
    (("-lzm", "--lazy-mode"), "lazy_mode", {"auto": "auto", "off": "off"}),
    (("-embd", "--embeddings"), "embeddings", {"0": "0"}),
    (("-nopo", "--no-op-offload"), "no_op_offload", {"0": "0"}),
    (("--no-host",), "no_host", {"0": "0"}),
    (("--repack",), "repack", {"1": "1"}),
    (("-fitt", "--fit-target"), "fit_target", {"0": "0"}),
    (("-fitc", "--fit-ctx"), "fit_min_ctx", {"0": "0"}),
    (("-C", "--cpu-mask"), "cpu_mask", {"0x0": "0x0"}),
    (("--cpu-strict",), "cpu_strict", {"0": "0"}),
    (("--poll",), "poll", {"50": "50"}),
    (("--prio",), "", {"0": ""}),
    (("--numa",), "", {}),
    (("-rpc", "--rpc"), "", {}),
    (("-hf", "-hfr", "--hf-repo"), "", {}),
    (("-hff", "--hf-file"), "", {}),
    (("-hft", "--hf-token"), "", {}),
)


def foreign_options(command: F) -> F:
    """Decorator: collects the options above as the keyword `foreign`, hidden from the help."""

    def collect(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        flags, field, accepted = next(entry for entry in FOREIGN if entry[0] == tuple(parameter.opts))
        if value not in accepted:
            may_be = f"only {' or '.join(accepted)} can be" if accepted else "nothing that it could be is"
            raise InputError(f"{flags[0]} {value}: {may_be} done by qllama, which runs on the CPU alone")
        if field:
            ctx.ensure_object(dict)[field] = accepted[value]

    for flags, _, _ in FOREIGN:
        command = click.option(*flags, hidden=True, expose_value=False, callback=collect)(command)
    return command


def values(*flags: str, default: str, what: str) -> Callable[[F], F]:
    """An option that takes a list of values and can be repeated."""
    return click.option(*flags, multiple=True, metavar="N,...", help=f"{what} [default: {default}]")


@click.command(
    epilog="N,... are values such as 512 or 1,2,4, ranges such as 1-4, 128-512+128 or 1-16*2, or several of these; "
    "every combination is measured. What else llama-bench takes (-ngl, -fa, -mmp, ...) is accepted where it asks "
    "for what qllama does, and refused otherwise.",
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
@click.argument("files", metavar="[MODEL]...", nargs=-1)
@click.option("-m", "--model", "models", multiple=True, metavar="MODEL,...", help="The same as the argument MODEL.")
@values("-p", "--n-prompt", default="512", what="Tokens of a prompt that is read; 0 for no such test.")
@values("-n", "--n-gen", default="128", what="Tokens that are generated; 0 for no such test.")
@click.option("-pg", "n_pg", multiple=True, metavar="P,N", help="A prompt of P tokens and N generated ones.")
@values("-d", "--n-depth", default="0", what="Tokens in the context before the test.")
@values("-b", "--batch-size", "n_batch", default="2048", what="As in llama.cpp; a step has no more tokens.")
@values("-ub", "--ubatch-size", "n_ubatch", default="512", what="Tokens of a step.")
@click.option("-ctk", "--cache-type-k", "type_k", multiple=True, help="Type of the cached keys. [default: f16]")
@click.option("-ctv", "--cache-type-v", "type_v", multiple=True, help="Type of the cached values. [default: f16]")
@values("-t", "--threads", "n_threads", default="physical cores that may be used", what="Threads.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, help="Runs of each test. [default: 5]")
@click.option("--delay", type=click.IntRange(0), default=0, help="Seconds of rest before each test. [default: 0]")
@click.option("--no-warmup", is_flag=True, help="No run before those that count.")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="md", help="Format on stdout. [default: md]")
@click.option("-oe", "--output-err", type=click.Choice(FORMATS), default="none", help="The same on stderr.")
@click.option("--progress", is_flag=True, help="Say on stderr what is being done.")
@click.option("-v", "--verbose", is_flag=True, help="The same as --progress.")
@click.option("--offline", is_flag=True, hidden=True)
@click.option("--list-devices", is_flag=True, hidden=True)
@click.option("--roofline", is_flag=True, help="Instead: each operation's speed beside the machine's limits.")
@click.option("--plot", metavar="FILE.svg|png", help="With --roofline, also as a picture.")
@foreign_options
@click.pass_context
def command(
    ctx: click.Context, output: str, output_err: str, roofline: bool, plot: str | None, progress: bool, verbose: bool,
    no_warmup: bool, repetitions: int, delay: int, offline: bool, list_devices: bool,
    **lists: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure the speed of models: the tests, options and output of llama-bench.

    MODEL is a GGUF file; without one a small model that comes with qllama is used.
    """
    need_stdout("the table")
    if list_devices:
        click.echo("Available devices:\n  (none)")  # llama-bench's words; the CPU is none of them
        return
    if plot is not None and not roofline:
        raise InputError(f"--plot {plot}: needs --roofline")
    if roofline and (output, output_err) != ("md", "none"):
        raise InputError("--roofline has a format of its own, -o and -oe do not go with it")
    from qllama.cli.progress import show_warnings

    show_warnings()
    parameters = parse(ctx.obj or {}, **lists)

    from qllama.bench.measure import Options, check

    report = say if progress or verbose else lambda message: None
    options = Options(repetitions, not no_warmup, delay, report, loading)
    checked = check(parameters)
    if roofline:
        show_rooflines(parameters, checked, options, plot)
    else:
        show_results(parameters, checked, options, output, output_err)


def parse(foreign: dict[str, str], files: tuple[str, ...], models: tuple[str, ...], **lists: tuple[str, ...]) -> Any:
    """The `Parameters` of the command line. Raises InputError."""
    from qllama import cpu, tuned
    from qllama.bench.parameters import Parameters, integers, names, pairs
    from qllama.llm import default_model

    flags = {"n_prompt": "-p", "n_gen": "-n", "n_depth": "-d", "n_batch": "-b", "n_ubatch": "-ub", "n_threads": "-t"}
    limits = {"n_batch": (1, 1 << 16), "n_ubatch": (1, 1 << 16), "n_threads": (1, cpu.max_threads())}
    given: dict[str, Any] = {name: integers(flag, lists[name], *limits.get(name, ())) for name, flag in flags.items()}
    given |= {"n_pg": pairs("-pg", lists["n_pg"]), "type_k": names(lists["type_k"]), "type_v": names(lists["type_v"])}
    given["n_threads"] = given["n_threads"] or (tuned.default_threads(),)
    given["model"] = (*files, *names(models)) or (str(default_model()),)
    return Parameters(**{name: value for name, value in given.items() if value}, foreign=foreign)


def show_results(parameters: Any, checked: Any, options: Any, output: str, output_err: str) -> None:
    """The table, line by line as results come."""
    from qllama.bench.measure import measure
    from qllama.bench.printers import FORMATS as PRINTERS

    printers = [(PRINTERS[name](), err) for name, err in ((output, False), (output_err, True)) if name != "none"]
    for printer, err in printers:
        click.echo(printer.header(parameters), nl=False, err=err)
    for result in measure(parameters, checked, options):
        for printer, err in printers:
            click.echo(printer.test(result), nl=False, err=err)
    for printer, err in printers:
        click.echo(printer.footer(), nl=False, err=err)


def show_rooflines(parameters: Any, checked: Any, options: Any, file: str | None) -> None:
    """The reports as they come, then the picture."""
    from qllama.bench.plot import check, plot
    from qllama.bench.report import text
    from qllama.bench.roofline import rooflines

    if file is not None:
        check(file)
        write(file, "ab", b"")  # better now than after the measuring
    found = []
    for roofline in rooflines(parameters, checked, options):
        click.echo(text(roofline), nl=False)
        found.append(roofline)
    if file is not None:
        write(file, "wb", plot(found, file))


def write(path: str, mode: str, content: bytes) -> None:
    try:
        with Path(path).open(mode) as file:
            file.write(content)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error


def say(message: str) -> None:
    click.echo(f"qllama bench: {message}", err=True)


def loading() -> Any:
    """Who is told how the loading of a model goes."""
    from qllama.cli.progress import Line
    from qllama.model import Progress

    return Progress(Line("compiling kernels for this CPU (once)"), Line("loading weights", patience=1.0))
