"""Which tensor gets which type: against files that llama-quantize made, and the bits per weight it is known for."""

import dataclasses
import json
from math import prod

import pytest
from conftest import shared

from qllama.errors import InputError
from qllama.ggml import BY_NAME
from qllama.quant import mixes
from qllama.quant.mixes import Mix, Traits, fallback, file_type, is_quantizable, needs_imatrix

ORACLE = {"q256": Traits("llama", 2, 4), "q192": Traits("qwen2", 2, 3), "qmoe": Traits("llama", 2, 2, 8)}

# Bits per weight of Llama 3.1 8B in llama.cpp's own table.
BPW = {
    "Q2_K_S": 2.9697, "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_M": 3.9960, "Q3_K_L": 4.2979, "IQ4_XS": 4.4597,
    "IQ4_NL": 4.6818, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633,
    "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip


def types(mix: str, traits: Traits, shapes: dict[str, tuple[int, ...]], found: str = "F16") -> dict[str, str]:
    """The type of each tensor as a file of `mix`; vectors are F32, other tensors that are kept are `found`."""
    rules, base, new = Mix(mix, traits, shapes), mixes.FILE_TYPES[mix].base, {}
    for name, shape in shapes.items():
        if not is_quantizable(name, shape):
            new[name] = "F32" if len(shape) == 1 else found
        elif base in ("F32", "F16", "BF16"):
            new[name] = base
        else:
            new[name] = fallback(rules.type_of(name, shape), name, shape[0])
    return new


@pytest.mark.parametrize("kind", ORACLE)
def test_types_are_those_of_llama_quantize(kind):
    recorded = json.loads(shared("oracles/quant/quant.json").read_text())["sources"][kind]
    shapes = {t["name"]: tuple(t["shape"]) for t in recorded["source_tensors"]}
    n_files = 0
    for name, file in recorded["files"].items():
        mix, _, imatrix = name.partition("+")
        traits = dataclasses.replace(ORACLE[kind], imatrix=bool(imatrix))
        if "error" in file:
            with pytest.raises(InputError):
                chosen = types(mix, traits, shapes)
                if any(needs_imatrix(tensor, type_name, mix) for tensor, type_name in chosen.items()):
                    raise InputError("an importance matrix is needed")
            continue
        order = {t["name"]: tuple(t["shape"]) for t in file["tensors"]}
        wanted = {t["name"]: t["type"] for t in file["tensors"]}
        assert types(mix, traits, order, found="F32") == wanted, name
        n_files += 1
    assert n_files >= 8


def llama_8b() -> dict[str, tuple[int, ...]]:
    """Llama 3.1 8B: names and shapes, in the order of a quantized file."""
    d, kv, ff, vocab = 4096, 1024, 14336, 128256
    layer = {
        "attn_k.weight": (d, kv), "attn_norm.weight": (d,), "attn_output.weight": (d, d), "attn_q.weight": (d, d),
        "attn_v.weight": (d, kv), "ffn_down.weight": (ff, d), "ffn_gate.weight": (d, ff), "ffn_norm.weight": (d,),
        "ffn_up.weight": (d, ff),
    }  # fmt: skip
    top = {"output.weight": (d, vocab), "output_norm.weight": (d,), "rope_freqs.weight": (64,)}
    blocks = {f"blk.{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    return top | {"token_embd.weight": (d, vocab)} | blocks


@pytest.mark.parametrize("mix", BPW)
def test_bits_per_weight_of_a_real_model(mix):
    shapes = llama_8b()
    chosen = types(mix, Traits("llama", 32, 4), shapes)
    bits = sum(BY_NAME[chosen[name]].bits * prod(shape) for name, shape in shapes.items())
    assert round(bits / sum(map(prod, shapes.values())), 4) == pytest.approx(BPW[mix], abs=1.01e-4)


def test_type_names_and_numbers():
    assert file_type("q4_k_m") == file_type("Q4_K") == file_type("15") == "Q4_K_M"
    assert file_type("copy") == "COPY" and file_type("0") == "F32" and file_type("38") == "MXFP4_MOE"
    assert file_type("7b.gguf") is None and file_type("4") is None and file_type("Q9") is None


def test_the_70b_rule_and_eight_experts():
    shapes = {f"blk.{i}.attn_v.weight": (256, 256) for i in range(80)}
    chosen = types("Q4_K_M", Traits("llama", 80, 8), shapes | {"output.weight": (256, 256)})
    assert {chosen[name] for name in shapes} == {"Q5_K", "Q6_K"}
    assert types("Q4_K_M", Traits("llama", 80, 1), shapes)["blk.10.attn_v.weight"] == "Q4_K"
    moe = {"output.weight": (256, 8), "blk.0.attn_k.weight": (256, 64), "blk.0.attn_output.weight": (256, 256)}
    assert list(types("Q3_K_M", Traits("llama", 32, 4, 8), moe).values()) == ["Q6_K", "Q8_0", "Q5_K"]
    assert list(types("Q3_K_L", Traits("llama", 32, 4, 8), moe).values()) == ["Q6_K", "Q8_0", "Q3_K"]


def test_falcon_has_rules_of_its_own():
    shapes = {f"blk.{i}.ffn_down.weight": (256, 256) for i in range(32)} | {"blk.0.attn_output.weight": (256, 256)}
    chosen = list(types("Q4_K_M", Traits("falcon", 32), shapes | {"output.weight": (256, 256)}).values())
    assert chosen[:4] == ["Q6_K", "Q6_K", "Q5_K", "Q5_K"] and chosen[-2:] == ["Q4_K", "Q8_0"]


def test_experts_of_layers_without_a_number_are_refused():
    with pytest.raises(InputError, match="no layer number below 2"):
        types("Q4_K_M", Traits("llama", 2, 1, 4), {"blk.2.ffn_down_exps.weight": (256, 256, 4)})


def test_rows_that_do_not_divide():
    assert fallback("Q6_K", "a", 96) == "Q8_0" and fallback("Q6_K", "a", 100) == "F16"
    assert fallback("Q8_0", "a", 80) == "F16"
    with pytest.raises(InputError, match="rows of 80 values, Q1_0 needs a multiple of 128"):
        fallback("Q1_0", "a", 80)
    assert fallback("IQ2_XS", "a", 96) == "IQ4_NL" and fallback("Q4_K", "a", 256) == "Q4_K"


@pytest.mark.parametrize(
    "name", ["output_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias", "position_embd.weight",
             "blk.0.ssm_conv1d.weight"],
)  # fmt: skip
def test_tensors_that_stay_as_they_are(name):
    assert not is_quantizable(name, (256, 256))
    assert is_quantizable("blk.0.attn_q.weight", (256, 256)) and not is_quantizable("blk.0.attn_q.weight", (256, 1))
