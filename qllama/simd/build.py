"""From a few lines of LLVM IR to a Numba intrinsic. Instructions themselves are in portable.py, x86.py, ..."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qllama.simd.types import Tile, vector

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
addr = types.int64  # an address; signed, because Numba turns int64 + uint64 into a float


def primitive(ret: Any, *args: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make `f(builder, *values) -> value` an intrinsic with exactly these Numba types."""

    def decorate(f: Callable[..., Any]) -> Any:
        def typed(*given: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                cast = [context.cast(builder, v, g, a) for v, g, a in zip(values, given, args, strict=True)]
                out = f(builder, *cast)
                return context.get_dummy_value() if out is None or ret is types.void else out

            return ret(*given), generate

        return _intrinsic(f.__name__, len(args), typed)

    return decorate


def _intrinsic(name: str, n: int, typed: Callable[..., Any]) -> Any:
    """Numba reads the number of arguments off the function, so it is given one with exactly `n`."""
    names = ", ".join(f"x{i}" for i in range(n))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def {name}(context{', ' if n else ''}{names}):\n    return typed({names})", scope)
    return intrinsic(scope[name])


def tile_primitive(f: Callable[..., Any]) -> Any:
    """Make `f(builder, t, *values)` an intrinsic over tiles.

    Its annotations name the types: `"tile"` (i32 or f32 as given), other Numba types as they are. The first tile
    argument decides the number of tokens, `t`.
    """
    hints = dict(f.__annotations__)
    ret = hints.pop("return")
    wanted = list(hints.values())

    def typed(*given: Any) -> Any:
        like = next(g for g in given if isinstance(g, Tile))
        t = like.t
        result = Tile(ret.vec, t, like.half) if isinstance(ret, Tile) else ret

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            cast = [
                v if isinstance(w, Tile) else context.cast(builder, v, g, w)
                for v, g, w in zip(values, given, wanted, strict=True)
            ]
            out = f(builder, t, *cast)
            return context.get_dummy_value() if ret is types.void else out

        return result(*given), generate

    return _intrinsic(f.__name__, len(wanted), typed)


def pointer(b: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    return b.inttoptr(address, to.as_pointer())


def const(lane: str, n: int, value: float) -> ir.Constant:
    """A vector constant with the same value in each lane."""
    return ir.Constant(vector(lane, n), [value] * n)


def splat(b: ir.IRBuilder, x: ir.Value, n: int) -> ir.Value:
    """The scalar `x` in each of `n` lanes."""
    undef = ir.Constant(ir.VectorType(x.type, n), ir.Undefined)
    one = b.insert_element(undef, x, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, n), [0] * n))


def load_splat(b: ir.IRBuilder, address: ir.Value, lane: ir.Type, n: int, align: int = 4) -> ir.Value:
    """The scalar at `address` in each of `n` lanes."""
    return splat(b, b.load(pointer(b, address, lane), align=align), n)


def call(b: ir.IRBuilder, name: str, ret: ir.Type, *values: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic or a C function by name."""
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(ret, [v.type for v in values]), name)
    return b.call(function, values)


def offset(b: ir.IRBuilder, base: ir.Value, stride: ir.Value, i: int) -> ir.Value:
    """`base + i * stride`; a constant stride folds away."""
    return base if i == 0 else b.add(base, b.mul(stride, ir.Constant(I64, i)))
