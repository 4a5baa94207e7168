"""`qllama split`: a model file in parts, as llama-gguf-split makes them."""

import re

import click

from qllama.errors import InputError, printable

UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


@click.command()
@click.argument("file", metavar="IN")
@click.argument("prefix", metavar="OUT_PREFIX")
@click.option("--max-tensors", "--split-max-tensors", type=int, help="Tensors of a part at most. [default: 128]")
@click.option("--max-size", "--split-max-size", metavar="N(M|G)", help="Size of a part at most; 1M is 1,000,000 bytes.")
@click.option("--no-tensor-first-split", is_flag=True, help="Put only the metadata into the first part.")
@click.option("--dry-run", is_flag=True, help="Print the parts, write nothing.")
@click.option("--force", is_flag=True, help="Replace parts that are there.")
def command(
    file: str, prefix: str, max_tensors: int | None, max_size: str | None, no_tensor_first_split: bool, dry_run: bool,
    force: bool,
) -> None:  # fmt: skip
    """Write the GGUF file IN as OUT_PREFIX-00001-of-0000N.gguf and so on."""
    from qllama.gguf import open_gguf
    from qllama.split import plan_split, write_parts

    with open_gguf(file) as gguf:
        plans = plan_split(gguf, prefix, max_tensors, _bytes(max_size), no_tensor_first_split)
        for plan in plans:
            click.echo(f"{printable(plan.path)}: {len(plan.tensors)} tensors, {plan.head.nbytes} bytes")
        if not dry_run:
            write_parts(gguf, plans, force)


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if match is None:
        raise InputError(f"--max-size: found {printable(text)}, needed a number with K, M or G such as 500M")
    return int(match[1]) * UNITS[match[2]]
