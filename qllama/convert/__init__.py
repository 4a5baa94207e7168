"""A Hugging Face folder in, what becomes a GGUF file out; writing and quantizing it is qllama.quantize's business."""

from qllama.convert.source import TYPES, FolderSource, convert_plan

__all__ = ["TYPES", "FolderSource", "convert_plan"]
