"""`qllama imatrix`: how strongly a text uses each column of a model's matrices, as llama-imatrix writes it."""

from pathlib import Path

import click

from qllama.cli.progress import Line, load, show_warnings
from qllama.errors import FileError, InputError, read_file


@click.command()
@click.option("-m", "--model", required=True, metavar="MODEL", help="A model, best in F16 or F32.")
@click.option("-f", "--file", "text_file", required=True, metavar="TEXT", help="The text, a file.")
@click.option("-o", "--output", "out", default="imatrix.gguf", metavar="FILE", help="[default: imatrix.gguf]")
@click.option("--output-format", "form", type=click.Choice(["gguf", "dat"]), default="gguf", help="[default: gguf]")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(8), default=512, help="Tokens of a chunk.")
@click.option("-t", "--threads", "n_threads", type=int, help="Threads. [default: physical cores that may be used]")
@click.option("--chunks", "n_chunks", type=click.IntRange(-1), default=-1, help="Read the first N only. [default: -1]")
@click.option("--process-output", is_flag=True, help="Collect for output.weight too.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def command(
    model: str, text_file: str, out: str, form: str, n_ctx: int, n_threads: int | None, n_chunks: int,
    process_output: bool, force: bool,
) -> None:  # fmt: skip
    """Run MODEL on TEXT and write an importance matrix, for `qllama quantize --imatrix`."""
    from qllama.evaluate.importance import collect
    from qllama.evaluate.perplexity import read
    from qllama.imatrix import ImportanceMatrix, Sums, save_imatrix

    show_warnings()
    if Path(out).exists() and not force:
        raise FileError(out, "exists already; --force replaces it")
    if n_chunks == 0:
        raise InputError("--chunks 0: there is nothing to read")
    text = read_file(text_file, "the text")
    llm = load(path=model, n_ctx=n_ctx, n_threads=n_threads)
    chunks, line = read(llm.tokenizer, text, n_ctx, n_chunks), Line("reading the text")
    sums: dict[str, Sums] = {}
    for done, sums in enumerate(collect(llm.model, chunks), 1):  # noqa: B007
        line(done, len(chunks.chunks))
    kept = {name: s for name, s in sums.items() if name.startswith("blk.") or process_output}
    save_imatrix(ImportanceMatrix(kept, [text_file], len(chunks.chunks), n_ctx), out, form == "dat", force)
    click.echo(f"{out}: {len(kept)} tensors from {len(chunks.chunks)} chunks of {n_ctx} tokens", err=True)
