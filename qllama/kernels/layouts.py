"""Which packed layout each tensor type is multiplied in, and how large it is. No Numba here.

A packed matrix is a sequence of panels of 32 rows; a panel is a sequence of column blocks; a block holds the 32 rows
side by side, so that one vector register has the same columns of 16 rows. Rows are padded to whole panels with zeros.
"""

from dataclasses import dataclass

from qllama.ggml import BY_NAME, GGMLType

PANEL = 32  # rows

# Quantized activations: blocks of 32 columns, each {d f32, nsum8 i32, nsum8_low i32, dsum f32, 32 x int8}.
# nsum8 = -8 * sum of the int8 values, nsum8_low that of the first 16, dsum = d * sum.
BLOCK_Q8 = 48

POSITIONS = 256  # of a block of the KV cache, which is also the piece of the online softmax
CHUNK = 32  # positions of keys, or channels of values, that lie side by side in the cache (kv.py)
LATENT = "latent"  # the type of values that are not cached, being the first channels of the keys
CACHE_BYTES = {"f16": 64, "f32": 128, "q8_0": 34, LATENT: 0}  # of CHUNK cached elements
ATTENTION_ROWS = 64  # (token, head) rows that share one reading of a key-value head, unless a group has more
FEW_ROWS = 4  # tokens up to which the pieces of a head are work of their own, merged afterwards
GROWTH = 1.06  # of a type's bits per weight, what is more is said when a model is loaded
MAX_TILE = 8  # the most tokens of a register tile on any ISA

F32, Q8 = "f32", "q8"  # what a matmul reads: float32 rows or quantized blocks


@dataclass(frozen=True)
class Layout:
    """How one tensor type is packed. `kernels` names its `matmul` and `lookup`, which other types may share."""

    type: GGMLType
    kernels: str
    activation: str
    block: int  # columns of a packed block; a block of the file is one or more of them
    nbytes: int  # of a packed block of one panel

    @property
    def pack(self) -> str:
        """The kernel that packs."""
        return f"{self.type.name.lower()}.pack"

    @property
    def bits(self) -> float:
        """Bits per weight in memory."""
        return 8 * self.nbytes / (PANEL * self.block)

    def panels(self, n_out: int) -> int:
        return -(-n_out // PANEL)

    def file_blocks(self, n_in: int) -> int:
        """Blocks of a row in the file."""
        return n_in // self.type.block

    def panel_bytes(self, n_in: int) -> int:
        return n_in // self.block * self.nbytes

    def size(self, n_out: int, n_in: int) -> int:
        """Bytes of a packed matrix."""
        return self.panels(n_out) * self.panel_bytes(n_in)


def _layout(name: str, activation: str, more: int = 0) -> Layout:
    """`more`: bytes that a row's block takes packed above those of the file."""
    t = BY_NAME[name]
    return Layout(t, name.lower(), activation, t.block, PANEL * (t.nbytes + more))


def _shared(name: str, kernels: str, block: int, nbytes: int) -> Layout:
    """A layout that several types share: `nbytes` of a panel's block of `block` columns."""
    return Layout(BY_NAME[name], kernels, Q8, block, nbytes)


def _book(name: str, bits: int) -> Layout:
    """Codes of a book of 8 or 16 values, a float32 per 256 and 4 bits per 16 columns. See kernels/books.py."""
    return _shared(name, f"book{1 << bits}", 256, 64 + PANEL * (4 + 8 + 32 * bits))


def _twos(name: str) -> Layout:
    """2 bits for -1 .. 2, an f16 scale per 64 columns. See kernels/twos.py."""
    return _shared(name, "twos", 64, PANEL * (2 + 16))


LAYOUTS: dict[str, Layout] = {
    "F32": _layout("F32", F32),
    "F16": _layout("F16", F32),
    "BF16": _layout("BF16", F32),
    "Q4_0": _layout("Q4_0", Q8),
    "Q4_1": _layout("Q4_1", Q8),
    "Q5_0": _layout("Q5_0", Q8),
    "Q5_1": _layout("Q5_1", Q8),
    "Q2_K": _layout("Q2_K", Q8),
    "Q3_K": _layout("Q3_K", Q8, more=4),
    "Q4_K": _layout("Q4_K", Q8, more=4),
    "Q5_K": _layout("Q5_K", Q8, more=4),
    "Q6_K": _layout("Q6_K", Q8),
    "Q8_0": _layout("Q8_0", Q8),
    "Q8_1": _shared("Q8_1", "q8_0", 32, PANEL * BY_NAME["Q8_0"].nbytes),
    "Q8_K": _shared("Q8_K", "q8_k", 256, PANEL * (4 + 256)),
    "IQ1_S": _book("IQ1_S", 3),
    "IQ1_M": _book("IQ1_M", 3),
    "IQ2_XXS": _book("IQ2_XXS", 3),
    "IQ2_XS": _book("IQ2_XS", 3),
    "IQ2_S": _book("IQ2_S", 3),
    "IQ3_XXS": _book("IQ3_XXS", 4),
    "IQ3_S": _book("IQ3_S", 4),
    "IQ4_NL": _layout("IQ4_NL", Q8),
    "IQ4_XS": _layout("IQ4_XS", Q8, more=2),
    "MXFP4": _layout("MXFP4", Q8),
    "NVFP4": _layout("NVFP4", Q8),
    "Q1_0": _twos("Q1_0"),
    "Q2_0": _twos("Q2_0"),
    "TQ1_0": _twos("TQ1_0"),
    "TQ2_0": _twos("TQ2_0"),
}


def padded(n: int) -> int:
    """n rounded up to whole panels: the width of the buffer that a matmul writes."""
    return -(-n // PANEL) * PANEL


def row_bytes(activation: str, n_in: int) -> int:
    """Bytes of one token's row of activations."""
    return n_in // 32 * BLOCK_Q8 if activation == Q8 else padded(n_in) * 4


def item_tokens(group: int) -> int:
    """Tokens that attention takes at a time when `group` heads share keys and values."""
    return max(1, ATTENTION_ROWS // group)


def attention_scratch(group: int, head_dim: int, width: int) -> int:
    """Bytes of scratch of a thread: queries, results, scores, a piece's parts, running sums, and what is widened.

    head_dim is of keys, width that of values in whole panels.
    """
    rows = item_tokens(group) * group + MAX_TILE
    return rows * (4 * (head_dim + width + POSITIONS) + part_bytes(width) + 8) + 4 * CHUNK * max(head_dim, POSITIONS)


def part_bytes(width: int) -> int:
    """Bytes of one row's part of a piece: the weighted values, their maximum and sum, to a whole cache line."""
    return 4 * width + 64
