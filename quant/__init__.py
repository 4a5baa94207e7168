"""Block formats on disk: decode and encode, arrays in, blocks out. Multiplying is the kernels' business.

A format is one file with its block's layout, `decode` and, where it can be written, `encode`; and one line in FORMATS.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from qllama import cpu
from qllama.errors import InputError
from qllama.ggml import BY_NAME
from qllama.quant import (
    floats,
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    native,
    nvfp4,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    q8_1,
    q8_k,
    tq1_0,
    tq2_0,
)


class Format(NamedTuple):
    """How the blocks of one tensor type are read and written. Trusting: the functions below check first."""

    block: np.dtype
    """One block as stored, little-endian."""
    decode: Callable[[np.ndarray], np.ndarray]
    """(n_blocks,) of `block` -> (n_blocks, block length) float32."""
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    """(n_blocks, block length) float32 -> (n_blocks,) of `block`; overflow decodes to NaN or infinity."""
    compiled: bool = False
    """Encoded by a kernel instead (`encoders/`), which heeds importance."""


FORMATS: dict[str, Format] = {
    "F32": Format(floats.BLOCK_F32, floats.decode_f32, floats.encode_f32),
    "F16": Format(floats.BLOCK_F16, floats.decode_f16, floats.encode_f16),
    "BF16": Format(floats.BLOCK_BF16, floats.decode_bf16, floats.encode_bf16),
    "Q4_0": Format(q4_0.BLOCK_Q4_0, q4_0.decode, compiled=True),
    "Q4_1": Format(q4_1.BLOCK_Q4_1, q4_1.decode, compiled=True),
    "Q5_0": Format(q5_0.BLOCK_Q5_0, q5_0.decode, compiled=True),
    "Q5_1": Format(q5_1.BLOCK_Q5_1, q5_1.decode, compiled=True),
    "Q8_0": Format(q8_0.BLOCK_Q8_0, q8_0.decode, compiled=True),
    "Q8_1": Format(q8_1.BLOCK_Q8_1, q8_1.decode),
    "Q1_0": Format(q1_0.BLOCK_Q1_0, q1_0.decode, q1_0.encode),
    "Q2_0": Format(q2_0.BLOCK_Q2_0, q2_0.decode, q2_0.encode),
    "Q2_K": Format(q2_k.BLOCK_Q2_K, q2_k.decode, compiled=True),
    "Q3_K": Format(q3_k.BLOCK_Q3_K, q3_k.decode, compiled=True),
    "Q4_K": Format(q4_k.BLOCK_Q4_K, q4_k.decode, compiled=True),
    "Q5_K": Format(q5_k.BLOCK_Q5_K, q5_k.decode, compiled=True),
    "Q6_K": Format(q6_k.BLOCK_Q6_K, q6_k.decode, compiled=True),
    "Q8_K": Format(q8_k.BLOCK_Q8_K, q8_k.decode),
    "IQ1_S": Format(iq1_s.BLOCK_IQ1_S, iq1_s.decode, compiled=True),
    "IQ1_M": Format(iq1_m.BLOCK_IQ1_M, iq1_m.decode, compiled=True),
    "IQ2_XXS": Format(iq2_xxs.BLOCK_IQ2_XXS, iq2_xxs.decode, compiled=True),
    "IQ2_XS": Format(iq2_xs.BLOCK_IQ2_XS, iq2_xs.decode, compiled=True),
    "IQ2_S": Format(iq2_s.BLOCK_IQ2_S, iq2_s.decode, compiled=True),
    "IQ3_XXS": Format(iq3_xxs.BLOCK_IQ3_XXS, iq3_xxs.decode, compiled=True),
    "IQ3_S": Format(iq3_s.BLOCK_IQ3_S, iq3_s.decode, compiled=True),
    "IQ4_NL": Format(iq4_nl.BLOCK_IQ4_NL, iq4_nl.decode, compiled=True),
    "IQ4_XS": Format(iq4_xs.BLOCK_IQ4_XS, iq4_xs.decode, compiled=True),
    "TQ1_0": Format(tq1_0.BLOCK_TQ1_0, tq1_0.decode, tq1_0.encode),
    "TQ2_0": Format(tq2_0.BLOCK_TQ2_0, tq2_0.decode, tq2_0.encode),
    "MXFP4": Format(mxfp4.BLOCK_MXFP4, mxfp4.decode, mxfp4.encode),
    "NVFP4": Format(nvfp4.BLOCK_NVFP4, nvfp4.decode, nvfp4.encode),
}

# Without an importance matrix these would be of no use; llama.cpp refuses too.
NEEDS_IMPORTANCE = ("IQ1_S", "IQ2_XXS", "IQ2_XS")

PIECE = 1 << 18  # values encoded at a time: the temporaries stay in cache, and small beside a large tensor
LARGEST = np.float32(2.0**32)  # above what any 16-bit scale can stand for
MOST = {"NVFP4": np.float32(448 * 6)}  # of the formats whose largest scale is not infinite


def dequantize(blocks: np.ndarray | bytes, type_name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The float32 values of `blocks` (uint8, any shape), flat or in `shape`.

    Raises InputError for a type that is not implemented, a broken block, or values that do not fill `shape`.
    """
    form = _format(type_name)
    raw = np.frombuffer(blocks, np.uint8) if isinstance(blocks, bytes) else np.ascontiguousarray(blocks)
    if raw.dtype != np.uint8:
        raise InputError(f"{type_name}: blocks of dtype {raw.dtype}, needed uint8")
    if raw.size % form.block.itemsize:
        raise InputError(f"{type_name}: {raw.size} bytes, needed a multiple of {form.block.itemsize}")
    with np.errstate(all="ignore"):  # a foreign file may hold an infinite scale
        values = form.decode(raw.reshape(-1).view(form.block)).reshape(-1)
    if shape is None:
        return values
    if math.prod(shape) != values.size:
        raise InputError(f"{type_name}: {values.size} values, needed shape {shape}")
    return values.reshape(shape)


