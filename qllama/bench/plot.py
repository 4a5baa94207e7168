"""Rooflines as a picture: SVG, written by hand. One panel for each model and setting, a colour for each test."""

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby

from qllama.bench.measure import loaded_with
from qllama.bench.report import machine
from qllama.bench.roofline import Roofline, Row

WIDTH, HEIGHT = 900, 520  # px of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 60, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
GREY = "#888"


class Axis:
    """A logarithmic scale over whole decades that hold all `values`, on the pixels from `start` to `end`."""

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


def svg(rooflines: Sequence[Roofline]) -> str:
    """The text of the picture."""
    panels = [list(group) for _, group in groupby(rooflines, key=lambda roofline: loaded_with(roofline.test))]
    body = "\n".join(
        f'<g transform="translate(0 {i * HEIGHT})">\n{_panel(panel)}\n</g>' for i, panel in enumerate(panels)
    )
    size = f'width="{WIDTH}" height="{len(panels) * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}\n{body}\n</svg>\n'


def _panel(rooflines: Sequence[Roofline]) -> str:
    peaks = rooflines[0].peaks
    points = [(i, roofline, row) for i, roofline in enumerate(rooflines) for row in roofline.rows if row.work.n_ops]
    ridge = [peak / peaks.read for peak in (peaks.int8, peaks.f32)]  # operations per byte where the roof turns flat
    x = Axis([*map(_intensity, [row for *_, row in points]), *ridge, 2 * max(ridge)], LEFT, WIDTH - RIGHT)
    y = Axis([*(row.gops for *_, row in points), peaks.int8, peaks.f32], HEIGHT - BOTTOM, TOP)
    parts = [*_frame(x, y), *_roof(rooflines[0], x, y)]
    for i, roofline, row in points:
        parts.append(_point(row, row.seconds / roofline.apart, COLOURS[i % len(COLOURS)], x, y))
    title = f"{rooflines[0].about.type} on {machine(peaks)}"
    parts.append(_text(LEFT, 20, title, size=14))
    for i, roofline in enumerate(rooflines):
        speed = f"{roofline.test.name}: {roofline.test.n_tokens / roofline.seconds:.1f} t/s"
        parts.append(_text(LEFT + 10, TOP + 20 + 16 * i, speed, COLOURS[i % len(COLOURS)]))
    return "\n".join(parts)


def _intensity(row: Row) -> float:
    return row.work.n_ops / row.work.nbytes


def _frame(x: Axis, y: Axis) -> list[str]:
    """Grid, numbers, titles of the axes."""
    parts = []
    for value in x.ticks:
        parts.append(_line(x(value), TOP, x(value), HEIGHT - BOTTOM, "#ddd"))
        parts.append(_text(x(value), HEIGHT - BOTTOM + 18, f"{value:g}", anchor="middle"))
    for value in y.ticks:
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#ddd"))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 15, "operations per byte", anchor="middle"))
    parts.append(_text(LEFT - 8, TOP - 12, "GOP/s", anchor="end"))
    return parts


def _roof(roofline: Roofline, x: Axis, y: Axis) -> list[str]:
    """The bandwidth as a slope up to each arithmetic peak, from where that goes on flat."""
    peaks = roofline.peaks
    right = 10.0**x.high
    first = max(10.0**x.low, 10.0**y.low / peaks.read)
    top = max(peaks.int8, peaks.f32)
    parts = [_line(x(first), y(first * peaks.read), x(top / peaks.read), y(top), GREY, 2)]
    for name, peak in (("int8", peaks.int8), ("float32", peaks.f32)):
        parts.append(_line(x(peak / peaks.read), y(peak), x(right), y(peak), GREY, 2))
        parts.append(_text(x(right) - 4, y(peak) - 6, f"{name} {peak:.0f} GOP/s", GREY, "end"))
    parts.append(_text(x(first) + 10, y(first * peaks.read) + 16, f"reads {peaks.read:.1f} GB/s", GREY))
    return parts


def _point(row: Row, share: float, colour: str, x: Axis, y: Axis) -> str:
    """A disc whose area is the share of the time, with its name on the side where there is room."""
    cx, cy, r = x(_intensity(row)), y(row.gops), max(2.0, 24 * math.sqrt(share))
    disc = f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{r:.1f}" fill="{colour}" fill-opacity="0.5" stroke="{colour}"/>'
    name = f"{row.label} ({100 * share:.0f} %)"
    if cx < WIDTH * 0.7:
        return disc + _text(cx + r + 3, cy + 4, name, colour)
    return disc + _text(cx - r - 3, cy + 4, name, colour, "end")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, colour: str = "black", anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}"'
    return f'<text {place} fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
