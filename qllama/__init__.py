"""qllama: quantized LLaMA-family models on CPUs, from pure Python."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`LLM` is imported when it is asked for: it needs NumPy, `qllama --help` does not."""
    if name == "LLM":
        from qllama.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
