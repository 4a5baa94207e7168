"""`qllama tune`: what is fastest on this machine, measured and remembered. Results go to stdout, progress to stderr."""

from typing import Any

import click

from qllama.errors import InputError


@click.command()
@click.option("--show", is_flag=True, help="Say what is used on this machine, and measure nothing.")
@click.option("--reset", is_flag=True, help="Forget what was measured on this machine.")
def command(show: bool, reset: bool) -> None:
    """Measure which number of threads and which register tiles are fastest on this machine, and use them from now on.

    It takes some seconds; the machine should have nothing else to do. Results of models stay the same to the last bit.
    """
    if show and reset:
        raise InputError("--show and --reset: only one of them can be given")
    from qllama import tuned
    from qllama.cli.progress import show_warnings

    show_warnings()
    if reset:
        path = tuned.reset()
        click.echo("nothing was remembered" if path is None else f"forgotten in {path}")
    if not (show or reset):
        from qllama.bench.tune import measure

        found = measure(lambda what: click.echo(f"qllama tune: measuring {what}", err=True))
        for line in table(found):
            click.echo(line)
        if found.busy:
            click.echo("qllama: warning: the machine had something else to do; measure again when it is idle", err=True)
        click.echo(f"\nremembered in {tuned.save(found.best())}")
    click.echo(used())


def table(found: Any) -> list[str]:
    """What was measured; the fastest of its kind is marked where it is not the default."""
    best = found.best()
    lines = [f"{'threads':<24} {'1 token':>12} {'a prompt':>12}"]
    for n, gbps in found.decode.items():
        mark = "  <-" if n == best.n_threads else ""
        lines.append(f"{n:<24} {f'{gbps:.1f} GB/s':>12} {f'{found.prefill[n]:.0f} GOP/s':>12}{mark}")
    lines.append(f"{'tile':<24} {'':>12} {'a prompt':>12}")
    for name, speeds in found.tiles.items():
        for tokens, gops in sorted(speeds.items()):
            mark = "  <-" if best.tiles.get(name) == tokens else ""
            lines.append(f"{f'{name}, {tokens} tokens':<24} {'':>12} {f'{gops:.0f} GOP/s':>12}{mark}")
    return lines


def used() -> str:
    """One line: the threads and tiles of this machine, and where they are from."""
    from qllama import tuned
    from qllama.kernels.tiles import DEFAULTS

    tiles = ", ".join(f"{name} {tuned.tiles().get(name, tokens)}" for name, tokens in DEFAULTS.items())
    origin = "the defaults" if tuned.saved() == tuned.Tuned() else "measured"
    return f"{tuned.machine()}: {tuned.default_threads()} threads, tiles of {tiles} tokens ({origin})"
