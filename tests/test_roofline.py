"""The roofline of `qllama bench`: what is counted, the stopwatch, the yardstick kernels, the text and the picture."""

import io
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import shared
from kernel_runner import memory, run
from PIL import Image

from qllama import cli
from qllama.bench import peaks as peaks_module
from qllama.bench import picture
from qllama.bench.chart import HEIGHT, WIDTH, chart
from qllama.bench.measure import Options, check
from qllama.bench.parameters import Instance, Parameters
from qllama.bench.peaks import Peaks, measure_peaks
from qllama.bench.plot import plot
from qllama.bench.report import bars, machine, table, text
from qllama.bench.results import About
from qllama.bench.roofline import Attended, Roofline, Row, Work, rooflines, work_of
from qllama.errors import InputError
from qllama.kernels.layouts import LAYOUTS
from qllama.model import Model
from qllama.plan import Buffer, Op, Weight

TEST = Instance("m.gguf", 2048, 512, "f16", "f16", 2, 0, 512, 0)
PEAKS = Peaks(2, read=40.0, int8=1000.0, f32=200.0, cores=2.0)
READING = Row("matmul", "Q4_0", 0.5, Work(10e9, 40e9, "int8"))  # 20 GB/s, 80 GOP/s
COMPUTING = Row("matmul", "F16", 2.0, Work(8e9, 200e9, "f32"))  # 4 GB/s, 100 GOP/s
MOVING = Row("attention.store_f16", "", 0.25, Work(1e9))
ROOFLINE = Roofline(TEST, About("llama 1B <F16>", 1, 1), PEAKS, 2.5, (COMPUTING, READING, MOVING))


def instance(**values: int) -> Instance:
    return Instance(**{**vars(TEST), "n_prompt": 0, **values})


class Cache:
    """48 bytes a position and layer."""

    layer_bytes = 48 * 256


# ---- what is counted


@pytest.mark.parametrize(
    ("test", "n_step"),
    [
        (instance(n_prompt=10), 4),
        (instance(n_prompt=10, n_depth=7), 512),
        (instance(n_gen=5, n_depth=3), 4),
        (instance(n_prompt=9, n_gen=2, n_depth=1), 4),
    ],
)
def test_what_attention_must_do_is_that_of_every_step(test: Instance, n_step: int) -> None:
    """Token by token and step by step, as the model runs them."""
    steps = [min(n_step, test.n_prompt - first) for first in range(0, test.n_prompt, n_step)] + [1] * test.n_gen
    pairs = n_read = 0
    past = test.n_depth
    for n in steps:
        pairs += sum(past + t + 1 for t in range(n))
        n_read += past + n
        past += n
    assert Attended.of(test, n_step, Cache()) == Attended(pairs, n_read, 48)  # type: ignore[arg-type]


def test_the_work_of_operations() -> None:
    attended = Attended(100, 20, 48.0)
    weight = Weight("w", LAYOUTS["Q4_0"], 64, 256)
    x, out = Buffer("x", 256, kind="q8"), Buffer("out", 64)
    buffers = x.ld + out.ld
    matmul = work_of(Op("q4_0.matmul", "n_tokens", {"w": weight, "x": x, "out": out}), 7, 2, attended)
    assert matmul == Work(2 * 64 * 256 * 18 / 32 + 7 * buffers, 2 * 7 * 64 * 256, "int8")
    lookup = work_of(Op("q4_0.lookup", "n_tokens", {"w": weight, "out": out}), 7, 2, attended)
    assert lookup == Work(7 * (256 * 18 / 32 + out.ld), 7 * 256)
    norm = work_of(Op("norm.rms_f32", "n_tokens", {"x": out, "out": out, "n": 64}), 7, 2, attended)
    assert norm == Work(7 * 2 * out.ld, 7 * 64 * 4)
    stored = work_of(Op("attention.store_f16", "n_tokens", {"k": out}), 7, 2, attended)
    assert stored == Work(7 * out.ld)
    args = {"q": out, "out": out, "n_head_kv": 2, "group": 4, "head_dim": 16}
    attention = work_of(Op("attention.f16_f16", "n_tokens", args), 7, 2, attended)
    assert attention == Work(7 * 2 * out.ld + 20 * 48, 4 * 2 * 4 * 16 * 100)
    floats = Weight("w", LAYOUTS["F16"], 64, 256)
    assert work_of(Op("f16.matmul", "n_tokens", {"w": floats}), 1, 1, attended).arithmetic == "f32"


def test_the_roof_is_the_longer_of_reading_and_computing() -> None:
    assert (READING.gbps, READING.gops) == (20, 80)
    assert READING.bound(PEAKS) == "read" and READING.of_roof(PEAKS) == 0.5
    assert COMPUTING.bound(PEAKS) == "f32" and COMPUTING.of_roof(PEAKS) == 0.5
    assert MOVING.bound(PEAKS) == "read" and MOVING.of_roof(PEAKS) == 0.1


