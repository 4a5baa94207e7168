"""Architectures: declarations only, one file and one line each."""

from qllama.arch.base import Arch
from qllama.arch.llama import LLAMA

ARCHS: dict[str, Arch] = {a.name: a for a in (LLAMA,)}

__all__ = ["ARCHS", "Arch"]
