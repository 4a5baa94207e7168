"""Lines, discs and words, and the two ways to make a file of them: SVG by hand, PNG by Pillow where it is installed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qllama.errors import InputError

SMOOTH = 2  # pixels of a PNG for one of the picture


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    colour: str
    width: int = 1


@dataclass(frozen=True)
class Disc:
    """Half transparent, with an edge."""

    x: float
    y: float
    r: float
    colour: str


@dataclass(frozen=True)
class Words:
    """`anchor`: which end of the text is at x, y (its baseline): "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    colour: str = "#000000"
    anchor: str = "start"
    size: int = 12


Shape = Line | Disc | Words
Panel = Sequence[Shape]  # panels stand one below the other


def svg(panels: Sequence[Panel], width: int, height: int) -> bytes:
    """`width` and `height` are those of a panel."""
    groups = [
        f'<g transform="translate(0 {i * height})">\n' + "\n".join(map(_element, panel)) + "\n</g>"
        for i, panel in enumerate(panels)
    ]
    size = f'width="{width}" height="{len(panels) * height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *groups, "</svg>\n"]).encode()


def _element(shape: Shape) -> str:
    match shape:
        case Line():
            ends = f'x1="{shape.x1:.1f}" y1="{shape.y1:.1f}" x2="{shape.x2:.1f}" y2="{shape.y2:.1f}"'
            return f'<line {ends} stroke="{shape.colour}" stroke-width="{shape.width}"/>'
        case Disc():
            place = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.r:.1f}"'
            return f'<circle {place} fill="{shape.colour}" fill-opacity="0.5" stroke="{shape.colour}"/>'
        case Words():
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}"'
            return f'<text {place} fill="{shape.colour}" text-anchor="{shape.anchor}">{escape(shape.text)}</text>'


def require_png() -> None:
    """Raises InputError when Pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise InputError("a PNG is drawn by Pillow: pip install 'qllama[plot]', or name a file .svg") from None


def png(panels: Sequence[Panel], width: int, height: int) -> bytes:
    """`width` and `height` are those of a panel, in the units of the shapes."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (SMOOTH * width, SMOOTH * height * len(panels)), "white")
    draw = ImageDraw.Draw(image, "RGBA")
    for i, panel in enumerate(panels):
        down = i * height
        for shape in panel:
            match shape:
                case Line():
                    ends = [SMOOTH * v for v in (shape.x1, shape.y1 + down, shape.x2, shape.y2 + down)]
                    draw.line(ends, fill=shape.colour, width=SMOOTH * shape.width)
                case Disc():
                    x, y, r = SMOOTH * shape.x, SMOOTH * (shape.y + down), SMOOTH * shape.r
                    draw.ellipse([x - r, y - r, x + r, y + r], fill=shape.colour + "80", outline=shape.colour)
                case Words():
                    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
                    place, font = (
                        (SMOOTH * shape.x, SMOOTH * (shape.y + down)),
                        ImageFont.load_default(SMOOTH * shape.size),
                    )
                    draw.text(place, shape.text, fill=shape.colour, font=font, anchor=anchor)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
