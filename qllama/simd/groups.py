"""For weights with an integer scale for each 16 columns: the scale belongs to the dot product, and is exact."""

from llvmlite import ir
from numba import types

from qllama.simd.build import I64, addr, load_splat, offset, pointer, primitive, splat, tile_primitive
from qllama.simd.generic import F32x16, I32x16
from qllama.simd.target import target
from qllama.simd.types import LANE, f32x16, i8x64, i32x16, vector
from qllama.simd.vocabulary import array_of, four_activations, tile_f32, tile_i32


@primitive(i32x16, addr)
def load_i8x16_i32(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """16 signed bytes at `a` as int32."""
    return b.sext(b.load(pointer(b, a, vector("i8", 16)), align=1), I32x16)


@primitive(i32x16, i32x16, types.int32, types.int32)
def field_i32(b: ir.IRBuilder, v: ir.Value, n: ir.Value, mask: ir.Value) -> ir.Value:
    """Each lane shifted right by n, of that the bits in `mask`."""
    return b.and_(b.lshr(v, splat(b, n, 16)), splat(b, mask, 16))


@tile_primitive
def tile_shr(b, t, x: tile_i32, n: types.int32) -> tile_i32:
    """x >> n, keeping the sign."""
    return array_of(b, [b.ashr(b.extract_value(x, i), splat(b, n, 16)) for i in range(t)])


@tile_primitive
def tile_dot_16(b, t, acc: tile_i32, start: tile_i32, w0: i8x64, w1: i8x64, w2: i8x64, w3: i8x64, scale: i32x16,
                base: addr, stride: addr) -> tile_i32:  # fmt: skip
    """acc + scale * (start + w . activations) for 16 rows x 16 columns.

    Weights are 0..15; what is in the brackets, any part of it, and the scale fit 16 bits.
    """
    out = []
    for i in range(t):
        total = target.short(b, b.extract_value(start, i))
        for k, w in enumerate((w0, w1, w2, w3)):
            total = target.dot_short(b, total, w, four_activations(b, b.add(base, ir.Constant(I64, 4 * k)), stride, i))
        out.append(target.mad_short(b, b.extract_value(acc, i), total, scale))
    return array_of(b, out)


@tile_primitive
def tile_mad_short(b, t, acc: tile_i32, x: tile_i32, v: i32x16) -> tile_i32:
    """acc + x * v, where x and v fit 16 bits."""
    return array_of(
        b,
        [target.mad_short(b, b.extract_value(acc, i), target.short(b, b.extract_value(x, i)), v) for i in range(t)],
    )


@tile_primitive
def tile_add_dots(b, t, total: tile_f32, acc: tile_i32, base: addr, stride: addr) -> tile_f32:
    """total + acc * the token's scale."""
    out = []
    for i in range(t):
        scale = load_splat(b, offset(b, base, stride, i), LANE["f32"], 16)
        out.append(target.fma(b, b.sitofp(b.extract_value(acc, i), F32x16), scale, b.extract_value(total, i)))
    return array_of(b, out)


@tile_primitive
def tile_add_product(b, t, total: tile_f32, x: tile_f32, v: f32x16) -> tile_f32:
    """total + x * v."""
    return array_of(b, [target.fma(b, b.extract_value(x, i), v, b.extract_value(total, i)) for i in range(t)])
