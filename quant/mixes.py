"""The mixes of llama-quantize: which tensor of a model gets which type. Names and shapes in, type names out.

Reading and writing files is qllama.quantize's business, encoding the rest of this package's.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from qllama.errors import InputError, printable
from qllama.ggml import BY_NAME


class FileType(NamedTuple):
    """A type that a whole file can be quantized to: its `general.file_type`, and the type of most of its tensors."""

    id: int
    base: str


# Smaller and larger variants of a base type, by the rules below; the other names are those of their base types.
_VARIANTS = {
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}  # fmt: skip
_IDS = """
F32 0 F16 1 BF16 32 Q4_0 2 Q4_1 3 Q5_0 8 Q5_1 9 Q8_0 7 Q2_K 10 Q2_K_S 21 Q3_K_S 11 Q3_K_M 12 Q3_K_L 13 Q4_K_S 14
Q4_K_M 15 Q5_K_S 16 Q5_K_M 17 Q6_K 18 IQ1_S 24 IQ1_M 31 IQ2_XXS 19 IQ2_XS 20 IQ2_S 28 IQ2_M 29 IQ3_XXS 23 IQ3_XS 22
IQ3_S 26 IQ3_M 27 IQ4_NL 25 IQ4_XS 30 TQ1_0 36 TQ2_0 37 MXFP4_MOE 38 Q1_0 40 Q2_0 41
"""
FILE_TYPES: dict[str, FileType] = {
    name: FileType(int(id), _VARIANTS.get(name, name)) for name, id in re.findall(r"(\w+) (\d+)", _IDS)
}
COPY = "COPY"  # every tensor stays as it is
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# A row: the tensor's role, the file types that it is for, and the types to choose from. The first whose conditions
# (`:name`, joined by `&`) hold is taken; the file's base type where none does. `falcon.` rows go before the others.
_RULES = """
token_embd         IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS        Q2_K
token_embd         IQ2_S,IQ2_M,IQ3_XXS               IQ3_S
token_embd         TQ1_0,TQ2_0,Q2_0                  Q4_K
attn_v             IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS        Q4_K:gqa>=4 Q4_K:experts>=4 Q2_K
attn_v             IQ2_S,IQ2_M                       Q4_K:gqa>=4 Q4_K:experts>=4 IQ3_S
attn_v             Q2_K                              Q4_K:gqa>=4 Q3_K
attn_v             Q2_K_S,IQ3_XS,IQ3_S               Q4_K:gqa>=4
attn_v             IQ3_XXS                           Q4_K:gqa>=4 IQ3_S:no_imatrix
attn_v             IQ3_M                             Q4_K
attn_v             Q3_K_M                            Q5_K:i<2 Q4_K
attn_v             Q3_K_L                            Q5_K
attn_v             IQ4_NL,IQ4_XS                     Q5_K:gqa>=4
attn_v             Q4_K_M,Q5_K_M                     Q6_K:more
attn_v             Q4_K_S                            Q5_K:i<4
attn_k             IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS,IQ2_S,IQ2_M  Q4_K:experts=8
attn_k             IQ3_XS                            IQ3_XXS
attn_k             IQ3_XXS                           IQ2_S
attn_q             IQ3_XS                            IQ3_XXS
attn_q             IQ3_XXS                           IQ2_S
attn_output        IQ1_S,IQ1_M                       Q5_K:experts=8 IQ2_XXS
attn_output        IQ2_S,IQ2_M,IQ3_XXS               Q5_K:experts=8 IQ3_S
attn_output        IQ2_XXS,IQ2_XS,IQ3_XS,IQ3_S,Q3_K_S,IQ4_NL,IQ4_XS,Q4_K_S,Q4_K_M  Q5_K:experts=8
attn_output        Q2_K                              Q5_K:experts=8 Q3_K
attn_output        Q3_K_M,IQ3_M                      Q5_K:experts=8 Q4_K
attn_output        Q3_K_L                            Q5_K:experts!=8
falcon.attn_output IQ3_XXS,IQ3_XS,IQ3_S,IQ3_M,Q2_K,Q3_K_S,Q3_K_M,IQ4_NL,IQ4_XS,Q4_K_S,Q4_K_M  base
falcon.attn_output Q3_K_L                            Q4_K
ffn_down           IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS        Q2_K:i<n/8
ffn_down           IQ2_S,IQ2_M                       IQ3_S:i<n/8
ffn_down           Q2_K                              Q3_K
ffn_down           Q2_K_S                            Q4_K:i<n/8
ffn_down           IQ3_XXS                           Q4_K:no_imatrix&i<n/8 Q3_K:no_imatrix
ffn_down           IQ3_M                             Q4_K:i<n/8 Q4_K:experts=8&more
ffn_down           Q3_K_M                            Q5_K:i<n/16 Q4_K
ffn_down           Q3_K_L                            Q5_K
ffn_down           Q4_K_M,Q5_K_M                     Q6_K:more
ffn_down           Q4_K_S                            Q5_K:i<n/8
ffn_down           IQ4_NL,IQ4_XS                     Q5_K:no_imatrix&i<n/8
ffn_down           Q4_0                              Q4_1:imatrix&i<n/8
ffn_down           Q5_0                              Q5_1:imatrix&i<n/8
falcon.ffn_down    Q3_K_M                            Q5_K:i<n/16 Q4_K:more
falcon.ffn_down    Q3_K_L                            Q4_K
falcon.ffn_down    Q4_K_M                            Q6_K:i<n/16 Q5_K:more
falcon.ffn_down    Q4_K_S                            base
ffn_gate           IQ3_XS                            IQ3_XXS:middle
ffn_up             IQ3_XS                            IQ3_XXS:middle
"""
RULES: dict[tuple[str, str], list[str]] = {
    (role, mix): types
    for role, mixes, *types in (row.split() for row in _RULES.strip().splitlines())
    for mix in mixes.split(",")
}

ROLES = {
    "attn_qkv.weight": "attn_v", "attn_kv_b.weight": "attn_v", "attn_v.weight": "attn_v", "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q", "attn_output.weight": "attn_output", "ffn_up": "ffn_up", "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}  # fmt: skip
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

# Below three bits: their own rules for attention, and of no use without an importance matrix.
LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
NEEDS_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")

# What rows that are not whole blocks fall back to; F16 where that does not divide either.
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

# Parts of names of matrices that are small, or not multiplied with, or too sensitive.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight|\.position_embd|sam\.pos_embd|sam\.neck\."
    r"|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
)


@dataclass(frozen=True)
class Traits:
    """What the rules ask about a model. `n_layer` counts all blocks; `n_gqa` is heads per key-value head."""

    architecture: str
    n_layer: int
    n_gqa: int = 1
    n_expert: int = 0
    imatrix: bool = False

    @property
    def is_70b(self) -> bool:
        """80 layers whose attn_v is a fraction of attn_q: more bits for it cost nothing."""
        if self.n_layer != 80:
            return False
        return self.architecture == "qwen2" or (self.architecture in ("llama", "deci") and self.n_gqa != 1)


class _Place(NamedTuple):
    """Where a tensor is: the `i`-th of `n` of its role."""

    i: int
    n: int
    traits: Traits


def _more(p: _Place) -> bool:
    """The first and the last eighth, and every third in between."""
    return p.i < p.n // 8 or p.i >= 7 * p.n // 8 or (p.i - p.n // 8) % 3 == 2


CONDITIONS: dict[str, Callable[[_Place], bool]] = {
    "more": _more,
    "i<2": lambda p: p.i < 2,
    "i<4": lambda p: p.i < 4,
    "i<n/8": lambda p: p.i < p.n // 8,
    "i<n/16": lambda p: p.i < p.n // 16,
    "middle": lambda p: p.n // 8 <= p.i < 7 * p.n // 8,
    "gqa>=4": lambda p: p.traits.n_gqa >= 4,
    "experts>=4": lambda p: p.traits.n_expert >= 4,
    "experts=8": lambda p: p.traits.n_expert == 8,
    "experts!=8": lambda p: p.traits.n_expert != 8,
    "imatrix": lambda p: p.traits.imatrix,
    "no_imatrix": lambda p: not p.traits.imatrix,
}


def file_type(text: str) -> str | None:
    """The name in FILE_TYPES, or COPY, that a user means by a name in any case or a number; None for neither."""
    name = text.upper()
    if name in FILE_TYPES or name == COPY:
        return name
    if text.isascii() and text.isdigit():
        return next((name for name, kind in FILE_TYPES.items() if kind.id == int(text)), None)
    return ALIASES.get(name)


def role(name: str) -> str:
    """What a tensor does, as far as the rules care; "other" where they do not."""
    if name == OUTPUT:
        return "output"
    if name in EMBEDDINGS:
        return "token_embd"
    return next((role for part, role in ROLES.items() if part in name), "other")


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is ever quantized: a matrix of weights, not a norm, router, position table or convolution."""
    is_matrix = any(n > 1 for n in shape[1:])
    kept = name in ("position_embd.weight", "token_types.weight") or _KEPT.search(name) is not None
    return is_matrix and name.endswith("weight") and not kept


