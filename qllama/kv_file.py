"""Keys and values on disk, beside a conversation: what a model has computed need not be computed again.

`NAME.kv` has the cache's blocks one behind the other, `NAME.kv.json` the tokens they are of and a checksum for each.
Only blocks that have changed are written. Whatever interrupts that leaves a block whose checksum is wrong: those before
it are still good, and tokens behind are computed again. By default 8 bits are kept of a value (Q8_0), by wish all.
"""

import contextlib
import hashlib
import json
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qllama import jit
from qllama.kernels.layouts import POSITIONS
from qllama.model import Model, common_prefix
from qllama.quant.q8_0 import BLOCK_Q8_0, decode

FORMAT = 1
KEPT = 5  # conversations whose state is kept
FLOATS: dict[str, np.dtype] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
SAMPLES, SAMPLE = 64, 4096  # parts of a model file that tell it from others, and bytes of each


class KVFile:
    """The saved state of a model's cache. `exact`: every bit is kept."""

    def __init__(self, path: Path, model: Model, exact: bool = False) -> None:
        self.path, self.index = path, path.with_name(path.name + ".json")
        self.model, self.exact = model, exact
        self._saved: list[int] = []  # the tokens that the file is of
        self._checksums: list[int] = []

    def save(self) -> None:
        """Write what has changed since the last time. Raises OSError when that is impossible."""
        tokens = list(self.model.cached)
        first = common_prefix(self._saved, tokens) // POSITIONS
        blocks = self.model.cache.blocks(len(tokens))
        checksums = self._checksums[:first]
        flags = os.O_RDWR | os.O_CREAT
        with os.fdopen(os.open(self.path, flags, 0o600), "r+b") as file:
            for at, block in enumerate(blocks[first:], first):
                body = self._encoded(block)
                file.seek(at * len(body))
                file.write(body)
                checksums.append(zlib.crc32(body))
            file.truncate(len(blocks) * self._block_bytes())
        header = {**self._kind(), "tokens": tokens, "checksums": checksums}
        new = self.index.with_name(self.index.name + ".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as text:
            json.dump(header, text)
        os.replace(new, self.index)
        if not self._saved:
            prune(self.path.parent)
        self._saved, self._checksums = tokens, checksums

    def load(self) -> int:
        """Put what is saved in the place of the model's cache; the number of tokens that it then has.

        What is damaged, of another model, or of another version counts as not there, and the cache stays as it is.
        """
        header = self._header()
        if header is None:
            return 0
        self.model.cached.clear()
        tokens = header["tokens"][: self.model.n_ctx]
        good = self._restored(tokens, header["checksums"])
        self._saved = tokens[: good * POSITIONS]
        self._checksums = header["checksums"][:good]
        self.model.cached = list(self._saved)
        self.model.cache.truncate(len(self._saved))
        return len(self._saved)

    def _restored(self, tokens: list[int], checksums: list[int]) -> int:
        """Read the blocks of `tokens`; the number of those that are good."""
        blocks = self.model.cache.blocks(len(tokens))
        try:
            with self.path.open("rb") as file:
                for at, block in enumerate(blocks):
                    body = file.read(self._block_bytes())
                    if len(body) != self._block_bytes() or zlib.crc32(body) != checksums[at]:
                        return at
                    self._decode(body, block)
        except OSError:
            return 0
        return len(blocks)

    def _header(self) -> dict[str, Any] | None:
        """The index, if it is one of this model and of the same kind."""
        try:
            header = json.loads(self.index.read_bytes())
            wanted = self._kind()
            tokens, checksums = header["tokens"], header["checksums"]
            n_blocks = -(-len(tokens) // POSITIONS)
            whole = all(type(n) is int for n in (*tokens, *checksums)) and len(checksums) == n_blocks
            return header if whole and {name: header[name] for name in wanted} == wanted else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model)

    def _kind(self) -> dict[str, Any]:
        """What a file must have in common with this one."""
        parts = [list(part) for part in self.model.cache.parts]
        return {"format": FORMAT, "model": self._fingerprint, "exact": self.exact, "parts": parts}

    # ---- how a block is stored

    def _stored(self, kind: str) -> bool:
        """Whether values of this type are stored as they are."""
        return self.exact or kind not in FLOATS

    def _block_bytes(self) -> int:
        """Of a block in the file."""
        return sum(
            nbytes if self._stored(kind) else _n_q8_0(kind, nbytes) * BLOCK_Q8_0.itemsize
            for kind, _, nbytes in self.model.cache.parts
        )

    def _encoded(self, block: np.ndarray) -> bytes:
        return b"".join(self._encoded_part(kind, block[at : at + n]) for kind, at, n in self.model.cache.parts)

    def _encoded_part(self, kind: str, part: np.ndarray) -> bytes:
        if self._stored(kind):
            return part.tobytes()
        values = np.zeros(_n_q8_0(kind, part.nbytes) * 32, np.float32)
        values[: part.nbytes // FLOATS[kind].itemsize] = part.view(FLOATS[kind])
        return _q8_0(values.reshape(-1, 32)).tobytes()

    def _decode(self, body: bytes, block: np.ndarray) -> None:
        start = 0
        for kind, at, nbytes in self.model.cache.parts:
            part = block[at : at + nbytes]
            if self._stored(kind):
                part[:] = np.frombuffer(body, np.uint8, nbytes, start)
                start += nbytes
            else:
                n = _n_q8_0(kind, nbytes)
                values = decode(np.frombuffer(body, BLOCK_Q8_0, n, start)).reshape(-1)
                part.view(FLOATS[kind])[:] = values[: nbytes // FLOATS[kind].itemsize]
                start += n * BLOCK_Q8_0.itemsize


def prune(folder: Path) -> None:
    """Delete all but the latest KEPT states in a folder: they are large, and can be computed again."""
    with contextlib.suppress(OSError):
        paths = sorted(folder.glob("*.kv"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in paths[KEPT:]:
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".json").unlink(missing_ok=True)


def _n_q8_0(kind: str, nbytes: int) -> int:
    """Blocks of 32 values that hold so many bytes of floats."""
    return -(-nbytes // FLOATS[kind].itemsize // 32)


def _q8_0(values: np.ndarray) -> np.ndarray:
    """(n, 32) float32, which is overwritten, as Q8_0; what is not finite, which only unused positions have, as 0."""
    values = np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    blocks = np.empty(len(values), BLOCK_Q8_0)
    blocks["d"] = np.abs(values).max(axis=1) / 127
    scale = blocks["d"].astype(np.float32)[:, None]
    np.divide(values, scale, out=values, where=scale > 0)
    blocks["qs"] = np.clip(np.rint(values), -127, 127)
    return blocks


def fingerprint(model: Model) -> str:
    """Tells a model, and the kernels that compute it, from others: of its numbers, and of samples of its file."""
    key = hashlib.sha256(f"{jit.cache_key()} {model.hparams!r}".encode())
    with open(model.path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        key.update(str(size).encode())
        for i in range(SAMPLES):
            file.seek(i * max(0, size - SAMPLE) // SAMPLES)
            key.update(file.read(SAMPLE))
    return key.hexdigest()