# ---- measuring


def test_the_stopwatch_changes_nothing_and_counts_rows_and_steps() -> None:
    model = Model(shared("models/stories260K-f32.gguf"), n_ctx=32, n_threads=2, n_batch=4)
    tokens = np.arange(1, 11)
    expected = model.forward(tokens, 0, 3)
    stopwatch = model.stopwatch()
    assert (model.forward(tokens, 0, 3, stopwatch) == expected).all()
    assert len(stopwatch.ops) == len(model.plan.ops) and (stopwatch.seconds > 0).all()
    totals = zip(stopwatch.ops, stopwatch.rows.tolist(), stopwatch.steps.tolist(), strict=True)
    by_rows = {op.rows: (n_rows, n_steps) for op, n_rows, n_steps in totals}
    assert by_rows == {"n_tokens": (10, 3), "n_out": (3, 2)}  # batches of 4, 4 and 2; of the last two some are wanted
    model.close()


def test_peak_read_reads_every_row_once() -> None:
    src, out = memory(37, 1024), memory(37, 64)
    src.view(np.float32)[:] = np.arange(37)[:, None]
    run("peak.read", n_threads=2, src=src, out=out, n_row=37, row=1024)
    assert out.view(np.float32).sum() == 256 * np.arange(37).sum()


def test_peak_int8_does_the_operations_that_it_counts() -> None:
    data, out = np.full(4096, 63, np.uint8), memory(3, 2048)
    run("peak.int8", n_threads=2, data=data, out=out, n_unit=3, n_round=2, ld_out=2048)
    n_chain = int(out[0, :8].view(np.int64)[0]) // (2 * 64 * 64 * 2)
    assert (out[:, :8].view(np.int64) == n_chain * 2 * 64 * 64 * 2).all() and 1 <= n_chain <= 16
    start, scale = data.view(np.int32)[0], data.view(np.float32)[0]  # (start + sums) * scale * scale is written
    expected = np.float32(start + 2 * 64 * 4 * 63 * 63) * (scale * scale)
    sums = out[:, 64 : 64 + 64 * n_chain].copy().view(np.float32)
    assert (sums == expected).all() and not out[:, 64 + 64 * n_chain :].any()


