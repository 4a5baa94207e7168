"""Text to token ids and back, for the vocabularies that GGUF files carry. Each kind is one line here."""

from qllama.errors import FileError
from qllama.metadata import Metadata
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.bpe import BytePairTokenizer
from qllama.tokenizer.spm import SentencePieceTokenizer
from qllama.tokenizer.stream import StreamDecoder
from qllama.tokenizer.vocab import Vocabulary

__all__ = ["TOKENIZERS", "StreamDecoder", "Tokenizer", "Vocabulary", "load_tokenizer"]

# By tokenizer.ggml.model.
TOKENIZERS: dict[str, type[Tokenizer]] = {"llama": SentencePieceTokenizer, "gpt2": BytePairTokenizer}


def load_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer of an opened GGUF file. Raises FileError if there is none, or it cannot be used."""
    key = "tokenizer.ggml.model"
    model = metadata.text(key, "none")
    if model in ("none", "no_vocab"):
        raise FileError(metadata.path, "no tokenizer in file")
    if model not in TOKENIZERS:
        raise metadata.error(key, f"is not implemented (implemented: {', '.join(TOKENIZERS)})")
    return TOKENIZERS[model](Vocabulary.from_metadata(metadata))
