"""A roofline as text for the terminal: the machine, a table of the operations, their chart, and bars of their times."""

from qllama.bench.chart import chart, letters
from qllama.bench.measure import cpu_info
from qllama.bench.peaks import Peaks
from qllama.bench.printers import aligned
from qllama.bench.roofline import Roofline, Row

BAR = 60  # characters of the longest bar
IDLE = 0.95  # of the threads' time: with less of it, the machine was not idle
PEAK_NAMES = {"read": "reading", "int8": "int8", "f32": "float32"}

# Title and width (negative: aligned to the left).
COLUMNS = (
    ("", -1), ("operation", -24), ("weights", -8), ("time", 7), ("GB/s", 8), ("GOP/s", 8), ("of roof", 8),
    ("roof", -7),
)  # fmt: skip


def machine(peaks: Peaks) -> str:
    """One line: what the operations are compared with, and how far that can be trusted."""
    busy = f" (busy: the threads got {peaks.cores:.1f} cores)" if peaks.cores < IDLE * peaks.n_threads else ""
    return (
        f"{cpu_info()}, {peaks.n_threads} thread{'s' * (peaks.n_threads > 1)}: reads {peaks.read:.1f} GB/s, "
        f"int8 {peaks.int8:.0f} GOP/s, float32 {peaks.f32:.0f} GFLOP/s{busy}"
    )


def text(roofline: Roofline) -> str:
    """The whole report of a test, with an empty line behind."""
    test = roofline.test
    head = (
        f"{roofline.about.type}, {test.name}: {test.n_tokens / roofline.seconds:.2f} t/s, {roofline.seconds:.3f} s; "
        f"{roofline.apart:.3f} s with the operations one by one"
    )
    parts = ([head, machine(roofline.peaks)], table(roofline), chart(roofline.rows, roofline.peaks), bars(roofline))
    return "\n\n".join("\n".join(part) for part in parts) + "\n\n"


def table(roofline: Roofline) -> list[str]:
    """A row for each kind of operation, with its letter in the chart, and what the machine reads and does in int8."""
    titles = [aligned(title, width) for title, width in COLUMNS]
    rules = ["-" * (abs(width) - 1) + ("-" if width < 0 else ":") for _, width in COLUMNS]
    marks = {id(row): letter for letter, row in letters(roofline.rows).items()}
    rows = [[marks.get(id(row), ""), *_cells(row, roofline)] for row in roofline.rows]
    rows.append(["", "the machine's peaks", "", "", f"{roofline.peaks.read:.1f}", f"{roofline.peaks.int8:.1f}", "", ""])
    cells = [[aligned(cell, width) for cell, (_, width) in zip(row, COLUMNS, strict=True)] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (titles, rules, *cells)]


def _cells(row: Row, roofline: Roofline) -> list[str]:
    peaks = roofline.peaks
    return [
        row.kind,
        row.weights,
        f"{100 * row.seconds / roofline.apart:.1f} %",
        f"{row.gbps:.1f}",
        f"{row.gops:.1f}",
        f"{100 * row.of_roof(peaks):.0f} %",
        PEAK_NAMES[row.bound(peaks)],
    ]


def bars(roofline: Roofline) -> list[str]:
    """A bar for each kind of operation: its time, and as # the part that it would take at the roof."""
    longest = max(row.seconds for row in roofline.rows)
    lines = ["time of each operation; # is what it would take at the roof, . what is above"]
    for row in roofline.rows:
        length = max(1, round(BAR * row.seconds / longest))
        filled = round(length * min(1.0, row.of_roof(roofline.peaks)))
        lines.append(f"{row.label:<33} {'#' * filled + '.' * (length - filled)}")
    return lines