def test_peak_f32_does_the_operations_that_it_counts() -> None:
    data, out = np.ones(1024, np.float32), memory(3, 2048)
    run("peak.f32", n_threads=2, data=data, out=out, n_unit=3, n_round=5, ld_out=2048)
    n_chain = int(out[0, :8].view(np.int64)[0]) // (5 * 64 * 16 * 2)
    assert 1 <= n_chain <= 16
    assert (out[:, 64 : 64 + 64 * n_chain].copy().view(np.float32) == 5 * 64).all()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks of a small memory, from a moment."""
    monkeypatch.setattr(peaks_module, "PATIENCE", 0.002)
    monkeypatch.setattr(peaks_module, "READ_BYTES", 1 << 22)


def test_peaks_are_found(quick) -> None:
    found = measure_peaks(1)
    assert found.n_threads == 1 and min(found.read, found.int8, found.f32, found.cores) > 0


def test_peaks_are_found_on_a_machine_without_time(monkeypatch) -> None:
    monkeypatch.setattr(peaks_module, "PATIENCE", 0.0)
    monkeypatch.setattr(peaks_module, "READ_BYTES", 1 << 22)
    found = measure_peaks(1)
    assert min(found.read, found.int8, found.f32) > 0


def test_rooflines_of_a_model(quick) -> None:
    path = str(shared("models/stories260K-f32.gguf"))
    parameters = Parameters((path,), (1,), n_prompt=(8,), n_gen=(2,), n_depth=(0, 4))
    found = list(rooflines(parameters, check(parameters), Options(repetitions=2)))
    assert [r.test.name for r in found] == ["pp8", "tg2", "pp8 @ d4", "tg2 @ d4"]
    for roofline in found:
        labels = {row.label for row in roofline.rows}
        assert {"matmul F32", "lookup F32", "attention.f16_f16"} <= labels
        seconds = [row.seconds for row in roofline.rows]
        assert seconds == sorted(seconds, reverse=True) and roofline.seconds > 0
    (matmul,) = (row for row in found[1].rows if row.label == "matmul F32")
    n_weights = 64 * 512 + 5 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 172)  # all but the lookup and the norms
    assert matmul.work.n_ops == 2 * 2 * n_weights
    assert matmul.work.nbytes > 2 * 4 * n_weights


# ---- showing


def test_the_machine_s_line_says_when_it_was_busy() -> None:
    assert machine(PEAKS).endswith("2 threads: reads 40.0 GB/s, int8 1000 GOP/s, float32 200 GFLOP/s")
    assert machine(Peaks(1, 1, 1, 1, cores=0.5)).endswith("(busy: the threads got 0.5 cores)")


def test_the_table_and_the_bars() -> None:
    lines = table(ROOFLINE)
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert cells[2] == ["A", "matmul", "F16", "72.7 %", "4.0", "100.0", "50 %", "float32"]
    assert cells[3] == ["B", "matmul", "Q4_0", "18.2 %", "20.0", "80.0", "50 %", "reading"]
    assert cells[4] == ["", "attention.store_f16", "", "9.1 %", "4.0", "0.0", "10 %", "reading"]
    assert cells[5] == ["", "the machine's peaks", "", "", "40.0", "1000.0", "", ""]
    shown = [line.split()[-1] for line in bars(ROOFLINE)[1:]]
    assert shown == ["#" * 30 + "." * 30, "#" * 8 + "." * 7, "#" + "." * 7]
    assert "pp512: 204.80 t/s, 2.500 s; 2.750 s" in text(ROOFLINE)


def test_the_chart_has_the_roof_and_the_operations_where_they_belong() -> None:
    """Decades: 1 to 100 operations per byte over 72 columns; 10 to 1000 GOP/s over 18 lines."""
    title, *lines, rule, numbers = chart(ROOFLINE.rows, PEAKS)
    assert title.strip() == "GOP/s" and len(lines) == HEIGHT and rule.strip() == "+" + "-" * WIDTH
    assert [line[:8].strip() for line in lines if line[:8].strip()] == ["1000", "100", "10"]
    assert numbers.split() == ["1", "10", "100", "operations/byte"]
    places = {c: (x, y) for y, line in enumerate(lines) for x, c in enumerate(line[10:]) if c in "AB"}
    # 25 operations per byte and 100 GOP/s: log10(25) / 2 of the width, half of the height
    assert places["A"] == (round(0.699 * (WIDTH - 1)), round(0.5 * (HEIGHT - 1)))
    assert places["B"] == (round(0.301 * (WIDTH - 1)), round((1 - 0.4515) * (HEIGHT - 1)))
    assert lines[0][10:].rstrip().endswith("/" + "-" * 22)  # 1000 GOP/s from 25 operations per byte on: column 50
    for column in range(WIDTH):
        marks = [line[10:].ljust(WIDTH)[column] for line in lines]
        assert "/" in marks or "-" in marks, "there is a roof above everything"


def test_the_picture_is_well_formed_and_has_every_operation_that_computes() -> None:
    other = Roofline(instance(n_gen=4, n_threads=1), ROOFLINE.about, PEAKS, 1.0, (READING,))
    root = ElementTree.fromstring(plot([ROOFLINE, ROOFLINE, other], "x.svg"))
    space = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{space}g")
    assert [len(panel.findall(f"{space}circle")) for panel in panels] == [4, 1]
    words = [t.text or "" for t in root.iter(f"{space}text")]
    assert "llama 1B <F16>" in words and machine(PEAKS) in words and "matmul F16 (73 %)" in words
    for circle in root.iter(f"{space}circle"):
        assert 0 <= float(circle.get("cx", "")) <= 900 and 0 <= float(circle.get("cy", "")) <= 520


def test_the_picture_as_png_has_the_same_discs() -> None:
    other = Roofline(instance(n_gen=4, n_threads=1), ROOFLINE.about, PEAKS, 1.0, (READING,))
    image = Image.open(io.BytesIO(plot([ROOFLINE, other], "x.png")))
    assert (image.format, image.size) == ("PNG", (2 * 900, 2 * 2 * 520))
    root = ElementTree.fromstring(plot([ROOFLINE, other], "x.svg"))
    space = "{http://www.w3.org/2000/svg}"
    for i, panel in enumerate(root.findall(f"{space}g")):
        for circle in panel.findall(f"{space}circle"):
            x, y = (2 * float(circle.get(name, "")) for name in ("cx", "cy"))
            r, g, b = image.convert("RGB").getpixel((round(x), round(y) + 2 * 520 * i))
            assert max(r, g, b) - min(r, g, b) > 50, "its colour, half transparent"
    assert image.convert("RGB").getpixel((2 * 900 - 1, 0)) == (255, 255, 255)


def test_without_pillow_a_png_is_refused_before_measuring(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli._main(["bench", "--roofline", "--plot", "x.png", "-p", "1", "-n", "0"]) == 2
    assert "pip install 'qllama[plot]'" in capsys.readouterr().err
    with pytest.raises(InputError):
        picture.require_png()


def test_the_command_prints_reports_and_writes_the_picture(quick, capsys, tmp_path) -> None:
    path = tmp_path / "roof.svg"
    args = ["bench", str(shared("models/stories260K-f32.gguf")), "--roofline", "--plot", str(path)]
    assert cli._main([*args, "-p", "4", "-n", "1", "-t", "1", "-r", "1"]) == 0
    out = capsys.readouterr().out
    assert (
        out.count("| operation ") == 2
        and out.count("   GOP/s\n") == 2
        and "llama ?B all F32, tg1: " in out
        and "matmul F32  " in out
    )
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
