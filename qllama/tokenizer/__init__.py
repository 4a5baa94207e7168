"""Text to token ids and back, for the vocabularies that GGUF files carry. Each kind is one line here."""

import os

from qllama.errors import FileError
from qllama.gguf import open_gguf
from qllama.metadata import Metadata
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.bpe import BytePairTokenizer
from qllama.tokenizer.spm import SentencePieceTokenizer
from qllama.tokenizer.stream import StreamDecoder
from qllama.tokenizer.vocab import Vocabulary

__all__ = ["TOKENIZERS", "StreamDecoder", "Tokenizer", "Vocabulary", "load_tokenizer"]

# By tokenizer.ggml.model.
TOKENIZERS: dict[str, type[Tokenizer]] = {"llama": SentencePieceTokenizer, "gpt2": BytePairTokenizer}


def load_tokenizer(source: Metadata | str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file, which needs no tensors: its path, or the metadata of an opened one.

    Raises FileError if there is none, or it cannot be used.
    """
    if not isinstance(source, Metadata):
        with open_gguf(source) as gguf:
            return load_tokenizer(gguf.metadata)
    metadata = source
    key = "tokenizer.ggml.model"
    model = metadata.text(key, "none")
    if model in ("none", "no_vocab"):
        raise FileError(metadata.path, "no tokenizer in file")
    if model not in TOKENIZERS:
        raise metadata.error(key, f"is not implemented (implemented: {', '.join(TOKENIZERS)})")
    return TOKENIZERS[model](Vocabulary.from_metadata(metadata))
