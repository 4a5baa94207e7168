"""Calls the compiled encoders (`encoders/`): whole rows in, blocks out. Which type has one is not known here."""

import ctypes
from collections.abc import Callable, Iterable

import numpy as np

from qllama import jit
from qllama.quant import grids

KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}  # uint16: the bits of bfloat16
SCRATCH = 3 << 15  # bytes of memory that a call needs; `encoders/blocks.py` divides it


def prepare(type_names: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
    """Compile and load the encoders of the types and make their tables, unless that is done; see `jit.load`."""
    kernels = {name: _kernel(name) for name in type_names}
    loaded = jit.load(list(kernels.values()), progress)
    for name, kernel in kernels.items():
        if _searches(loaded[kernel]):
            grids.search(name)


def _searches(kernel: jit.Kernel) -> bool:
    """Whether it needs tables of vectors."""
    return "codes" in dict(kernel.fields)


def _kernel(type_name: str) -> str:
    return f"encode.{type_name.lower()}"


def encode(rows: np.ndarray, type_name: str, block: int, importance: np.ndarray | None, out: np.ndarray) -> float:
    """Encode contiguous `rows` (n_rows, n) of a dtype in KINDS, `block` values to a block, into contiguous `out`.

    Returns the largest magnitude among the values; infinity and NaN count as larger than all others.
    """
    kernel = jit.load([_kernel(type_name)])[_kernel(type_name)]
    scratch = np.zeros(SCRATCH, np.uint8)
    values = {
        "src": rows.ctypes.data,
        "kind": KINDS[rows.dtype],
        "importance": 0 if importance is None else importance.ctypes.data,
        "n_row": rows.shape[1] // block,
        "out": out.ctypes.data,
        "scratch": scratch.ctypes.data,
        "n_blocks": rows.size // block,
    }
    tables = grids.search(type_name)._asdict() if _searches(kernel) else {}
    values |= {name: array.ctypes.data for name, array in tables.items()}
    arguments = np.zeros(jit.FIELDS + len(kernel.fields), np.int64)
    arguments[jit.FIELDS :] = [values[name] for name, _ in kernel.fields]
    result = (ctypes.c_int64 * 2)()  # Numba's result and exception slots
    at = ctypes.addressof(result)
    jit.callable_at(kernel.address)(at, at + 8, arguments.ctypes.data, 0, 0, 0)
    return float(scratch[:64].view(np.int32).max().view(np.float32))
