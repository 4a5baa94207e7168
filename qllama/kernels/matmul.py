"""What all packed layouts share: packing, row lookup and the walk of a matmul over panels and tokens.

A layout gives three small functions and gets three kernels; see q8_0.py for the shortest example.
"""

from collections.abc import Callable
from typing import Any

from qllama.jit import function, inlined, register
from qllama.kernels.layouts import LAYOUTS, PANEL
from qllama.kernels.rows import take, take_share
from qllama.kernels.tiles import BY_HALVES
from qllama.simd import (
    LOWER,
    UPPER,
    half_of,
    load_i32,
    lower_half,
    prefetch,
    tile,
    tile_add_to,
    tile_store,
    tokens_of,
    upper_half,
)

# Weights lie in the order in which they are read, so that for one token the hardware fetches them ahead by itself; only
# at a page's end it stops. So a line here and there is asked for long before. To ask for every line holds it back, as a
# core has few requests of its own: one core of a Zen 4 reads 19.4 GB/s then, 27.5 with few or none, and a plain loop 29
# (Q4_0). With more tokens there is more to do for each line, the hardware falls behind, and every line is asked for:
# 33 GB/s instead of 19 for four tokens (both cores).
AHEAD, APART = 8192, 512

FEW_TOKENS = 16  # up to here a matmul waits for memory rather than for arithmetic


@function
def ask_ahead(like, w, nbytes):
    """Ask for the `nbytes` that will be read AHEAD bytes after w, or a few lines of them, for the tokens of a tile."""
    for i in range(0, nbytes, 64 if tokens_of(like) > 1 else APART):
        prefetch(w + AHEAD + i)


@inlined
def finish(low, high, out, ld_out, add):
    """Store the halves of a panel's results that are wanted, or add them to what is there (the residual stream)."""
    if half_of(low) != UPPER:
        if add:
            tile_add_to(low, out, ld_out)
        else:
            tile_store(low, out, ld_out)
    if half_of(low) != LOWER:
        if add:
            tile_add_to(high, out + 64, ld_out)
        else:
            tile_store(high, out + 64, ld_out)


def layout_kernels(name: str, tokens: int, times: Any, pack_block: Any, unpack_row: Any) -> None:
    """Register `pack`, `matmul` and `lookup` of the layout `name`.

    `times(zero, w, x, ld_x, out, ld_out, n_block, add)`: one panel times the tokens of a tile (`zero` gives its type);
    `pack_block(src, dst, r)`: a block of the file into row r of as many packed blocks, which are all zero before;
    `unpack_row(w, r, out, n_block)`: row r of a panel to float32.
    """
    pack_kernel(name, pack_block)
    product_kernels(name, tokens, times, unpack_row)


def product_kernels(name: str, tokens: int, times: Any, unpack_row: Any) -> None:
    """Register `matmul` and `lookup` of the layout that `name`, and perhaps other types, are packed in."""
    layout = LAYOUTS[name]
    register(f"{layout.kernels}.matmul", _matmul(times, tokens, layout.nbytes))
    register(f"{layout.kernels}.lookup", _lookup(unpack_row, layout.nbytes))


def pack_kernel(name: str, pack_block: Any) -> None:
    """Register `pack` of the type `name`."""
    layout = LAYOUTS[name]
    register(layout.pack, _pack(pack_block, layout.type.nbytes, layout.nbytes * layout.type.block // layout.block))


def _pack(pack_block: Any, file_bytes: int, packed_bytes: int) -> Callable[..., Any]:
    # Blocks of a row that are packed at a time: whole cache lines are read, and what they go to stays in the cache.
    run = max(1, 256 // file_bytes)

    def pack(job, src, dst, height, n_block, n_panel):
        p = take(job, n_panel, 1)
        while p < n_panel:
            rows = min(PANEL, height - p * PANEL)
            for first in range(0, n_block, run):
                for r in range(rows):
                    row = src + (p * PANEL + r) * n_block * file_bytes
                    for b in range(first, min(first + run, n_block)):
                        pack_block(row + b * file_bytes, dst + (p * n_block + b) * packed_bytes, r)
            p = take(job, n_panel, 1)

    return pack


def _matmul(times: Any, tokens: int, packed_bytes: int) -> Callable[..., Any]:
    @function
    def panels(like, w, x, out, n_block, ld_x, ld_out, add, first, last):
        """Panels first..last times the tokens of a tile (of the type of `like`)."""
        for p in range(first, last):
            at = w + p * n_block * packed_bytes
            times(like, at, x, ld_x, out + p * PANEL * 4, ld_out, n_block, add)

    @function
    def halves(like, w, x, out, n_block, ld_x, ld_out, add, first, last):
        """The same, one half of a panel after the other: half the registers."""
        for p in range(first, last):
            at = w + p * n_block * packed_bytes
            times(lower_half(like), at, x, ld_x, out + p * PANEL * 4, ld_out, n_block, add)
            times(upper_half(like), at, x, ld_x, out + p * PANEL * 4, ld_out, n_block, add)

    of_many = halves if BY_HALVES else panels

    @function
    def next_panels(job, n_rows, n_panel, grain):
        """(first, last): few tokens take long runs, read at the speed of memory, many what a pause can wait for."""
        if n_rows <= FEW_TOKENS:
            return take_share(job, n_panel)
        first = take(job, n_panel, grain)
        return first, min(first + grain, n_panel)

    def matmul(job, n_rows, w, x, out, n_block, n_panel, ld_x, ld_out, add, grain):
        """out[t] (+)= W x[t]. `grain` panels at a time, which stay in the cache while the tokens go by."""
        first, last = next_panels(job, n_rows, n_panel, grain)
        while first < n_panel:
            for p in range(first, last, grain):
                end = min(p + grain, last)
                t = 0
                while t + tokens <= n_rows:
                    of_many(tile(tokens), w, x + t * ld_x, out + t * ld_out, n_block, ld_x, ld_out, add, p, end)
                    t += tokens
                if n_rows - t > 1:  # into the rows behind, which the plan's buffers have and nobody reads
                    of_many(tile(tokens), w, x + t * ld_x, out + t * ld_out, n_block, ld_x, ld_out, add, p, end)
                elif n_rows - t == 1:
                    panels(tile(1), w, x + t * ld_x, out + t * ld_out, n_block, ld_x, ld_out, add, p, end)
            first, last = next_panels(job, n_rows, n_panel, grain)

    return matmul


def _lookup(unpack_row: Any, packed_bytes: int) -> Callable[..., Any]:
    def lookup(job, n_rows, tokens, w, out, n_block, ld_out):
        """out[t] = row tokens[t] of W as float32. The ids were checked before the step."""
        t = take(job, n_rows, 1)
        while t < n_rows:
            row = load_i32(tokens + 4 * t)
            unpack_row(w + row // PANEL * n_block * packed_bytes, row % PANEL, out + t * ld_out, n_block)
            t = take(job, n_rows, 1)

    return lookup


__all__ = ["ask_ahead", "finish", "function", "layout_kernels", "pack_kernel", "product_kernels"]
