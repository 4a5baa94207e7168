"""Runs one kernel on NumPy arrays, the way the engine does: loaded by jit, bound by a plan, executed by a team.

Arrays from `memory` have guards on both sides, and a kernel that wrote there fails its test.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qllama import jit
from qllama.kernels.layouts import BLOCK_Q8, LAYOUTS, MAX_TILE, attention_scratch, padded
from qllama.kv_cache import KVCache
from qllama.plan import GUARD, TOKENS, Argument, BoundPlan, Plan
from qllama.team import Team, aligned

GUARD_BYTE = 0xA5


@cache
def team(n_threads: int) -> Team:
    """One team per size for all tests; its workers sleep between them."""
    return Team(n_threads)


def run(
    kernel: str, rows: str = TOKENS, n_threads: int = 1, step: dict[str, int] | None = None, **args: Argument
) -> None:
    """Execute one operation; `step` has the values that change from step to step (n_tokens, n_past, ...)."""
    plan = Plan()
    plan.add(kernel, rows=rows, **args)
    bound = BoundPlan(plan, 0, jit.load(plan.kernels()))
    bound.set_step(**(step or {}))
    team(n_threads).run(bound.tape, bound.arguments, bound.step)
    for name, value in args.items():
        if isinstance(value, np.ndarray):
            assert _guards_intact(value), f"{kernel} wrote beyond `{name}`"


def memory(*shape: int, dtype: type | np.dtype = np.uint8) -> np.ndarray:
    """Zeros between two guards, the first on a multiple of 64 bytes."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = aligned(nbytes + 2 * GUARD)
    raw[:] = GUARD_BYTE
    out = raw[GUARD : GUARD + nbytes]
    out[:] = 0
    return out.view(dtype).reshape(shape)


def _guards_intact(array: np.ndarray) -> bool:
    """True as well for an array that `memory` did not make."""
    owner = array.base
    if owner is None or owner.dtype != np.uint8:
        return True
    start = array.ctypes.data - owner.ctypes.data
    guards = owner[start - GUARD : start], owner[start + array.nbytes : start + array.nbytes + GUARD]
    return start < GUARD or all((g == GUARD_BYTE).all() for g in guards)


def as_rows(x: np.ndarray) -> np.ndarray:
    """(n_rows, n) as a buffer of the plan: (n_rows, n padded to panels) float32, zeros behind."""
    out = memory(len(x), padded(x.shape[1]), dtype=np.float32)
    out[:, : x.shape[1]] = x
    return out


def ld(buffer: np.ndarray) -> int:
    """Bytes from row to row."""
    return buffer.strides[0]


