"""`qllama merge`: the parts of a model in one file."""

import click

from qllama.errors import printable


@click.command()
@click.argument("file", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(file: str, out: str, force: bool) -> None:
    """Write all parts of the split model IN, named by any of its parts, as the file OUT."""
    from qllama.gguf import open_gguf
    from qllama.split import plan_merge, write_parts

    with open_gguf(file) as gguf:
        (plan,) = plan_merge(gguf, out)
        write_parts(gguf, [plan], force)
        click.echo(f"{printable(out)}: {len(plan.tensors)} tensors, {plan.head.nbytes} bytes")
