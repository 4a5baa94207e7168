"""The machine-dependent primitives in plain LLVM IR: correct on every machine, and the meaning of all the others.

A target is a class of static functions over the IR builder. `dot_small` takes weights 0..127, `dot_8` weights that
were biased by `BIAS8` when they were packed; activations are -127..127 in both.
"""

from llvmlite import ir

from qllama.simd.build import const, load_splat, splat
from qllama.simd.types import LANE, vector

I32x16, F32x16 = vector("i32", 16), vector("f32", 16)


class Generic:
    """Plain IR. Uses only operations that the x86-64 baseline has as instructions."""

    BIAS8 = 0  # 8-bit weights are stored as w + BIAS8

    @staticmethod
    def load_four(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """The four bytes at `address`, 16 times over."""
        return b.bitcast(load_splat(b, address, LANE["i32"], 16), vector("i8", 64))

    @staticmethod
    def dot_8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        """acc[i] += sum of w[4i+j] * x[4i+j], j < 4. Pairs fit 16 bits: 2 * 128 * 127 < 2**15."""
        i16, eight, sixteen = vector("i16", 32), const("i16", 32, 8), const("i32", 16, 16)
        w, x = b.bitcast(w, i16), b.bitcast(x, i16)
        even = b.mul(b.ashr(b.shl(w, eight), eight), b.ashr(b.shl(x, eight), eight))
        odd = b.mul(b.ashr(w, eight), b.ashr(x, eight))
        pairs = b.bitcast(b.add(even, odd), I32x16)
        return b.add(acc, b.add(b.ashr(b.shl(pairs, sixteen), sixteen), b.ashr(pairs, sixteen)))

    dot_small = dot_8

    @staticmethod
    def short(_b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """An int32 that fits 16 bits, as `dot_short` and `mad_short` take it."""
        return x

    dot_short = dot_small  # weights 0..15, at most four times, sums that fit 16 bits

    @staticmethod
    def mad_short(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        """acc + x * y, for x from the two above and an int32 y that fits 16 bits."""
        return b.add(acc, b.mul(x, y))

    @staticmethod
    def shift_bytes(b: ir.IRBuilder, v: ir.Value, n: ir.Value) -> ir.Value:
        """64 bytes shifted right by n, in lanes of 16 bits: what crossed into a byte is left for a mask to drop."""
        wide = b.lshr(b.bitcast(v, vector("i16", 32)), splat(b, b.zext(n, LANE["i16"]), 32))
        return b.bitcast(wide, v.type)

    @staticmethod
    def lookup16(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
        """table[index[i]] for 64 indices 0..15: each bit of the index halves what is left of the table.

        `table` is 16 bytes four times over, for the machines that look up within 128 bits.
        """
        zero = const("i8", 64, 0)
        left = [splat(b, b.extract_element(table, ir.Constant(LANE["i32"], k)), 64) for k in range(16)]
        for bit in (1, 2, 4, 8):
            odd = b.icmp_signed("!=", b.and_(index, const("i8", 64, bit)), zero)
            left = [b.select(odd, y, x) for x, y in zip(left[::2], left[1::2], strict=True)]
        return left[0]

    @staticmethod
    def i8_to_f32(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
        return b.sitofp(v, F32x16)

    @staticmethod
    def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x * y + z rounded once, without the instruction.

        The product is exact in float64. The sum is rounded to odd there (its last bit is set when it is inexact), so
        that rounding it again to float32 gives what one rounding would (Boldo and Melquiond, 2008).
        """
        f64, i64 = vector("f64", 16), ir.VectorType(ir.IntType(64), 16)
        product, z = b.fmul(b.fpext(x, f64), b.fpext(y, f64)), b.fpext(z, f64)
        total = b.fadd(product, z)
        back = b.fsub(total, product)
        error = b.fadd(b.fsub(product, b.fsub(total, back)), b.fsub(z, back))
        zero, one = ir.Constant(f64, [0.0] * 16), ir.Constant(i64, [1] * 16)
        bits = b.bitcast(total, i64)
        grows = b.icmp_signed("==", b.fcmp_ordered(">", error, zero), b.fcmp_ordered(">", total, zero))
        odd = b.select(grows, b.add(bits, one), b.sub(bits, one))
        even = b.icmp_signed("==", b.and_(bits, one), ir.Constant(i64, [0] * 16))
        inexact = b.and_(b.fcmp_ordered("!=", error, zero), even)
        return b.fptrunc(b.bitcast(b.select(inexact, odd, bits), f64), F32x16)

    @staticmethod
    def from_half(b: ir.IRBuilder, h: ir.Value) -> ir.Value:
        """16 float16 (as int16) to float32: the exponent is moved by a multiplication, which keeps denormals right."""
        h = b.zext(h, I32x16)
        body = b.shl(b.and_(h, const("i32", 16, 0x7FFF)), const("i32", 16, 13))
        value = b.bitcast(b.fmul(b.bitcast(body, F32x16), const("f32", 16, 2.0**112)), I32x16)
        special = b.icmp_signed(">=", body, const("i32", 16, 0x7C00 << 13))
        value = b.select(special, b.or_(body, const("i32", 16, 0x7F800000)), value)
        sign = b.shl(b.and_(h, const("i32", 16, 0x8000)), const("i32", 16, 16))
        return b.bitcast(b.or_(value, sign), F32x16)

    @staticmethod
    def to_half(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
        """16 float32 to float16 (as int16), ties to even."""
        bits = b.bitcast(v, I32x16)
        body = b.and_(bits, const("i32", 16, 0x7FFFFFFF))
        odd = b.and_(b.lshr(body, const("i32", 16, 13)), const("i32", 16, 1))
        rebias = const("i32", 16, ((15 - 127) << 23) + 0xFFF)
        normal = b.lshr(b.add(b.add(body, rebias), odd), const("i32", 16, 13))
        # Below 2**-14 adding 0.5 leaves the rounded float16 mantissa in the low bits.
        small = b.fadd(b.bitcast(body, F32x16), const("f32", 16, 0.5))
        small = b.sub(b.bitcast(small, I32x16), const("i32", 16, 0x3F000000))
        half = b.select(b.icmp_signed("<", body, const("i32", 16, 0x38800000)), small, normal)
        nan = b.icmp_signed(">", body, const("i32", 16, 0x7F800000))
        top = b.select(nan, const("i32", 16, 0x7E00), const("i32", 16, 0x7C00))
        half = b.select(b.icmp_signed(">=", body, const("i32", 16, 0x47800000)), top, half)
        sign = b.lshr(b.and_(bits, const("i32", 16, -0x80000000)), const("i32", 16, 16))
        return b.trunc(b.or_(half, sign), vector("i16", 16))

    @staticmethod
    def pause(b: ir.IRBuilder) -> None:
        """What a spinning thread does between two looks: nothing, here."""


def one_half(b: ir.IRBuilder, target: type[Generic], h: ir.Value) -> ir.Value:
    """One float16 (as int16) to float32, by the vector conversion: same bits, no library call."""
    return b.extract_element(target.from_half(b, splat(b, h, 16)), ir.Constant(LANE["i32"], 0))
