"""`qllama convert`: a model of Hugging Face's libraries as a GGUF file, as llama.cpp's converter writes it."""

import click

from qllama.cli.progress import Meter, show_warnings
from qllama.cli.quantize import report_lines
from qllama.errors import InputError, printable


@click.command()
@click.argument("folder", metavar="HF_FOLDER")
@click.argument("out", metavar="OUT")
@click.option("--type", "--outtype", "type_name", default="auto", metavar="TYPE",
              help="F32, F16, BF16, Q8_0, any of quantize's, or auto, the folder's. [default: auto]")  # fmt: skip
@click.option("-t", "--threads", "n_threads", type=int, help="Threads. [default: physical cores that may be used]")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def command(folder: str, out: str, type_name: str, n_threads: int | None, force: bool) -> None:
    """Write the model in HF_FOLDER (config.json, safetensors, tokenizer files) as the GGUF file OUT."""
    from qllama.convert import TYPES, FolderSource, convert_plan
    from qllama.quant.mixes import file_type
    from qllama.quantize import make_plan, quantize_file

    show_warnings()
    wanted = None if type_name.lower() == "auto" else file_type(type_name)
    if type_name.lower() != "auto" and not wanted:
        raise InputError(f"--type: found {printable(type_name)}, needed auto, {', '.join(TYPES)} or a type of quantize")
    source = FolderSource(folder)
    plan = make_plan(source, wanted) if wanted and wanted not in TYPES else convert_plan(source, wanted)
    meter = Meter()
    report = quantize_file(source, out, plan, n_threads=n_threads, force=force, progress=meter.quantize)
    meter.close()
    click.echo("\n".join(report_lines(report)))
