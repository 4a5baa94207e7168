"""qwen3: Qwen 3, dense; norms of each head's queries and keys are in the file."""

from qllama.arch.base import Arch

QWEN3 = Arch("qwen3", rope="neox")