def fallback(type_name: str, name: str, n: int) -> str:
    """`type_name`, or what stands for it where rows of `n` are not whole blocks. InputError when nothing does."""
    if n % BY_NAME[type_name].block == 0:
        return type_name
    block = BY_NAME[type_name].block
    if type_name not in FALLBACK and block > 32:
        raise InputError(f"{printable(name)}: rows of {n} values, {type_name} needs a multiple of {block}")
    second = FALLBACK.get(type_name, type_name)
    return second if n % BY_NAME[second].block == 0 else "F16"


def needs_imatrix(name: str, type_name: str, mix: str) -> bool:
    """Whether a tensor of this type would be garbage without an importance matrix."""
    if name in EMBEDDINGS or name == OUTPUT:
        return False
    return type_name in NEEDS_IMATRIX or (mix == "Q2_K_S" and type_name == "Q2_K")


class Mix:
    """The types of a model's tensors in a file of type `mix`; asked about each in the order of the file."""

    def __init__(self, mix: str, traits: Traits, names: Iterable[str], output_type: str | None = None) -> None:
        self.mix, self.traits, self.output_type = mix, traits, output_type
        self.base = FILE_TYPES[mix].base
        roles = Counter(map(role, names))
        self.n_attn_v, self.is_tied = roles["attn_v"], not roles["output"]
        self._seen: Counter[str] = Counter()

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        """The type by the rules; rows that do not divide are `fallback`'s business."""
        what = role(name)
        if what == "output" or (what == "token_embd" and self.is_tied):
            return self._output(shape[0])
        if self.mix == "MXFP4_MOE":
            return self._mxfp4_moe(what, shape)
        chosen = self._rule(what, name)
        self._seen[what] += 1
        if self.mix in LOW:
            return chosen
        if what == "attn_v" and self.traits.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if what in ("attn_v", "attn_k") and self.traits.n_expert == 8 else chosen

    def _output(self, n: int) -> str:
        if self.output_type:
            return self.output_type
        if self.mix == "MXFP4_MOE" or self.traits.architecture == "falcon" or n % BY_NAME[self.base].block:
            return "Q8_0"
        if self.mix in LOW or self.mix == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self.base == "Q8_0" else "Q6_K"

    def _mxfp4_moe(self, what: str, shape: tuple[int, ...]) -> str:
        """MXFP4 for the experts; in bailingmoe3 other tensors have three dimensions too."""
        is_expert = len(shape) > 2 and shape[2] > 1
        if self.traits.architecture == "bailingmoe3":
            is_expert = is_expert and what.startswith("ffn_")
        return "MXFP4" if is_expert else "Q8_0"

    def _rule(self, what: str, name: str) -> str:
        own = RULES.get((f"{self.traits.architecture}.{what}", self.mix))
        for option in RULES.get((what, self.mix), []) if own is None else own:
            type_name, _, conditions = option.partition(":")
            place = self._place(what, name)
            if all(CONDITIONS[c](place) for c in conditions.split("&") if c):
                return self.base if type_name == "base" else type_name
        return self.base

    def _place(self, what: str, name: str) -> _Place:
        """By the running count; by the number in the name for experts, which may be in any order."""
        i, n = self._seen[what], self.traits.n_layer
        if what == "attn_v":
            return _Place(i, self.n_attn_v, self.traits)
        if what.startswith("ffn_") and self.traits.n_expert > 1 and self.mix not in LOW:
            match = re.match(r"blk\.(\d+)\.", name)
            if match is None or int(match[1]) >= n:
                raise InputError(f"{printable(name)}: found no layer number below {n} in the name of the tensor")
            i = int(match[1])
        return _Place(i, n, self.traits)
