"""Whole models of every packed layout: `logits_sha.py make FOLDER` writes their files, `logits_sha.py FOLDER` prints a
line for each with the sha256 of its logits. To be run on two kinds of machine and compared."""

import hashlib
import sys
from pathlib import Path

import numpy as np
from conftest import shared
from quant_files import quantized_model
from rare_files import of_one_type

from qllama.kernels.layouts import LAYOUTS
from qllama.model import Model

N_TOKENS, N_BATCH = 22, 9  # two batches, of two tiles and a single token each, and a batch of less than a tile


def make(folder: Path) -> None:
    """One model for each packed layout, and stories260K."""
    (folder / "stories260K-f32.gguf").symlink_to(shared("models/stories260K-f32.gguf").resolve())
    for kernels in {layout.kernels for layout in LAYOUTS.values()}:
        name = next(name for name, layout in LAYOUTS.items() if layout.kernels == kernels)
        path = folder / f"{name}.gguf"
        if LAYOUTS[name].block == 1:
            quantized_model("q256", name, path)
        else:
            wide = of_one_type(name, path)[1]
            wide.unlink()


def digest(path: Path, kind: str) -> str:
    model = Model(path, n_ctx=N_TOKENS + 2, n_threads=2, n_batch=N_BATCH, type_k=kind, type_v=kind)
    ids = np.random.default_rng(0).integers(0, model.hparams.n_vocab, N_TOKENS + 2)
    sha = hashlib.sha256()
    sha.update(model.forward(ids[:N_TOKENS], 0, N_TOKENS).tobytes())
    for i in range(N_TOKENS, len(ids)):
        sha.update(model.forward(ids[i : i + 1], i).tobytes())
    model.close()
    return sha.hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
            print(path.name, digest(path, "f16" if path.stem in LAYOUTS else "f32"), flush=True)
