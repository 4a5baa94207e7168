"""Where numbers stand on a roofline's logarithmic axes. Pixels or characters, it is all the same here."""

import math
from collections.abc import Sequence

from qllama.bench.peaks import Peaks
from qllama.bench.roofline import Row


class Axis:
    """A logarithmic scale over whole decades that hold all `values`, on the positions from `start` to `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self.high = max(self.high, self.low + 1)
        self._start, self._end = start, end

    @property
    def ticks(self) -> list[float]:
        return [10.0**k for k in range(self.low, self.high + 1)]

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def value(self, position: float) -> float:
        """What stands at a position."""
        share = (position - self._start) / (self._end - self._start)
        return 10.0 ** (self.low + share * (self.high - self.low))


def axes(rows: Sequence[Row], peaks: Peaks, x: tuple[float, float], y: tuple[float, float]) -> tuple[Axis, Axis]:
    """Operations per byte and GOP/s, for all `rows` (which compute) and the roof, on positions x and y (start, end)."""
    ridges = [peak / peaks.read for peak in (peaks.int8, peaks.f32)]  # where the roof turns flat
    return (
        Axis([*(row.intensity for row in rows), *ridges, 2 * max(ridges)], *x),
        Axis([*(row.gops for row in rows), peaks.int8, peaks.f32], *y),
    )
