"""A roofline as a chart of characters: what each kind of operation reaches, below what the machine can do."""

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from qllama.bench.axis import Axis, axes
from qllama.bench.peaks import Peaks
from qllama.bench.roofline import Row

WIDTH, HEIGHT = 72, 18  # characters, without the numbers


def letters(rows: Sequence[Row]) -> dict[str, Row]:
    """The operations that compute, by the letter that stands for them; there are letters for the 26 longest."""
    return dict(zip(ascii_uppercase, (row for row in rows if row.work.n_ops), strict=False))


def chart(rows: Sequence[Row], peaks: Peaks) -> list[str]:
    """GOP/s over operations per byte, both logarithmic; / is the read bandwidth, - the peaks of int8 and float32."""
    marks = letters(rows)
    x, y = axes(list(marks.values()), peaks, (0, WIDTH - 1), (HEIGHT - 1, 0))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for line, column, mark in (*_roof(peaks, x, y), *_points(marks, x, y)):
        if 0 <= line < HEIGHT:
            grid[line][column] = mark
    ticks = {round(y(value)): f"{value:g}" for value in y.ticks}
    lines = [f"{ticks.get(i, ''):>8} |{''.join(cells).rstrip()}" for i, cells in enumerate(grid)]
    numbers = [" "] * (WIDTH + 8)
    for value in x.ticks:
        numbers[round(x(value)) : round(x(value)) + len(f"{value:g}")] = f"{value:g}"
    return ["   GOP/s", *lines, f"{'':>8} +{'-' * WIDTH}", f"{'':>10}{''.join(numbers).rstrip()} operations/byte"]


def _roof(peaks: Peaks, x: Axis, y: Axis) -> Iterator[tuple[int, int, str]]:
    """(line, column, character) of the roofs of int8 and float32."""
    for peak in (peaks.int8, peaks.f32):
        for column in range(WIDTH):
            reading = peaks.read * x.value(column)
            yield round(y(min(peak, reading))), column, "/" if reading < peak else "-"


def _points(marks: dict[str, Row], x: Axis, y: Axis) -> Iterator[tuple[int, int, str]]:
    """The operations, the longest last: it is seen where several are in one place."""
    for letter, row in reversed(marks.items()):
        yield round(y(row.gops)), round(x(row.intensity)), letter
