"""Small models whose matrices are random blocks of any types, and the same models with every weight widened to F32."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf_maker import LLAMA, auto, gguf, tensor, write
from naive_blocks import block_bytes, weights
from test_kernels import random_blocks, set_scales

RARE = (
    "Q8_1", "Q8_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4", "Q1_0", "Q2_0",
    "TQ1_0", "TQ2_0",
)  # fmt: skip

KEYS = {
    **LLAMA,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.context_length": 512,
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(45))],
}
_BLOCK = {
    "attn_norm": (256,), "attn_q": (256, 256), "attn_k": (256, 128), "attn_v": (256, 128), "attn_output": (256, 256),
    "ffn_norm": (256,), "ffn_gate": (256, 512), "ffn_up": (256, 512), "ffn_down": (512, 256),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in _BLOCK.items()},
    "token_embd.weight": (256, 48),
    "output_norm.weight": (256,),
    "output.weight": (256, 48),
}
SIZE = 1 / 16  # of a weight: a sum of 256 products with it is as large as what it multiplies


def valid_blocks(type_name: str, n_out: int, n_in: int, seed: int) -> np.ndarray:
    """Random bits, and scales with which values have about the SIZE of weights. (n_out, bytes of a row) uint8."""
    blocks = random_blocks(type_name, n_out, n_in, seed)
    shaped = blocks.reshape(n_out, -1, block_bytes(type_name))
    if type_name == "NVFP4":
        shaped[..., :4] = shaped[..., :4] % 8 + 8
        return blocks
    set_scales(shaped, type_name, np.ones(shaped.shape[:2]))
    size = np.sqrt(np.mean(np.float64(weights(blocks, type_name)) ** 2))
    set_scales(shaped, type_name, SIZE / size * np.random.default_rng(seed).uniform(0.5, 1.5, shaped.shape[:2]))
    return blocks


def models(types: Mapping[str, str], out: Path, scales: Mapping[str, float] | None = None) -> tuple[Path, Path]:
    """Write at `out` a model whose matrices have these types, by name, and beside it the same one in F32.

    `scales`: what products of a matrix are multiplied by, in tensors of their own; in F32 the weights are.
    """
    entries, data = {"": [], ".f32": []}, {"": b"", ".f32": b""}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        if len(shape) == 1:
            kind, blocks = "F32", np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)
            wide = blocks
        else:
            kind = types[name]
            blocks = valid_blocks(kind, shape[1], shape[0], seed)
            wide = weights(blocks, kind)
        if scales and name in scales:
            with np.errstate(invalid="ignore"):  # a scale may be wrong on purpose
                wide = wide * np.float32(scales[name])
            entries[""].append(tensor(name.replace(".weight", ".scale"), (1,), "F32", len(data[""])))
            data[""] += np.float32(scales[name]).tobytes() + bytes(28)
        for suffix, what, values in (("", kind, blocks), (".f32", "F32", wide)):
            entries[suffix].append(tensor(name, shape, what, len(data[suffix])))
            data[suffix] += values.tobytes() + bytes(-values.nbytes % 32)
    keys = [auto(key, value) for key, value in KEYS.items()]
    paths = [write(out.with_name(out.name + s), gguf(keys, entries[s], data[s])) for s in ("", ".f32")]
    return paths[0], paths[1]


def of_one_type(type_name: str, out: Path) -> tuple[Path, Path]:
    return models(dict.fromkeys(SHAPES, type_name), out)


def of_all_rare_types(out: Path) -> tuple[Path, Path]:
    """One model: every rare type is one of the 14 matrices of the layers."""
    matrices = [name for name in SHAPES if len(SHAPES[name]) == 2]
    return models({name: RARE[i % len(RARE)] for i, name in enumerate(matrices)}, out)
