"""Rooflines as a picture: one panel for each model and setting, a colour for each test."""

import math
from collections.abc import Sequence
from itertools import groupby

from qllama.bench import picture
from qllama.bench.axis import Axis, axes
from qllama.bench.measure import loaded_with
from qllama.bench.peaks import Peaks
from qllama.bench.picture import Disc, Line, Shape, Words
from qllama.bench.report import machine
from qllama.bench.roofline import Roofline, Row
from qllama.errors import InputError

WIDTH, HEIGHT = 900, 520  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 60, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
GREY, LIGHT = "#888888", "#dddddd"

FORMATS = {".svg": picture.svg, ".png": picture.png}


def check(path: str) -> None:
    """Raises InputError for a file name that is none of a picture, or one that cannot be drawn here."""
    if not path.endswith(tuple(FORMATS)):
        raise InputError(f"--plot {path}: needs a file that ends in {' or '.join(FORMATS)}")
    if path.endswith(".png"):
        picture.require_png()


def plot(rooflines: Sequence[Roofline], path: str) -> bytes:
    """What the file `path`, checked, is to hold."""
    (draw,) = (draw for ending, draw in FORMATS.items() if path.endswith(ending))
    groups = [list(group) for _, group in groupby(rooflines, key=lambda roofline: loaded_with(roofline.test))]
    return draw([_panel(group) for group in groups], WIDTH, HEIGHT)


def _panel(rooflines: Sequence[Roofline]) -> list[Shape]:
    peaks = rooflines[0].peaks
    points = [(i, roofline, row) for i, roofline in enumerate(rooflines) for row in roofline.rows if row.work.n_ops]
    x, y = axes([row for *_, row in points], peaks, (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP))
    shapes = [*_frame(x, y), *_roof(peaks, x, y)]
    for i, roofline, row in points:
        shapes += _point(row, row.seconds / roofline.apart, COLOURS[i % len(COLOURS)], x, y)
    shapes += [Words(LEFT, 20, rooflines[0].about.type, size=14), Words(LEFT, 36, machine(peaks))]
    for i, roofline in enumerate(rooflines):
        speed = f"{roofline.test.name}: {roofline.test.n_tokens / roofline.seconds:.1f} t/s"
        shapes.append(Words(LEFT + 10, TOP + 20 + 16 * i, speed, COLOURS[i % len(COLOURS)]))
    return shapes


def _frame(x: Axis, y: Axis) -> list[Shape]:
    """Grid, numbers, titles of the axes."""
    shapes: list[Shape] = []
    for value in x.ticks:
        shapes.append(Line(x(value), TOP, x(value), HEIGHT - BOTTOM, LIGHT))
        shapes.append(Words(x(value), HEIGHT - BOTTOM + 18, f"{value:g}", anchor="middle"))
    for value in y.ticks:
        shapes.append(Line(LEFT, y(value), WIDTH - RIGHT, y(value), LIGHT))
        shapes.append(Words(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    shapes.append(Words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 15, "operations per byte", anchor="middle"))
    shapes.append(Words(LEFT - 8, TOP - 12, "GOP/s", anchor="end"))
    return shapes


def _roof(peaks: Peaks, x: Axis, y: Axis) -> list[Shape]:
    """The bandwidth as a slope up to each arithmetic peak, from where that goes on flat."""
    right = 10.0**x.high
    first = max(10.0**x.low, 10.0**y.low / peaks.read)
    top = max(peaks.int8, peaks.f32)
    shapes: list[Shape] = [Line(x(first), y(first * peaks.read), x(top / peaks.read), y(top), GREY, 2)]
    for name, peak in (("int8", peaks.int8), ("float32", peaks.f32)):
        shapes.append(Line(x(peak / peaks.read), y(peak), x(right), y(peak), GREY, 2))
        shapes.append(Words(x(right) - 4, y(peak) - 6, f"{name} {peak:.0f} GOP/s", GREY, "end"))
    shapes.append(Words(x(first) + 10, y(first * peaks.read) + 16, f"reads {peaks.read:.1f} GB/s", GREY))
    return shapes


def _point(row: Row, share: float, colour: str, x: Axis, y: Axis) -> list[Shape]:
    """A disc whose area is the share of the time, with its name on the side where there is room."""
    cx, cy, r = x(row.intensity), y(row.gops), max(2.0, 24 * math.sqrt(share))
    at, anchor = (cx + r + 3, "start") if cx < WIDTH * 0.7 else (cx - r - 3, "end")
    return [Disc(cx, cy, r, colour), Words(at, cy + 4, f"{row.label} ({100 * share:.0f} %)", colour, anchor)]
