"""`qllama warmup`: compile ahead what the first run would."""

import click


@click.command()
@click.argument("file", metavar="[MODEL]", required=False)
@click.option("-ctk", "--cache-type-k", "kv_kind", default="f16", help="Type of the KV cache. [default: f16]")
@click.option("-v", "--verbose", is_flag=True, help="List the kernels and their sizes.")
def command(file: str | None, kv_kind: str, verbose: bool) -> None:
    """Compile the kernels ahead of the first run.

    MODEL is a GGUF file whose kernels are wanted; without one, those of every supported tensor type are compiled.
    """
    from qllama.cli.progress import Line, show_warnings
    from qllama.model import warm_up

    show_warnings()
    kernels = warm_up(file, kv_kind, Line("compiling kernels for this CPU (once)"))
    if verbose:
        for name, nbytes in kernels:
            click.echo(f"{name:<24} {nbytes:>8}")
    click.echo(f"{len(kernels)} kernels, {sum(n for _, n in kernels)} bytes", err=True)
