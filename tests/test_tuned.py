"""`qllama tune` and what is remembered of it. No speed is asserted: results stay the same, and damage is told."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import shared

from qllama import cli, cpu, jit, tuned
from qllama.bench import peaks as peaks_module
from qllama.bench import tune
from qllama.bench.tune import Measured, changed, tile_sets
from qllama.errors import InputError, QllamaError
from qllama.kernels.tiles import CHOICES, DEFAULTS
from qllama.model import Model
from qllama.tuned import Tuned

FOUND = Tuned(1, {"int8": 3})


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where results are remembered; nothing is yet."""
    monkeypatch.setattr(tuned, "places", lambda: [tmp_path / "cache" / tuned.NAME])
    monkeypatch.delenv("QLLAMA_TILES", raising=False)
    forget()
    yield tmp_path / "cache" / tuned.NAME
    monkeypatch.undo()
    forget()


def forget() -> None:
    """What this process has read."""
    tuned.saved.cache_clear()
    tuned.tiles.cache_clear()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# ---- the file


def test_without_a_file_there_are_the_defaults(file: Path, caplog) -> None:
    assert tuned.saved() == Tuned() and tuned.tiles() == {}
    assert tuned.default_threads() == cpu.default_threads()
    assert tuned.reset() is None and warnings(caplog) == [] and not file.parent.exists()


def test_what_is_saved_is_used_until_it_is_reset(file: Path) -> None:
    assert tuned.save(FOUND) == file
    assert (tuned.saved(), tuned.tiles(), tuned.default_threads()) == (FOUND, {"int8": 3}, 1)
    assert [p.name for p in file.parent.iterdir()] == [tuned.NAME]
    assert tuned.reset() == file and tuned.saved() == Tuned()


def test_machines_do_not_disturb_each_other(file: Path, monkeypatch) -> None:
    tuned.save(FOUND)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(tuned, "machine", lambda: "another")
        forget()
        assert tuned.saved() == Tuned()
        tuned.save(Tuned(None, {"f32": 6}))
        tuned.reset()
    forget()
    assert tuned.saved() == FOUND


def test_the_machine_is_its_cpu_isa_cores_and_version() -> None:
    name = tuned.machine()
    assert cpu.host()[0] in name and f" {cpu.isa().name}," in name and name.endswith(f"qllama {version('qllama')}")
    assert f" {cpu.default_threads()} cores, {cpu.processors()} processors," in name