def q8_rows(n_rows: int, n: int) -> np.ndarray:
    """An empty buffer for n_rows of n quantized activations."""
    return memory(n_rows, n // 32 * BLOCK_Q8)


def quantize(x: np.ndarray, n_threads: int = 1) -> np.ndarray:
    """(n_tokens, n) float32 -> (n_tokens, bytes of a row) uint8."""
    rows, out = as_rows(x), q8_rows(*x.shape)
    run("ffn.quantize", n_threads=n_threads, step={"n_tokens": len(x)}, x=rows, out=out, n=x.shape[1],
        ld_x=ld(rows), ld_out=ld(out))  # fmt: skip
    return out


def activations(type_name: str, x: np.ndarray) -> np.ndarray:
    """x in the form that matmuls of `type_name` read."""
    return quantize(x) if LAYOUTS[type_name].activation == "q8" else as_rows(x)


def pack(type_name: str, blocks: np.ndarray, n_threads: int = 1) -> np.ndarray:
    """(n_out, bytes of a row) uint8 as stored -> the packed matrix."""
    layout, n_block = LAYOUTS[type_name], blocks.shape[1] // LAYOUTS[type_name].type.nbytes
    n_out, n_in = len(blocks), n_block * layout.type.block
    src, dst = memory(*blocks.shape), memory(layout.size(n_out, n_in))
    src[:] = blocks
    run(layout.pack, n_threads=n_threads, src=src, dst=dst, height=n_out, n_block=n_block,
        n_panel=layout.panels(n_out))  # fmt: skip
    return dst


def matmul(
    type_name: str, packed: np.ndarray, n_out: int, x: np.ndarray, add_to: np.ndarray | None = None, n_threads: int = 1,
    grain: int = 1,
) -> np.ndarray:  # fmt: skip
    """W x of (n_tokens, n_in) float32, or add_to + W x: (n_tokens, n_out). The padding behind stays zero."""
    layout, inputs = LAYOUTS[type_name], activations(type_name, with_spare_rows(x))
    out = as_rows(with_spare_rows(np.full((len(x), n_out), np.nan) if add_to is None else add_to))
    run(
        f"{layout.kernels}.matmul", n_threads=n_threads, step={"n_tokens": len(x)}, w=packed, x=inputs, out=out,
        n_block=x.shape[1] // layout.block, n_panel=layout.panels(n_out), ld_x=ld(inputs), ld_out=ld(out),
        add=int(add_to is not None), grain=grain,
    )  # fmt: skip
    out = out[: len(x)]
    assert not out[:, n_out:].any()
    return out[:, :n_out]


def with_spare_rows(x: np.ndarray) -> np.ndarray:
    """x and the rows behind that the last tile of a matmul may use."""
    return np.vstack([x, np.full((MAX_TILE - 2, x.shape[1]), 7, x.dtype)])


def lookup(type_name: str, packed: np.ndarray, n_in: int, tokens: list[int]) -> np.ndarray:
    """Rows `tokens` of W: (n_tokens, n_in) float32."""
    layout, ids, out = (
        LAYOUTS[type_name],
        np.array(tokens, np.int32),
        memory(len(tokens), padded(n_in), dtype=np.float32),
    )
    run(f"{layout.kernels}.lookup", step={"n_tokens": len(tokens), "tokens": ids.ctypes.data}, w=packed, out=out,
        n_block=n_in // layout.block, ld_out=ld(out))  # fmt: skip
    return out[:, :n_in]


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.dtype == expected.dtype == np.float32 and got.tobytes() == expected.tobytes()


@dataclass(frozen=True)
class Seen:
    """What a token sees: see `attention.first_seen`, and the arguments of the same names."""

    window: int = 0
    chunked: bool = False
    cap: float = 0.0
    sinks: np.ndarray | None = None  # (n_head,) float32


class Attention:
    """The attention kernels over a cache of two layers, of which the second is used.

    What was never stored is NaN, so that a kernel that looks at it fails. Values are head_dim_v wide; or they are the
    keys' first channels, when `latent`.
    """

    def __init__(
        self, types: tuple[str, str], n_head_kv: int, group: int, head_dim: int, n_ctx: int, seen: Seen | None = None,
        head_dim_v: int | None = None, latent: bool = False,
    ) -> None:  # fmt: skip
        self.cache = KVCache(2, n_head_kv * group, n_head_kv, head_dim, n_ctx, *types, head_dim_v, latent)
        self.n_head_kv, self.group, self.head_dim, self.seen = n_head_kv, group, head_dim, seen
        self.cache.reserve(n_ctx)
        for block in self.cache._blocks:
            block[:] = 0xFF  # a NaN in every float type
        self.where: dict[str, Any] = {
            "k_at": self.cache.keys_at(1), "v_at": self.cache.values_at(1), "head_dim": head_dim,
            "n_head_kv": n_head_kv, **self._values(),
        }  # fmt: skip

    def _values(self) -> dict[str, Any]:
        return {"head_dim_v": self.cache.head_dim_v, "width": self.cache.width}

    def _scratch(self, n_threads: int) -> dict[str, Any]:
        nbytes = attention_scratch(self.group, self.head_dim, self.cache.width)
        scratch = memory(n_threads, -(-nbytes // 64) * 64)
        scratch.view(np.float32)[:] = np.nan
        return {"scratch": scratch, "ld_scratch": ld(scratch)}

    def _step(self, n_tokens: int, n_past: int) -> dict[str, int]:
        return {"n_tokens": n_tokens, "n_past": n_past, "kv_blocks": self.cache.table.ctypes.data}

    def store(self, k: np.ndarray, v: np.ndarray, n_past: int = 0, n_threads: int = 1) -> None:
        """k, v (n_tokens, n_head_kv, head_dim) float32, to positions from n_past on."""
        rows_k, rows_v = as_rows(k.reshape(len(k), -1)), as_rows(v.reshape(len(v), -1))
        run(f"kv.store_{self.cache.types}", n_threads=n_threads, step=self._step(len(k), n_past), k=rows_k,
            v=rows_v, ld_k=ld(rows_k), ld_v=ld(rows_v), **self.where, **self._scratch(n_threads))  # fmt: skip

    def attend(self, q: np.ndarray, n_past: int, n_threads: int = 1) -> np.ndarray:
        """q (n_tokens, n_head, head_dim) at positions from n_past on -> (n_tokens, n_head, head_dim_v)."""
        width = q.shape[1] * self.cache.head_dim_v
        rows, out = as_rows(q.reshape(len(q), -1)), as_rows(np.zeros((len(q), width)))
        step, common = self._step(len(q), n_past), {"group": self.group, "out": out, "ld_out": ld(out)}
        common |= {"parts_at": self.cache.parts_at, "ld_part": self.cache.part_bytes, **self._scratch(n_threads)}
        seen = self.seen or Seen()
        sinks = 0 if seen.sinks is None else seen.sinks
        limits: dict[str, Any] = {"window": seen.window, "chunked": int(seen.chunked), "sinks": sinks}
        kind, more = (
            (f"windowed_{self.cache.types}", limits | {"cap": seen.cap}) if self.seen else (self.cache.types, {})
        )
        run(
            f"attention.{kind}", n_threads=n_threads, step=step, q=rows, scale=1 / math.sqrt(self.head_dim),
            ld_q=ld(rows), **common, **self.where, **more,
        )  # fmt: skip
        run(
            "attention.merge", n_threads=n_threads, step=step, n_head=q.shape[1], **self._values(), **common, **limits,
        )  # fmt: skip
        return out[:, :width].reshape(*q.shape[:2], -1)
