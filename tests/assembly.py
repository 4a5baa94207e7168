"""What an inner loop is made of, from the text of the assembler: straight runs of instructions, and what they touch."""

import re
from collections import Counter
from dataclasses import dataclass

BRANCH = re.compile(r"(b|b\.\w+|cbz|cbnz|tbz|tbnz|ret|br)$")
REGISTERS = re.compile(r"(ldr|ldp|ldur|str|stp|stur)\b.*\b[qd]\d+.*\[sp")


@dataclass(frozen=True)
class Block:
    """Instructions without a jump among them; `loops` when the last one jumps back to the first."""

    label: str
    instructions: tuple[str, ...]
    loops: bool

    @property
    def mnemonics(self) -> Counter[str]:
        return Counter(i.split()[0] for i in self.instructions)

    @property
    def spills(self) -> list[str]:
        """Vector registers that are stored to the stack or loaded from it."""
        return [i for i in self.instructions if REGISTERS.match(i)]


def blocks(text: str) -> list[Block]:
    """The blocks of AArch64 assembly."""
    found: list[Block] = []
    label, starts, run = "", False, []

    def close() -> None:
        target = run[-1].split()[-1] if run else ""
        if run:
            found.append(Block(label, tuple(run), starts and target == label))

    for line in text.splitlines():
        if named := re.match(r"(\.?[\w.$]+):", line):
            close()
            label, starts, run = named[1], True, []
            continue
        instruction = line.partition("//")[0].strip()
        if not instruction or instruction.startswith("."):
            continue
        run.append(instruction)
        if BRANCH.match(instruction.split()[0]):
            close()
            starts, run = False, []
    close()
    return found


def inner_loops(text: str, instruction: str) -> list[Block]:
    """The innermost loops that multiply with `instruction`."""
    return [b for b in blocks(text) if b.loops and b.mnemonics[instruction]]
