"""The key-value cache: blocks of 256 positions for all layers, made as tokens come. attention.py knows their layout."""

import numpy as np

from qllama import cpu
from qllama.errors import InputError, QllamaError
from qllama.kernels.layouts import POSITIONS, padded

KINDS = {"f16": 2, "f32": 4}  # bytes per element


def element_bytes(kind: str, option: str = "type_k") -> int:
    """Bytes per element of a cache kind. Raises InputError for one that is not implemented."""
    if kind not in KINDS:
        raise InputError(f"{option}={kind}: the KV cache can be {', '.join(KINDS)}")
    return KINDS[kind]


class KVCache:
    """Keys and values of up to n_ctx positions. A context costs nothing until its positions are used."""

    def __init__(self, n_layer: int, n_head_kv: int, head_dim: int, n_ctx: int, kind: str) -> None:
        size = element_bytes(kind)
        self.kind = kind
        self.width = padded(head_dim)  # of a value row
        self._keys = n_head_kv * POSITIONS * head_dim * size
        self._values = n_head_kv * POSITIONS * self.width * size
        self.block_bytes = n_layer * (self._keys + self._values)
        self._blocks: list[np.ndarray] = []
        self.resize(n_ctx)

    def resize(self, n_ctx: int) -> None:
        """Set the number of positions there may be. Only before any is used."""
        assert not self._blocks
        self.n_ctx = n_ctx
        self.table = np.zeros(-(-n_ctx // POSITIONS), np.int64)  # addresses of the blocks

    def keys_at(self, layer: int) -> int:
        """Byte offset of a layer's keys in a block."""
        return layer * (self._keys + self._values)

    def values_at(self, layer: int) -> int:
        return self.keys_at(layer) + self._keys

    def nbytes(self, n_positions: int) -> int:
        """Bytes for n_positions."""
        return -(-n_positions // POSITIONS) * self.block_bytes

    def reserve(self, n_positions: int) -> None:
        """Make the blocks that n_positions need."""
        assert n_positions <= self.n_ctx
        while len(self._blocks) * POSITIONS < n_positions:
            try:
                block = np.frombuffer(cpu.allocate(self.block_bytes), np.uint8)
            except OSError as error:
                have = len(self._blocks) * POSITIONS
                raise QllamaError(
                    f"out of memory at context position {have}: no {self.block_bytes} bytes more"
                ) from error
            self.table[len(self._blocks)] = block.ctypes.data
            self._blocks.append(block)

    def truncate(self, n_positions: int) -> None:
        """Give back the blocks behind n_positions."""
        keep = -(-n_positions // POSITIONS)
        self.table[keep:] = 0
        del self._blocks[keep:]
