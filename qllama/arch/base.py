"""The vocabulary of architecture declarations: only what a GGUF file cannot tell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """One architecture. Everything else comes from the metadata and from which tensors exist."""

    name: str
    rope: str = "interleaved"  # pairs (x[2i], x[2i+1]), or neox: (x[i], x[i + n_rot/2]); kernels/rope.py
    activation: str = "swiglu"  # kernels/ffn.py