def quantize(
    array: np.ndarray,
    type_name: str,
    importance: np.ndarray | None = None,
    *,
    n_threads: int | None = None,
    out: np.ndarray | None = None,
    first_row: int = 0,
) -> np.ndarray:
    """The blocks of `array` (rows, n), as (rows, bytes of a row) uint8: the same for any number of threads.

    `array` is float32, float16, or the bits of bfloat16 as uint16. `importance` (n,) weighs the squared errors of the
    columns, in the formats whose encoder has a choice; see NEEDS_IMPORTANCE. `out` (rows, bytes of a row) uint8 takes
    the blocks when given, and is what is returned. `n_threads` is the processors of this process by default;
    `first_row` is added to the row that an error names.
    Raises InputError for a type that is not implemented or only decoded, for rows that are not whole blocks, for
    importance that does not fit, and, naming the row, for values that are not finite or too large for the format.
    """
    form = _format(type_name)
    if form.encode is None and not form.compiled:
        able = ", ".join(name for name, f in FORMATS.items() if f.encode or f.compiled)
        raise InputError(f"quantizing to {type_name} is not implemented; implemented: {able}")
    array = _rows(array, type_name)
    n_rows, n = array.shape
    importance = _importance(importance, type_name, n)
    out = _room(out, type_name, n_rows, n)
    if form.compiled:
        native.prepare([type_name])
    step = max(1, PIECE // n)

    def encode(start: int) -> None:
        rows, room = np.ascontiguousarray(array[start : start + step]), out[start : start + step]
        if form.compiled:
            _encode_compiled(rows, type_name, importance, room, first_row + start)
        else:
            _encode(rows, type_name, room, first_row + start)

    in_threads(encode, range(0, n_rows, step), n_threads or cpu.default_threads())
    return out


def prepare(type_names: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
    """Compile what `quantize` to these types needs, once; `progress(done, total)` is called meanwhile."""
    native.prepare([name for name in type_names if _format(name).compiled], progress)


def in_threads(work: Callable[[int], None], starts: range, n_threads: int) -> None:
    """`work(start)` for each of `starts`, the first error of which is raised."""
    if len(starts) < 2 or n_threads == 1:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(min(n_threads, len(starts))) as pool:
        try:
            list(pool.map(work, starts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _encode(rows: np.ndarray, type_name: str, out: np.ndarray, first: int) -> None:
    """Encode a piece of the rows with NumPy; `first` is the number of its first row."""
    form = FORMATS[type_name]
    assert form.encode is not None
    values = widen(rows)
    _check_finite(values, first, f"{type_name}: NaN or infinity")
    with np.errstate(all="ignore"):  # what overflows or divides by zero is found in the blocks it leaves
        blocks = form.encode(values.reshape(-1, BY_NAME[type_name].block))
        decoded = form.decode(blocks)
        if type_name in MOST:
            decoded = np.where(np.abs(values) > MOST[type_name], np.inf, decoded.reshape(values.shape))
    _check_finite(decoded.reshape(values.shape), first, f"a value too large for {type_name}")
    out[:] = blocks.view(np.uint8).reshape(out.shape)


def _encode_compiled(
    rows: np.ndarray, type_name: str, importance: np.ndarray | None, out: np.ndarray, first: int
) -> None:
    """Encode a piece of the rows with a kernel. Values so large that its sums could overflow fit no format."""
    block = FORMATS[type_name].block
    largest = native.encode(rows, type_name, BY_NAME[type_name].block, importance, out)
    if not largest <= LARGEST:
        values = widen(rows)
        _check_finite(values, first, f"{type_name}: NaN or infinity")
        _check_finite(np.where(np.abs(values) > LARGEST, np.inf, values), first, f"a value too large for {type_name}")
    assert block.names is not None
    for name in block.names:
        if block[name] == np.float16:  # a scale
            scales = out.view(block)[name]
            _check_finite(scales.reshape(len(rows), -1), first, f"a value too large for {type_name}")


def widen(array: np.ndarray) -> np.ndarray:
    """float32 of float16, of the bits of bfloat16 (uint16), or of float32; contiguous."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


def _format(type_name: str) -> Format:
    if type_name in FORMATS:
        return FORMATS[type_name]
    what = "not implemented" if type_name in BY_NAME else "unknown"
    raise InputError(f"tensor type {type_name} is {what}; implemented: {', '.join(FORMATS)}")


def _rows(array: np.ndarray, type_name: str) -> np.ndarray:
    if array.dtype not in native.KINDS or array.ndim != 2:
        wanted = "float32, float16 or bfloat16 (as uint16)"
        raise InputError(f"{type_name}: {array.ndim}-dimensional {array.dtype}, needed rows of {wanted}")
    n, length = array.shape[1], BY_NAME[type_name].block
    if n == 0 or n % length:
        raise InputError(f"{type_name}: rows of {n} values, needed a multiple of {length}")
    return array


def _importance(importance: np.ndarray | None, type_name: str, n: int) -> np.ndarray | None:
    if importance is None:
        if type_name in NEEDS_IMPORTANCE:
            raise InputError(f"quantizing to {type_name} needs an importance matrix")
        return None
    importance = np.ascontiguousarray(importance, np.float32)
    if importance.shape != (n,):
        raise InputError(f"{type_name}: importance of shape {importance.shape}, needed ({n},)")
    bad = np.flatnonzero(~((importance >= 0) & np.isfinite(importance)))
    if bad.size:
        raise InputError(f"{type_name}: importance {importance[bad[0]]} of column {bad[0]}, needed 0 or more")
    return importance


def _room(out: np.ndarray | None, type_name: str, n_rows: int, n: int) -> np.ndarray:
    """`out`, checked, or a new array for the blocks of (n_rows, n) values."""
    shape = (n_rows, n // BY_NAME[type_name].block * BY_NAME[type_name].nbytes)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise InputError(f"{type_name}: out is {out.dtype} {out.shape}, needed contiguous uint8 {shape}")
    return out


def _check_finite(rows: np.ndarray, start: int, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise InputError(f"{what} in row {start + bad[0]}")
