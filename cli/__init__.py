"""The command line: parses, calls one public function, prints. A command's file is imported when it is used."""

import contextlib
import importlib
import os
import sys
from typing import Any

import click

from qllama import __version__, sigbus
from qllama.errors import QllamaError, printable

# command: what `qllama --help` says of it. Each is `command` in the file of the same name.
COMMANDS = {
    "run": "Write text that continues a prompt.",
    "chat": "Talk with a model.",
    "info": "Say what a model file holds and whether it runs.",
    "tokenize": "Show the tokens of a text.",
    "bench": "Measure the speed of models, as llama-bench does.",
    "tune": "Find the fastest threads and tiles on this machine.",
    "perplexity": "Measure how well a model predicts a text, as llama-perplexity does.",
    "quantize": "Write a model file in another type, as llama-quantize does.",
    "convert": "Write a Hugging Face model as a GGUF file.",
    "imatrix": "Collect an importance matrix for quantize, as llama-imatrix does.",
    "split": "Write a model file in parts, as llama-gguf-split does.",
    "merge": "Write the parts of a model as one file.",
    "warmup": "Compile the kernels ahead of the first run.",
}


class PipeClosed(Exception):
    """Nobody reads our output any more. (click would turn the BrokenPipeError itself into exit code 1.)"""


class LazyGroup(click.Group):
    """Lists the commands without importing them: `qllama --help` must not load numpy or numba."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"qllama.cli.{name}").command
        command.help = command.help or COMMANDS[name]
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qllama")
def cli() -> None:
    """Run quantized LLaMA-family models on this computer's CPU."""


def fail(message: str, code: int) -> int:
    """Print the one line of an error on stderr; return the exit code."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # stderr is closed: nobody to tell
            print(f"qllama: error: {printable(message)}", file=sys.stderr, flush=True)
    return code


def _first(error: BaseException) -> BaseException:
    """The error that led to this one."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return error


def main(args: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 2 bad usage or input, 1 other errors, 130 after Ctrl-C, 141 on a broken pipe."""
    sigbus.install()
    sys.exit(_main(args))


def _main(args: list[str] | None) -> int:
    try:
        result: Any = cli.main(args=args, prog_name="qllama", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except QllamaError as error:
        return fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except (PipeClosed, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return 141
    except MemoryError:
        return fail("out of memory", 1)
    except ImportError as error:
        return fail(f"a library cannot be loaded: {_first(error)}", 1)
    except OSError as error:
        if error.errno is None:
            return fail(f"a library cannot be loaded: {_first(error)}", 1)
        return fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("QLLAMA_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        return fail(f"internal error, please report it: {what} (QLLAMA_TRACEBACK=1 shows where)", 1)
