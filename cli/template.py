"""Options that say how a conversation becomes a prompt, for the commands that answer one."""

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from qllama.errors import InputError, read_file

F = TypeVar("F", bound=Callable[..., Any])

TEMPLATE_OPTIONS = (
    click.option("--chat-template", metavar="NAME", help="Chat template: NAME or Jinja text. [default: the model's]"),
    click.option("--chat-template-file", metavar="FILE", help="Chat template: the Jinja text in FILE."),
    click.option(
        "--chat-template-kwargs", metavar="JSON", help="What it is given, such as '{\"enable_thinking\": false}'."
    ),
)  # fmt: skip


def template_options(command: F) -> F:
    """Decorator: adds them; the command gets `chat_template`, a name or text or None, and `template_kwargs`."""

    @functools.wraps(command)
    def collected(
        chat_template: str | None, chat_template_file: str | None, chat_template_kwargs: str | None, **kwargs: Any
    ) -> Any:
        if chat_template is not None and chat_template_file is not None:
            raise InputError("--chat-template and --chat-template-file cannot be used together")
        template = chat_template if chat_template_file is None else _read(chat_template_file)
        return command(chat_template=template, template_kwargs=_values(chat_template_kwargs), **kwargs)

    for add in reversed(TEMPLATE_OPTIONS):
        collected = add(collected)
    return cast(F, collected)


def _read(path: str) -> str:
    text = read_file(path, "the chat template").decode(errors="replace")
    return text if "{" in text else text + "{# #}"  # a text, not the name of one


def _values(text: str | None) -> dict[str, Any]:
    try:
        values = json.loads(text) if text is not None else {}
        if not isinstance(values, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(f"--chat-template-kwargs: found {text!r}, needed an object in JSON") from None
    if taken := sorted({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "now"} & values.keys()):
        raise InputError(f"--chat-template-kwargs: {taken[0]} is given by the conversation and the model")
    return values
