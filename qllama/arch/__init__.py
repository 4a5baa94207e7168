"""Architectures: declarations only, one file and one line each."""

from qllama.arch.base import Arch
from qllama.arch.llama import LLAMA
from qllama.arch.qwen2 import QWEN2
from qllama.arch.qwen3 import QWEN3

ARCHS: dict[str, Arch] = {a.name: a for a in (LLAMA, QWEN2, QWEN3)}

__all__ = ["ARCHS", "Arch"]
