"""Conversations as text: chat templates, and what is remembered of a chat. Models and tokens are others' business."""

from qllama.chat.render import TemplateError, render, warm_up

__all__ = ["TemplateError", "render", "warm_up"]
