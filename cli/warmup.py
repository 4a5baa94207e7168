"""`qllama warmup`: compile ahead what the first run would."""

import time

import click

from qllama.errors import InputError


@click.command()
@click.argument("file", metavar="[MODEL]", required=False)
@click.option("-m", "--model", metavar="MODEL", help="The same as the argument MODEL.")
@click.option("-ctk", "--cache-type-k", "type_k", default="f16", help="Type of the cached keys. [default: f16]")
@click.option("-ctv", "--cache-type-v", "type_v", default="f16", help="Type of the cached values. [default: f16]")
@click.option("-v", "--verbose", is_flag=True, help="List the kernels: bytes of code, seconds that compiling took.")
def command(file: str | None, model: str | None, type_k: str, type_v: str, verbose: bool) -> None:
    """Compile the kernels ahead of the first run.

    MODEL is a GGUF file whose kernels are wanted; without one, those of every supported tensor type are compiled.
    """
    if file is not None and model is not None:
        raise InputError(f"two models are given: {file} and -m {model}")
    from qllama.cli.progress import Line, show_warnings
    from qllama.model import warm_up

    show_warnings()
    start = time.monotonic()
    kernels = warm_up(file or model, type_k, type_v, Line("compiling kernels for this CPU (once)"))
    seconds = time.monotonic() - start
    if verbose:
        click.echo(f"{'kernel':<24} {'bytes':>8} {'seconds':>8}")
        for k in kernels:
            click.echo(f"{k.name:<24} {k.nbytes:>8} {k.seconds:>8.2f}")
    fresh = [k for k in kernels if k.compiled]
    compiled = f"{sum(k.seconds for k in fresh):.1f} s of work for {len(fresh)} kernels compiled now"
    where = compiled if fresh else "all from the cache"
    click.echo(
        f"{len(kernels)} kernels, {sum(k.nbytes for k in kernels)} bytes, ready in {seconds:.2f} s ({where})", err=True
    )
