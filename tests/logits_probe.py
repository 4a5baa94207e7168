"""Logits of whole models: `logits_probe.py FOLDER FILE...`, for the ISA of QLLAMA_ISA.

Runs each file with every number of threads and batch size below; prints {file: {"t4 b7": sha256 of the logits}} as JSON
and leaves the logits of the first of them in FOLDER. A process of its own, for one process has one ISA.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from qllama.model import Model

THREADS, BATCHES = (1, 2, 4), (512, 7, 1)
CACHES = {"books-5m-Q4_K_M.gguf": "q8_0", "books-5m-Q4_1.gguf": "f32"}  # f16 for all others
N_TOKENS = 280  # crosses from one block of the cache into the next, and from batch to batch


def tokens(n_vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, n_vocab, N_TOKENS)


def logits(path: str, n_threads: int, n_batch: int, type_k: str) -> np.ndarray:
    """After every token: (N_TOKENS, n_vocab) float32."""
    model = Model(path, n_ctx=N_TOKENS, n_threads=n_threads, n_batch=n_batch, type_k=type_k, type_v=type_k)
    try:
        return model.forward(tokens(model.hparams.n_vocab), 0, N_TOKENS)
    finally:
        model.close()


def main(folder: str, files: list[str]) -> None:
    found: dict[str, dict[str, str]] = {}
    for file in files:
        name = Path(file).name
        np.save(Path(folder) / f"{name}.npy", logits(file, 1, 512, "f32"))
        found[name] = {
            f"t{t} b{b}": hashlib.sha256(logits(file, t, b, CACHES.get(name, "f16")).tobytes()).hexdigest()
            for t in THREADS
            for b in BATCHES
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
