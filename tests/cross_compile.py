"""Kernels for another machine: `cross_compile.py ISA KERNEL...` prints {kernel: assembly} as JSON, and
`cross_compile.py ISA --cache FOLDER I N` leaves part I of N of all kernels in FOLDER, as that machine's cache has them.

Numba compiles for the machine it runs on. Here its code generator is given LLVM's target machine of the ISA, and
nothing that it makes is loaded. A process of its own, for one process has one ISA.
"""

import importlib
import itertools
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding

from qllama import cpu, jit, kernels

TRIPLES = {"aarch64": "aarch64-unknown-linux-gnu"}


def aim_at(isa: cpu.ISA) -> Any:
    """Make this process one that compiles for `isa`, which this CPU need not have. Returns LLVM's target machine."""
    cpu.isa = lambda: isa  # type: ignore[assignment]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLES[isa.machine])
    machine = target.create_target_machine(cpu=isa.cpu, features=isa.features, opt=3, codemodel="jitdefault", jit=True)
    from numba.core.registry import cpu_target

    codegen = cpu_target.target_context.codegen()  # its own helpers have been compiled, and loaded, by now
    codegen._tm = machine
    codegen._data_layout = str(machine.target_data)
    codegen._add_module = lambda module: None
    empty = codegen._create_empty_module

    def create_empty_module(name: str) -> Any:
        module = empty(name)
        module.triple, module.data_layout = TRIPLES[isa.machine], codegen._data_layout
        return module

    codegen._create_empty_module = create_empty_module
    codegen.set_env = lambda *_: None
    addresses = itertools.count(1)  # never called, but functions are told apart by them

    def get_pointer_to_function(self: Any, _: str) -> int:
        self._ensure_finalized()
        return next(addresses)

    codegen._library_class.get_pointer_to_function = get_pointer_to_function
    return machine


def assembly(names: list[str], isa: cpu.ISA) -> dict[str, str]:
    machine = aim_at(isa)
    texts = {}

    def keep(library: Any, entry: str, name: str) -> bytes:
        texts[name] = machine.emit_assembly(jit._entry_alone(library, entry, name))
        return b""

    jit._object = keep
    for name in names:
        jit.compile_kernel(name)
    return texts


def all_kernels() -> list[str]:
    """Only after `aim_at`, for it imports what has the instructions of the ISA."""
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"qllama.kernels.{module.name}")
    return sorted(jit._kernels)


def fill_cache(isa: cpu.ISA, folder: Path, i: int, n: int) -> None:
    """Put part i of n of all kernels into `folder`, as a machine of that kind would."""
    aim_at(isa)
    for name in all_kernels()[i::n]:
        (folder / f"{name}.o").write_bytes(jit.compile_kernel(name).pack())


if __name__ == "__main__":
    wanted = next(i for i in cpu.ISAS if i.name == sys.argv[1])
    if sys.argv[2] == "--cache":
        fill_cache(wanted, Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        print(json.dumps(assembly(sys.argv[2:], wanted)))
