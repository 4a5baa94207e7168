"""qwen2: Qwen 1.5 to 2.5; biases of queries, keys and values are in the file."""

from qllama.arch.base import Arch

QWEN2 = Arch("qwen2", rope="neox")
