"""The blocks that gguf-py does not decode, one value after the other from the bytes; `weights` decodes any type."""

import struct
from collections.abc import Callable, Iterator

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize


def _q8_1(block: bytes) -> Iterator[np.float32]:
    d, _sum, *q = struct.unpack("<ee32b", block)
    return (np.float32(d) * np.float32(x) for x in q)


def _q8_k(block: bytes) -> Iterator[np.float32]:
    d, *q = struct.unpack("<f256b", block[:260])
    return (np.float32(d) * np.float32(x) for x in q)


def _q1_0(block: bytes) -> Iterator[np.float32]:
    (d,), bits = struct.unpack("<e", block[:2]), int.from_bytes(block[2:], "little")
    return (np.float32(d if bits >> i & 1 else -d) for i in range(128))


def _q2_0(block: bytes) -> Iterator[np.float32]:
    (d,), bits = struct.unpack("<e", block[:2]), int.from_bytes(block[2:], "little")
    return (np.float32(d) * np.float32((bits >> 2 * i & 3) - 1) for i in range(64))


# name -> values of a block, bytes of a block, how it decodes
NAIVE: dict[str, tuple[int, int, Callable[[bytes], Iterator[np.float32]]]] = {
    "Q8_1": (32, 36, _q8_1),
    "Q8_K": (256, 292, _q8_k),
    "Q1_0": (128, 18, _q1_0),
    "Q2_0": (64, 18, _q2_0),
}


def block_bytes(type_name: str) -> int:
    if type_name in NAIVE:
        return NAIVE[type_name][1]
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][1])


def weights(blocks: np.ndarray, type_name: str) -> np.ndarray:
    """(n_out, bytes of a row) uint8 -> (n_out, n_in) float32, by gguf-py where it can."""
    if type_name not in NAIVE:
        return dequantize(blocks, GGMLQuantizationType[type_name]).astype(np.float32)
    _, nbytes, decode = NAIVE[type_name]
    raw = blocks.tobytes()
    values = [x for at in range(0, len(raw), nbytes) for x in decode(raw[at : at + nbytes])]
    return np.array(values, np.float32).reshape(len(blocks), -1)
