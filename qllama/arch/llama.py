"""llama: LLaMA 1 to 3.2 and all that took over its recipe under the same name (Mistral, Yi, Vicuna, ...)."""

from qllama.arch.base import Arch

LLAMA = Arch("llama")
