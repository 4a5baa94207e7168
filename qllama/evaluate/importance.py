"""Running a model on a text to see how strongly each column of its matrices is used, by llama-imatrix's method."""

from collections.abc import Iterator

from qllama.evaluate.perplexity import Text
from qllama.imatrix import Sums
from qllama.model import Model


def collect(model: Model, text: Text) -> Iterator[dict[str, Sums]]:
    """The sums by tensor after each chunk; each chunk begins anew."""
    collector = model.collector()
    for chunk in text.chunks:
        tokens = chunk.copy()
        if text.bos is not None:
            tokens[0] = text.bos
        model.forward(tokens, 0, len(tokens), collector)
        yield collector.sums
