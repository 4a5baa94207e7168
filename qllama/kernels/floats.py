"""F32, F16, BF16: a packed block is one column of 32 rows. Activations stay float32; columns are summed in order."""

from typing import Any

from qllama.kernels.layouts import LAYOUTS
from qllama.kernels.matmul import ask_ahead, finish, function, layout_kernels
from qllama.kernels.tiles import TILE_F32
from qllama.simd import (
    load_bf16,
    load_bf16x16,
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i32,
    load_u16,
    store_f32,
    store_i32,
    store_u16,
    tile_fma,
    tokens_of,
)


def float_layout(name: str, load_vector: Any, load: Any, load_raw: Any, store_raw: Any) -> None:
    """Register the kernels of one float type, given how it is read."""
    size = LAYOUTS[name].type.nbytes

    @function
    def times(zero, w, x, ld_x, out, ld_out, n_block, add):
        low, high = zero, zero
        for _ in range(n_block):
            if tokens_of(zero) > 1:
                ask_ahead(zero, w, 32 * size)
            low = tile_fma(low, load_vector(w), x, ld_x)
            high = tile_fma(high, load_vector(w + 16 * size), x, ld_x)
            w += 32 * size
            x += 4
        finish(low, high, out, ld_out, add)

    @function
    def pack_block(src, dst, r):
        store_raw(dst + r * size, load_raw(src))

    @function
    def unpack_row(w, r, out, n_block):
        for k in range(n_block):
            store_f32(out + 4 * k, load(w + (32 * k + r) * size))

    layout_kernels(name, TILE_F32, times, pack_block, unpack_row)


float_layout("F32", load_f32x16, load_f32, load_i32, store_i32)
float_layout("F16", load_f16x16, load_f16, load_u16, store_u16)
float_layout("BF16", load_bf16x16, load_bf16, load_u16, store_u16)
