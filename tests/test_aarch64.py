"""What LLVM makes of the kernels for ARM, looked at on any machine: the instructions meant, registers that suffice."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from assembly import Block, inner_loops

from qllama.kernels.layouts import LAYOUTS

# What multiplies 8-bit integers. `smull` is followed by additions of pairs.
DOT = {"neon": "smull", "neon-dotprod": "sdot"}
QUANTIZED = sorted({layout.kernels for layout in LAYOUTS.values() if layout.activation == "q8"})
FLOATS = sorted({layout.kernels for layout in LAYOUTS.values() if layout.activation == "f32"})

# RELOADS: of what does not change in a loop. SPILLING: some layouts unpack 32 columns at once, four vectors that are
# scaled together, for which 32 registers are too few (Q6_K: two sums); so many of the instructions at most.
RELOADS = 4
SPILLING = {"q2_k": 0.15, "q3_k": 0.15, "q6_k": 0.07, "book8": 0.2, "book16": 0.2}


@cache
def compiled(isa: str) -> dict[str, str]:
    """Kernel -> assembly."""
    names = [f"{kernels}.matmul" for kernels in QUANTIZED + FLOATS] + ["tape.work", "tape.call"]
    command = [sys.executable, str(Path(__file__).with_name("cross_compile.py")), isa, *names]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def loops(isa: str, kernels: str, instruction: str) -> list[Block]:
    found = inner_loops(compiled(isa)[f"{kernels}.matmul"], instruction)
    assert found
    return found


@pytest.mark.parametrize("isa", DOT)
@pytest.mark.parametrize("kernels", QUANTIZED)
def test_matmuls_of_integers_use_the_dot_product_of_the_isa(isa, kernels):
    """A tile's loop has a multiplication for each of its vectors; nothing is multiplied in another way."""
    for loop in loops(isa, kernels, DOT[isa]):
        assert loop.mnemonics[DOT[isa]] >= 8
        assert not {"madd", "smaddl", "umull", "pmul"} & set(loop.mnemonics)


@pytest.mark.parametrize("isa", DOT)
@pytest.mark.parametrize("kernels", FLOATS)
def test_matmuls_of_floats_use_fused_multiplications(isa, kernels):
    for loop in loops(isa, kernels, "fmla"):
        assert loop.mnemonics["fmla"] >= 8 and not loop.mnemonics["fmul"] and not loop.mnemonics["fadd"]
        assert kernels != "f16" or loop.mnemonics["fcvtl"] == loop.mnemonics["fcvtl2"] >= 2
        assert not loop.spills


@pytest.mark.parametrize("kernels", QUANTIZED)
def test_registers_suffice_in_inner_loops(kernels):
    for loop in loops("neon-dotprod", kernels, "sdot"):
        if kernels in SPILLING:
            assert len(loop.spills) <= SPILLING[kernels] * len(loop.instructions), loop
        else:
            assert len(loop.spills) <= RELOADS and not any(i.startswith("st") for i in loop.spills), loop


@pytest.mark.parametrize("isa", DOT)
def test_what_an_isa_lacks_is_not_compiled_for(isa):
    text = "".join(compiled(isa).values())
    lacking = {"neon": r"[us]+dot|[us]+mmla|ld(add|set|clr)a?l?|swpa?l?|casa?l?", "neon-dotprod": r"usdot|[us]+mmla"}
    assert not re.search(rf"\t({lacking[isa]})\t", text)
    assert not re.search(r"\bz\d+\.|\bp\d+/", text)  # SVE, which no ISA asks for


def test_nothing_is_left_to_a_library_but_what_the_system_provides():
    """Half precision, above all, which LLVM converts by a call where it sees no instruction for it."""
    for isa in DOT:
        called = set(re.findall(r"\tbl\t(\S+)", "".join(compiled(isa).values())))
        assert {name for name in called if not name.startswith("_ZN6qllama")} <= {"sched_yield", "clock_gettime"}


def test_threads_hand_over_by_instructions_that_order():
    """No barrier of its own, no unordered atomic: acquiring loads, releasing stores, both in read-modify-writes."""
    with_lse, without = compiled("neon-dotprod"), compiled("neon")
    atomics = r"\t(ldar|stlr|swp\w*|ldadd\w*|ldset\w*|ld\w*xr|st\w*xr|dmb)\t"
    assert set(re.findall(atomics, with_lse["tape.work"])) == {"ldar", "stlr", "swpal", "ldaddal", "ldsetal"}
    assert set(re.findall(atomics, with_lse["tape.call"])) == {"swpal", "ldsetal"}
    assert set(re.findall(atomics, without["tape.work"])) == {"ldar", "stlr", "ldaxr", "stlxr"}