DAMAGE = {
    "empty": "",
    "cut": '{"machines": {',
    "no object": "[]",
    "a number": "7",
    "foreign": '{"threads": 4}',
    "no machines": '{"machines": 3}',
    "deep": '{"machines":' * 100_000,
    "not text": "\udcff",
    **{f"entry {entry}": json.dumps({"machines": {"%": entry}}) for entry in (
        3, {}, {"n_threads": 0, "tiles": {}}, {"n_threads": True, "tiles": {}}, {"n_threads": 10**9, "tiles": {}},
        {"n_threads": None, "tiles": []}, {"n_threads": None, "tiles": {"int8": 9}},
        {"n_threads": None, "tiles": {"int8": "4"}}, {"n_threads": None, "tiles": {"int16": 4}},
    )},
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_or_foreign_file_is_ignored_with_one_warning(how: str, file: Path, caplog) -> None:
    file.parent.mkdir()
    file.write_bytes(DAMAGE[how].replace("%", tuned.machine()).encode(errors="surrogateescape"))
    assert tuned.saved() == Tuned() and tuned.default_threads() == cpu.default_threads() and tuned.tiles() == {}
    (warning,) = warnings(caplog)
    assert str(file) in warning and "\n" not in warning
    tuned.save(FOUND)
    assert tuned.saved() == FOUND and len(warnings(caplog)) == 1


def test_a_file_that_cannot_be_written_is_one_line(file: Path) -> None:
    file.parent.write_text("in the way")
    with pytest.raises(QllamaError, match="cannot be written"):
        tuned.save(FOUND)


def test_tiles_from_the_environment_stand_for_the_file_s(file: Path, monkeypatch) -> None:
    tuned.save(FOUND)
    monkeypatch.setenv("QLLAMA_TILES", "f32=6,int8=5")
    assert tuned.tiles() == {"f32": 6, "int8": 5} and tuned.as_text(tuned.tiles()) == "f32=6,int8=5"
    monkeypatch.setenv("QLLAMA_TILES", "")
    tuned.tiles.cache_clear()
    assert tuned.tiles() == {}
    for wrong in ("int8", "int8=9", "int8=x", "int4=2", "int8=4=4"):
        monkeypatch.setenv("QLLAMA_TILES", wrong)
        tuned.tiles.cache_clear()
        with pytest.raises(InputError, match=f"QLLAMA_TILES={wrong}: needed tiles such as"):
            tuned.tiles()


# ---- what depends on it


def test_tiles_are_part_of_the_kernels_key(file: Path) -> None:
    keys = {jit.cache_key.__wrapped__()}
    for tiles in ({"int8": 3}, {"f32": 3}):
        tuned.save(Tuned(None, tiles))
        keys.add(jit.cache_key.__wrapped__())
    assert len(keys) == 3
    assert jit._target_environment()["QLLAMA_TILES"] == "f32=3", "the compiler has those of the key"
    tuned.save(Tuned(1))
    assert jit.cache_key.__wrapped__() in keys, "threads are not"


def test_the_engine_takes_the_threads(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(tuned, "saved", lambda: Tuned(3))
    model = Model(shared("models/stories260K-f32.gguf"), n_ctx=8)
    assert model.team.n_threads == 3
    model.close()


PROBE = """
import hashlib, sys
from logits_probe import logits
from qllama.kernels import tiles
print(tiles.TILE, tiles.TILE_F32)
for path in sys.argv[1:]:
    print(hashlib.sha256(b"".join(logits(path, 2, n, "f16").tobytes() for n in (512, 7))).hexdigest())
"""


def test_no_tile_changes_a_bit() -> None:
    paths = [str(shared(f"models/{name}.gguf")) for name in ("stories260K-f32", "books-5m-Q4_K_M")]
    found = []
    for tiles in tile_sets():
        environment = {
            **os.environ,
            "QLLAMA_TILES": tuned.as_text(changed(tiles)),
            "PYTHONPATH": str(Path(__file__).parent),
        }
        done = subprocess.run([sys.executable, "-c", PROBE, *paths], env=environment, capture_output=True, text=True)
        used, *hashes = done.stdout.splitlines()
        assert (used, len(hashes)) == (f"{tiles['int8']} {tiles['f32']}", 2), done.stderr
        found.append(hashes)
    assert len(found) == 1 + len(CHOICES[cpu.isa().name]) and all(hashes == found[0] for hashes in found)


def test_choices_are_tiles_that_kernels_have_room_for() -> None:
    assert CHOICES.keys() == {isa.name for isa in cpu.ISAS}
    for sets in CHOICES.values():
        assert all(1 <= int8 <= f32 <= tuned.MAX_TILE for int8, f32 in sets)
    assert DEFAULTS.keys() == set(tuned.TILES) == tune.REPRESENTS.keys()


# ---- measuring


def measured(default: float, other: float) -> Measured:
    """Speeds of the default threads and tiles, and of others (a thread more, tiles a token larger)."""
    n, tiles = cpu.default_threads(), {k: {v: default, v + 1: other, v + 2: 0.1} for k, v in DEFAULTS.items()}
    return Measured({n: default, n + 1: other}, {n: default, n + 1: other}, tiles)


def test_only_what_is_clearly_faster_takes_the_default_s_place() -> None:
    assert measured(100, 102).best() == measured(100, 50).best() == Tuned()
    assert measured(100, 105).best() == Tuned(cpu.default_threads() + 1, {k: v + 1 for k, v in DEFAULTS.items()})


def test_tune_measures_and_remembers(file: Path, monkeypatch, capsys) -> None:
    """With the process that measures tiles replaced: it would have to compile."""
    monkeypatch.setattr(peaks_module, "PATIENCE", 0.002)
    monkeypatch.setattr(tune, "N_OUT_DECODE", 256)
    monkeypatch.setattr(tune, "_in_process", lambda tiles: {k: 9.0 - (v == DEFAULTS[k]) for k, v in tiles.items()})
    assert cli._main(["tune"]) == 0
    out, err = capsys.readouterr()
    assert f"remembered in {file}" in out and "GB/s" in out and "  <-" in out and "(measured)" in out
    assert "qllama tune: measuring 1 thread\n" in err and "qllama tune: measuring tiles of " in err
    assert tuned.saved().tiles.keys() == {"int8", "f32"}
    assert cli._main(["tune", "--show"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("(measured)")
    assert cli._main(["tune", "--reset"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("tokens (the defaults)") and tuned.saved() == Tuned()
    assert cli._main(["tune", "--reset", "--show"]) == 2


def test_the_process_that_measures_gives_a_speed_for_each_tile(monkeypatch) -> None:
    monkeypatch.setattr(peaks_module, "PATIENCE", 0.002)
    speeds = tune._in_process(DEFAULTS)
    assert speeds.keys() == DEFAULTS.keys() and min(speeds.values()) > 0


def test_a_process_that_measures_and_fails_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_DEVELOPER_MODE", "0")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(QllamaError, match=r"measuring the tiles f32=\d,int8=\d failed: it printed nothing"):
        tune._in_process(DEFAULTS)
