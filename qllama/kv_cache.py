"""The key-value cache: blocks of 256 positions for all layers, made as tokens come. attention.py knows their layout."""

import numpy as np

from qllama import cpu
from qllama.errors import InputError, QllamaError
from qllama.kernels.layouts import CACHE_BYTES, CHUNK, FEW_ROWS, LATENT, POSITIONS, padded, part_bytes

TYPES = tuple(kind for kind in CACHE_BYTES if kind != LATENT)


def check_type(kind: str, head_dim: int = CHUNK, option: str = "type_k") -> str:
    """`kind` itself. Raises InputError for a cache type that is not implemented, or not for heads of this size."""
    if kind not in TYPES:
        raise InputError(f"{option}={kind}: the KV cache can be {', '.join(TYPES)}")
    if kind == "q8_0" and head_dim % CHUNK:
        raise InputError(f"{option}={kind}: needs heads that are a multiple of {CHUNK} wide, these are {head_dim}")
    return kind


class KVCache:
    """Keys and values of up to n_ctx positions. A context costs nothing until its positions are used.

    A block also has room for the parts of attention to its positions (attention.py), for FEW_ROWS tokens.
    head_dim_v is the width of values where it is not that of keys. `latent` values are the keys' first channels, and
    take no memory.
    """

    def __init__(
        self, n_layer: int, n_head: int, n_head_kv: int, head_dim: int, n_ctx: int, type_k: str = "f16",
        type_v: str = "f16", head_dim_v: int | None = None, latent: bool = False,
    ) -> None:  # fmt: skip
        self.head_dim_v = head_dim if head_dim_v is None else head_dim_v
        check_type(type_k, head_dim)
        type_v = LATENT if latent else check_type(type_v, self.head_dim_v, "type_v")
        self.types = f"{type_k}_{type_v}"
        self.n_layer, self.type_k, self.type_v = n_layer, type_k, type_v
        self.width = padded(self.head_dim_v)  # of a value row
        self.part_bytes = part_bytes(self.width)
        self._keys = n_head_kv * POSITIONS * head_dim * CACHE_BYTES[type_k] // CHUNK
        self._values = n_head_kv * POSITIONS * self.width * CACHE_BYTES[type_v] // CHUNK
        self.layer_bytes = self._keys + self._values  # of one layer in a block
        self.parts_at = -(-n_layer * self.layer_bytes // 64) * 64
        self.block_bytes = self.parts_at + FEW_ROWS * n_head * self.part_bytes
        self._blocks: list[np.ndarray] = []
        self.resize(n_ctx)

    def resize(self, n_ctx: int) -> None:
        """Set the number of positions there may be. Only before any is used."""
        assert not self._blocks
        self.n_ctx = n_ctx
        self.table = np.zeros(-(-n_ctx // POSITIONS), np.int64)  # addresses of the blocks

    def keys_at(self, layer: int) -> int:
        """Byte offset of a layer's keys in a block."""
        return layer * self.layer_bytes

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

    @property
    def parts(self) -> list[tuple[str, int, int]]:
        """What lies in a block: (type, first byte, bytes) of the keys and the values of each layer."""
        runs = ((self.type_k, 0, self._keys), (self.type_v, self._keys, self._values))
        return [(kind, layer * self.layer_bytes + at, n) for layer in range(self.n_layer) for kind, at, n in runs]

    def blocks(self, n_positions: int) -> list[np.ndarray]:
        """The blocks that n_positions need, made if missing: (block_bytes,) uint8 each, to read or write."""
        self.reserve(n_positions)
        return self._blocks[: -(-n_positions // POSITIONS)]

    def truncate(self, n_positions: int) -> None:
        """Give back the blocks behind n_positions."""
        keep = -(-n_positions // POSITIONS)
        self.table[keep:] = 0
        del self._blocks[keep:]
