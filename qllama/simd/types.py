"""LLVM vectors as Numba types: a Vec is one vector, a Tile an array of them that stays in registers."""

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

LANE = {
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
}


def vector(lane: str, n: int) -> ir.VectorType:
    """The LLVM type of `n` lanes."""
    return ir.VectorType(LANE[lane], n)


class Vec(types.Type):
    """`n` lanes of type `lane`: the logical width never changes, LLVM splits it for narrower machines."""

    def __init__(self, lane: str, n: int) -> None:
        self.lane, self.n = lane, n
        super().__init__(name=f"{lane}x{n}")


BOTH, LOWER, UPPER = 0, 1, 2  # halves of a panel


class Tile(types.Type):
    """`t` vectors of one type, one per token of a register tile. `half`: the rows of a panel that are wanted."""

    def __init__(self, vec: Vec, t: int, half: int = BOTH) -> None:
        self.vec, self.t, self.half = vec, t, half
        super().__init__(name=f"Tile({vec.name},{t},{half})")


@register_model(Vec)
class VecModel(models.PrimitiveModel):
    def __init__(self, manager, vec):
        super().__init__(manager, vec, vector(vec.lane, vec.n))


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(vector(tile.vec.lane, tile.vec.n), tile.t))


i8x64 = Vec("i8", 64)
i32x16 = Vec("i32", 16)
f32x16 = Vec("f32", 16)
