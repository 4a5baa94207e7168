"""llama.cpp's file of a base model's predictions (`--kl-divergence-base`), which another model's are compared with.

`_logits_`, then int32: n_ctx, n_vocab, n_chunk, the tokens of all chunks. Then for every scored token a row: float32
scale and smallest log-probability, and for each token of the vocabulary a uint16 q, padded to an even number: its
log-probability is scale * q + smallest. All little-endian.
"""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from qllama.errors import FileError
from qllama.evaluate.perplexity import MIN_CTX, Text, blocks, log_sums, n_scored

MAGIC = b"_logits_"
HEADER = len(MAGIC) + 12
LOWEST = np.float32(16)  # a log-probability this far below the largest, or farther, is not told apart
MAX_CTX = 1 << 24


def row_size(n_vocab: int) -> int:
    """uint16 of a row."""
    return 4 + n_vocab + n_vocab % 2


def file_size(n_ctx: int, n_vocab: int, n_chunk: int) -> int:
    return HEADER + 4 * n_chunk * n_ctx + 2 * n_chunk * n_scored(n_ctx) * row_size(n_vocab)


def encode(logits: np.ndarray) -> np.ndarray:
    """The rows of (n, n_vocab) float32 logits: (n, row_size) uint16, in llama.cpp's arithmetic."""
    n, n_vocab = logits.shape
    out = np.zeros((n, row_size(n_vocab)), np.uint16)
    for rows in blocks(n, n_vocab):
        x = logits[rows]
        top = x.max(axis=1)
        low = np.maximum(x.min(axis=1), top - LOWEST)
        scale = (top - low) / np.float32(65535)
        head = np.stack([scale, low - top - (log_sums(x) - top).astype(np.float32)], axis=1)
        out[rows, :4] = head.astype("<f4").view("<u2")
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        out[rows, 4 : 4 + n_vocab] = np.rint(inverse[:, None] * (np.maximum(x, low[:, None]) - low[:, None]))
    return out


def decode(rows: np.ndarray, n_vocab: int) -> np.ndarray:
    """The log-probabilities (n, n_vocab) float32 of encoded rows."""
    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
    return head[:, :1] * rows[:, 4 : 4 + n_vocab].astype(np.float32) + head[:, 1:2]


class BaseWriter:
    """Writes a base file; it has its name when all chunks were saved, and what had that name before stays until then.

    A context manager. Raises FileError where the file cannot be written or does not fit the disk.
    """

    def __init__(self, path: str | os.PathLike[str], text: Text, n_vocab: int) -> None:
        self.path, self.temporary = Path(path), Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
        self.left = len(text.chunks)
        need = file_size(text.n_ctx, n_vocab, len(text.chunks))
        try:
            free = shutil.disk_usage(self.path.absolute().parent).free
            if free < need:
                raise FileError(path, f"the predictions need {need} bytes, the disk has {free}")
            self.file = self.temporary.open("wb")
            self.file.write(MAGIC + struct.pack("<3i", text.n_ctx, n_vocab, len(text.chunks)))
            self.file.write(text.chunks.astype("<i4").tobytes())
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror}") from error

    def save(self, logits: np.ndarray) -> None:
        """The next chunk's logits (n_scored, n_vocab) float32."""
        try:
            self.file.write(encode(logits).astype("<u2", copy=False).tobytes())
        except OSError as error:
            raise FileError(self.path, f"cannot be written: {error.strerror}") from error
        self.left -= 1

    def __enter__(self) -> "BaseWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
            if kind is None and self.left == 0:
                os.replace(self.temporary, self.path)
        except OSError as problem:
            raise FileError(self.path, f"cannot be written: {problem.strerror}") from problem
        finally:
            self.temporary.unlink(missing_ok=True)


class BaseFile:
    """A base file to compare with, of which the first `n_chunks` are read (-1: all); `chunks` (n, n_ctx) int32.

    Raises FileError for what is none, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], n_chunks: int = -1) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                header = file.read(HEADER)
                if header[:8] != MAGIC or len(header) < HEADER:
                    raise FileError(path, "is not a file of predictions, made by --kl-divergence-base")
                self.n_ctx, self.n_vocab, n = struct.unpack("<3i", header[8:])
                self._check(n, os.fstat(file.fileno()).st_size)
                tokens = np.frombuffer(file.read(4 * n * self.n_ctx), "<i4").astype(np.int32)
        except OSError as error:
            raise FileError(path, f"cannot be read: {error.strerror}") from error
        wrong = tokens[(tokens < 0) | (tokens >= self.n_vocab)]
        if len(wrong):
            raise FileError(path, f"token {wrong[0]} is not in its vocabulary of {self.n_vocab}")
        self._rows_at = HEADER + tokens.nbytes
        self.chunks = tokens.reshape(n, self.n_ctx)[: None if n_chunks < 0 else n_chunks]

    def _check(self, n_chunk: int, size: int) -> None:
        if not MIN_CTX <= self.n_ctx <= MAX_CTX:
            raise FileError(self.path, f"is not between {MIN_CTX} and {MAX_CTX}", "n_ctx", self.n_ctx)
        if self.n_vocab < 1 or n_chunk < 1:
            raise FileError(self.path, f"has {n_chunk} chunks, for a vocabulary of {self.n_vocab}")
        need = file_size(self.n_ctx, self.n_vocab, n_chunk)
        if size != need:
            raise FileError(self.path, f"has {size} bytes, {n_chunk} chunks of {self.n_ctx} tokens need {need}")

    def rows(self) -> Iterator[np.ndarray]:
        """Of each chunk the encoded predictions (n_scored, row_size) uint16."""
        n, size = n_scored(self.n_ctx), row_size(self.n_vocab)
        try:
            with self.path.open("rb") as file:
                file.seek(self._rows_at)
                for i in range(len(self.chunks)):
                    rows = np.frombuffer(file.read(2 * n * size), "<u2").reshape(n, size)
                    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
                    if not (np.isfinite(head).all() and (head[:, 0] >= 0).all()):
                        raise FileError(self.path, f"the predictions of chunk {i + 1} are damaged")
                    yield rows
        except (OSError, ValueError) as error:
            raise FileError(self.path, f"cannot be read: {error}") from error
