"""`qllama tokenize`: the tokens of a text, laid out like llama-tokenize."""

import sys

import click

from qllama.cli.options import override_option, overrides
from qllama.cli.streams import need_stdout
from qllama.errors import InputError, printable


@click.command()
@click.argument("file")
@click.argument("text")
@click.option("--ids", is_flag=True, help="Print only the ids, as a list.")
@click.option("--no-bos", is_flag=True, help="Add no BOS or EOS token, even if the model wants it.")
@click.option("--no-parse-special", is_flag=True, help="Take the names of control tokens for ordinary text.")
@override_option
def command(
    file: str, text: str, ids: bool, no_bos: bool, no_parse_special: bool, override_kv: tuple[str, ...]
) -> None:
    """Show the tokens of TEXT by the vocabulary of the model FILE, one per line; TEXT - is standard input."""
    need_stdout("the tokens")
    from qllama.gguf import open_gguf
    from qllama.tokenizer import load_tokenizer

    with open_gguf(file, overrides(override_kv)) as gguf:
        tokenizer = load_tokenizer(gguf.metadata)
    for warning in [*gguf.warnings, *tokenizer.warnings]:
        click.echo(f"qllama: warning: {printable(warning)}", err=True)
    raw = _standard_input() if text == "-" else text
    tokens = tokenizer.encode(raw, add_special=not no_bos, parse_special=not no_parse_special)
    lines = [str(tokens)] if ids else [_line(id, tokenizer.token_bytes(id, special=True)) for id in tokens]
    click.echo("".join(line + "\n" for line in lines).encode(), nl=False)  # UTF-8 whatever the locale


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    return sys.stdin.buffer.read()


def _line(id: int, piece: bytes) -> str:
    """One token. What is no text, or would make a terminal do something, is escaped."""
    return f"{id:6d} -> '{printable(piece.decode(errors='backslashreplace'))}'"
