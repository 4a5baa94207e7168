"""Conversations as JSON, as OpenAI's interface has them: reading and checking."""

import json
from typing import Any, NamedTuple

from qllama.errors import FileError, printable, read_file


class Conversation(NamedTuple):
    """Messages, and the tools that the model may call."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


def parse_messages(text: str | bytes, origin: str) -> Conversation:
    """The conversation in a JSON text: a list of messages, or an object with "messages" and perhaps "tools".

    `origin` is named in errors. Raises FileError for anything else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(origin, f"is no JSON: {printable(error)}") from None
    tools = value.get("tools") if isinstance(value, dict) else None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise FileError(origin, 'must be a list of messages, or an object that has one as "messages"')
    if tools is not None and not isinstance(tools, list):
        raise FileError(origin, f"tools must be a list, found {type(tools).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise FileError(origin, f'message {i} must be an object with a "role" that is a string')
        if not isinstance(message.setdefault("content", None), str | list | None):
            raise FileError(origin, f"message {i}: content must be a string, found {type(message['content']).__name__}")
    return Conversation(messages, tools)


def read_messages(path: str) -> Conversation:
    """The conversation in a JSON file. Raises FileError for what cannot be read or is none."""
    return parse_messages(read_file(path, "the messages"), path)
