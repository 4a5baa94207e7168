"""Tokens per register tile, per ISA, chosen by measurement (benchmarks/README.md). They never change a result.

A tile is this many tokens x 32 rows: two accumulators a token and kind, so 4 tokens use 16 of AVX-512's 32 registers,
and 2 tokens all 16 of AVX2's (a 512-bit vector is two of them). NEON's 32 registers are a quarter as wide: there a tile
is of half a panel, 16 rows, and 4 tokens use 16 registers; their sums of floats wait on the stack meanwhile.
`qllama tune` may have found others for this machine.
"""

from qllama import cpu, tuned

_TOKENS = {"avx512": 4, "avxvnni": 2, "avx2": 2, "neon-dotprod": 4, "neon": 2, "generic": 1}
_TOKENS_F32 = {"avx512": 8, "avxvnni": 2, "avx2": 2, "neon-dotprod": 4, "neon": 4, "generic": 1}
_TOKENS_16 = {"avx512": 8, "avxvnni": 4, "avx2": 4, "neon-dotprod": 2, "neon": 1, "generic": 1}

BY_HALVES = cpu.isa().machine == "aarch64"

# Tiles (int8, f32) that `qllama tune` compares with the defaults above.
CHOICES = {
    "avx512": ((3, 4), (5, 6), (6, 8)),
    "avxvnni": ((1, 4), (3, 3)),
    "avx2": ((1, 4), (3, 3)),
    "neon-dotprod": ((2, 4), (6, 8)),
    "neon": ((1, 4), (4, 4)),
    "generic": ((2, 2),),
}
DEFAULTS = {"int8": _TOKENS[cpu.isa().name], "f32": _TOKENS_F32[cpu.isa().name]}

TILE = tuned.tiles().get("int8", DEFAULTS["int8"])
TILE_F32 = max(TILE, tuned.tiles().get("f32", DEFAULTS["f32"]))  # attention takes the smaller one for few rows
TILE_16 = _TOKENS_16[cpu.isa().name]  # of 16 rows, for formats that take long to unpack
