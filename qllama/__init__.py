"""qllama: quantized LLaMA-family models on CPUs, from pure Python."""

__version__ = "0.1.0"
