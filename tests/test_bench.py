"""`qllama bench`: value lists, llama-bench's formats and words, a small run; no time is asserted.

What llama-bench prints was taken from its source and from published runs of it.
"""

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import shared

from qllama import cli
from qllama.bench.parameters import Instance, Parameters, integers, names, pairs
from qllama.bench.printers import FORMATS
from qllama.bench.results import FIELDS, NEUTRAL, About, Result, deviation, file_type, mean, model_size
from qllama.errors import InputError
from qllama.hparams import FILE_TYPES

# In llama-bench's order.
LLAMA_BENCH_FIELDS = """
    build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch
    n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers n_cpu_moe split_mode main_gpu
    no_kv_offload flash_attn devices tensor_split tensor_buft_overrides load_mode lazy_mode embeddings no_op_offload
    no_host repack fit_target fit_min_ctx n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts
""".split()  # noqa: SIM905

# A published run on a CPU.
PUBLISHED = """\
| model                          |       size |     params | backend    | threads |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: |
| qwen3moe 30B.A3B Q2_K - Medium |  10.48 GiB |    30.53 B | CPU        |       4 |           pp512 |         19.37 ± 0.01 |
"""  # noqa: E501

TEST = Instance("dir/m.gguf", 2048, 512, "f16", "f16", 4, 0, 512, 0)
RESULT = Result(
    TEST, About("qwen3moe 30B.A3B Q2_K - Medium", round(10.48 * 2**30), 30_530_000_000), "cpu", "2026-11-23T08:00:00Z",
    [round(512e9 / 19.36), round(512e9 / 19.38), round(512e9 / 19.37)],
)  # fmt: skip
PARAMETERS = Parameters(("dir/m.gguf",), (4,))


# ---- value lists


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", (512,)),
        ("1,2,4", (1, 2, 4)),
        ("1-4", (1, 2, 3, 4)),
        ("64-128+32", (64, 96, 128)),
        ("1-5*2", (1, 2, 4)),
        ("2,4-6", (2, 4, 5, 6)),
        ("128-512+128,1-4*2", (128, 256, 384, 512, 1, 2, 4)),
        ("5-5", (5,)),
        ("8,", (8,)),
        ("", ()),
        ("0", (0,)),
    ],
)
def test_value_lists(text: str, values: tuple[int, ...]) -> None:
    assert integers("-p", [text]) == values


def test_repeated_options_are_one_list() -> None:
    assert integers("-p", ["1,2", "7-8"]) == (1, 2, 7, 8)
    assert names(["a.gguf,b.gguf", "c.gguf"]) == ("a.gguf", "b.gguf", "c.gguf")
    assert pairs("-pg", ["512,128", "0,1"]) == ((512, 128), (0, 1))


@pytest.mark.parametrize(
    "text",
    ["abc", "1-", "1--2", "1,,2", ",1", "-1", "1.5", "5-5+0", "0-8*2", "3-9*1", "8-2", "1-4/2", "1-4|2", "1 2", "1+2",
     "0-100000", "1e3", "٣", "99999999999999"],
)  # fmt: skip
def test_bad_values_are_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^-p: "):
        integers("-p", [text])


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "1-2,3", "a,b", "1,"])
def test_bad_pairs_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^-pg: "):
        pairs("-pg", [text])


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="-t: 0 is not between 1 and 8"):
        integers("-t", ["0-2"], 1, 8)


# ---- combinations


def test_tests_come_in_llama_bench_s_order() -> None:
    """By parameters first, the depth varying fastest; for each, every prompt, every generation, every pair."""
    parameters = replace(
        PARAMETERS, model=("a", "b"), n_prompt=(64, 0), n_gen=(16,), n_pg=((32, 8), (0, 0)), n_threads=(4, 8),
        n_depth=(0, 256),
    )  # fmt: skip
    found = [(i.model, i.n_threads, i.name) for i in parameters.instances]
    tests = ("pp64", "tg16", "pp32+tg8")
    expected = [(m, t, name + d) for m in "ab" for t in (4, 8) for d in ("", " @ d256") for name in tests]
    assert found == expected


def test_defaults_are_llama_bench_s() -> None:
    assert [i.name for i in PARAMETERS.instances] == ["pp512", "tg128"]
    (first, second) = PARAMETERS.instances
    assert (first.n_batch, first.n_ubatch, first.type_k, first.type_v, first.n_depth) == (2048, 512, "f16", "f16", 0)
    assert (first.n_ctx, second.n_ctx, first.n_step) == (512, 128, 512)


# ---- statistics


def test_mean_and_sample_deviation() -> None:
    assert (mean([1, 2, 3, 4]), mean([2.5])) == (2.5, 2.5)
    assert deviation([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx((32 / 7) ** 0.5)
    assert deviation([3.0]) == 0


# ---- formats


def printed(name: str, parameters: Parameters = PARAMETERS, results: tuple[Result, ...] = (RESULT, RESULT)) -> str:
    printer = FORMATS[name]()
    return printer.header(parameters) + "".join(map(printer.test, results)) + printer.footer()


def test_the_markdown_table_is_llama_bench_s() -> None:
    text = printed("md", results=(RESULT,))
    assert text.startswith(PUBLISHED)
    assert re.fullmatch(r"\nbuild: \S+ \(\d+\)\n", text.removeprefix(PUBLISHED))


def test_the_markdown_table_shows_what_was_varied_or_is_not_the_default() -> None:
    parameters = replace(
        PARAMETERS, n_batch=(1, 2), n_ubatch=(256,), type_k=("f32",), foreign={"flash_attn": "1", "load_mode": "mmap"}
    )
    titles, rules, row, *_ = printed("md", parameters, (replace(RESULT, foreign=parameters.foreign),)).splitlines()
    cells = [cell.strip() for cell in titles.strip("|").split("|")]
    assert cells[4:-2] == ["threads", "n_batch", "n_ubatch", "type_k", "fa", "lm"]
    assert "| ------: | ------: | -------: | -----: | --: | ---------: |" in rules
    assert "|       4 |    2048 |      512 |    f16 |   1 |       mmap |" in row
    assert len(titles) == len(rules) == len(row)


@pytest.mark.parametrize(
    ("nbytes", "n_params", "size", "params"),
    [(2**30, 10**9, "1.00 GiB", "1.00 B"), (2**30 - 1, 10**9 - 1, "1024.00 MiB", "1000.00 M"),
     (19077344, 5049344, "18.19 MiB", "5.05 M")],
)  # fmt: skip
def test_sizes_in_the_markdown_table(nbytes: int, n_params: int, size: str, params: str) -> None:
    row = printed("md", results=(replace(RESULT, about=About("x", nbytes, n_params)),)).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")][2:4] == [size, params]


def test_fields_are_llama_bench_s() -> None:
    assert list(FIELDS) == LLAMA_BENCH_FIELDS and len(FIELDS) == 42
    assert NEUTRAL.keys() < FIELDS.keys()


def test_csv() -> None:
    lines = printed("csv").splitlines()
    assert lines[0] == ",".join(LLAMA_BENCH_FIELDS)
    assert re.fullmatch(r'"[^"]*"(,"[^"]*"){41}', lines[1])
    (row, _) = csv.DictReader(io.StringIO("\n".join(lines)))
    assert (row["model_filename"], row["n_prompt"], row["n_gen"], row["n_threads"]) == ("dir/m.gguf", "512", "0", "4")
    assert row["avg_ts"] == "19.370000" and row["stddev_ts"] == "0.010000"
    assert row["flash_attn"] == "-1" and row["tensor_split"] == "0.00" and row["backends"] == "CPU"


def test_csv_and_sql_quote_quotes() -> None:
    result = replace(RESULT, instance=replace(TEST, model="a\"b'c,d"))
    (row,) = csv.DictReader(io.StringIO(printed("csv", results=(result,))))
    assert row["model_filename"] == "a\"b'c,d"
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(printed("sql", results=(result,)))
        assert database.execute("SELECT model_filename FROM llama_bench").fetchall() == [("a\"b'c,d",)]
    assert json.loads(printed("json", results=(result,)))[0]["model_filename"] == "a\"b'c,d"


def test_json() -> None:
    text = printed("json")
    assert text.startswith('[\n  {\n    "build_commit": "') and text.endswith(" ]\n  }\n]\n")
    assert " ]\n  },\n  {\n" in text
    first, second = json.loads(text)
    assert first == second and list(first) == [*LLAMA_BENCH_FIELDS, "samples_ns", "samples_ts"]
    kinds = {"text": str, "int": int, "bool": bool, "float": float}
    assert all(type(first[name]) is kinds[kind] for name, kind in FIELDS.items())
    assert first["samples_ns"] == RESULT.samples_ns and first["samples_ts"] == [19.36, 19.38, 19.37]
    assert (first["cpu_strict"], first["repack"], first["n_gpu_layers"]) == (False, True, -1)


def test_jsonl() -> None:
    lines = printed("jsonl").splitlines()
    assert len(lines) == 2 and lines[0].startswith('{"build_commit": "')
    assert '], "samples_ts"' not in lines[0] and lines[0].endswith('],"samples_ts": [ 19.36, 19.38, 19.37 ]}')
    assert json.loads(lines[0]) == json.loads(printed("json"))[0]


def test_sql_makes_a_table_of_numbers_and_texts() -> None:
    text = printed("sql")
    assert text.startswith("CREATE TABLE IF NOT EXISTS llama_bench (\n  build_commit TEXT,\n  build_number INTEGER,\n")
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(text)
        columns = {name: kind for _, name, kind, *_ in database.execute("PRAGMA table_info(llama_bench)")}
        rows = database.execute("SELECT model_type, n_prompt, avg_ts, test_time FROM llama_bench").fetchall()
    assert list(columns) == LLAMA_BENCH_FIELDS
    assert (columns["avg_ts"], columns["cpu_strict"], columns["model_type"]) == ("REAL", "INTEGER", "TEXT")
    assert rows == [(RESULT.about.type, 512, 19.37, "2026-11-23T08:00:00Z")] * 2


# ---- what a model is called


@pytest.mark.parametrize(
    ("n_layer", "n_vocab", "n_head_kv", "size"),
    [(16, 128256, 8, "1B"), (28, 128256, 8, "3B"), (32, 32000, 32, "7B"), (32, 128256, 8, "8B"), (40, 32000, 40, "13B"),
     (80, 32000, 64, "65B"), (80, 128256, 8, "70B"), (5, 512, 4, "?B")],
)  # fmt: skip
def test_sizes_are_llama_cpp_s(n_layer: int, n_vocab: int, n_head_kv: int, size: str) -> None:
    hparams = SimpleNamespace(architecture="llama", n_layer=n_layer, n_vocab=n_vocab, n_head=64, n_head_kv=n_head_kv)
    assert model_size(hparams) == size


@pytest.mark.parametrize(
    ("name", "words"),
    [("F32", "all F32"), ("F16", "F16"), ("Q4_0", "Q4_0"), ("Q2_K", "Q2_K - Medium"), ("Q2_K_S", "Q2_K - Small"),
     ("Q3_K_L", "Q3_K - Large"), ("Q4_K_M", "Q4_K - Medium"), ("Q5_K_S", "Q5_K - Small"), ("Q6_K", "Q6_K"),
     ("IQ4_XS", "IQ4_XS - 4.25 bpw"), ("IQ3_M", "IQ3_S mix - 3.66 bpw"), ("IQ1_S", "IQ1_S - 1.5625 bpw"),
     ("TQ1_0", "TQ1_0 - 1.69 bpw ternary"), ("MXFP4_MOE", "MXFP4 MoE"), ("BF16", "BF16")],
)  # fmt: skip
def test_file_types_are_in_llama_cpp_s_words(name: str, words: str) -> None:
    (number,) = (i for i, n in FILE_TYPES.items() if n == name)
    assert file_type(SimpleNamespace(tensors={}), SimpleNamespace(file_type=number)) == words


def test_a_file_type_that_the_file_does_not_tell_is_guessed() -> None:
    tensors = {i: SimpleNamespace(type=SimpleNamespace(name=name)) for i, name in enumerate(("F32", "Q4_K", "Q4_K"))}
    gguf = SimpleNamespace(tensors=tensors)
    assert file_type(gguf, SimpleNamespace(file_type=None)) == "(guessed) Q4_K - Medium"
    assert file_type(gguf, SimpleNamespace(file_type=999)) == "unknown, may not work"


# ---- the command


def bench(capsys, *args, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of `qllama bench ARGS`."""
    assert cli._main(["bench", *map(str, args)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def stories():
    return shared("models/stories260K-f32.gguf")


def test_a_small_run(capsys) -> None:
    out, err = bench(
        capsys, "-m", stories(), "-p", "8,16", "-n", 4, "-pg", "8,4", "-d", "0,8", "-r", 2, "-t", 1, "-oe", "csv"
    )
    lines = out.splitlines()
    names = ["pp8", "pp16", "tg4", "pp8+tg4"]
    assert len(lines) == 2 + 8 + 2 and lines[-1].startswith("build: ")
    for line, name in zip(lines[2:10], names + [f"{name} @ d8" for name in names], strict=True):
        assert re.fullmatch(rf"\| llama \?B all F32 +\| .* \| +1 \| +{re.escape(name)} \| +[\d.]+ ± [\d.]+ \|", line)
    table = [line for line in err.splitlines() if line.startswith(("build_commit,", '"'))]
    rows = list(csv.DictReader(table))
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows[:4]] == [
        ("8", "0", "0"), ("16", "0", "0"), ("0", "4", "0"), ("8", "4", "0")
    ]  # fmt: skip
    assert all(float(r["avg_ts"]) > 0 and int(r["avg_ns"]) > 0 for r in rows)


def test_models_threads_and_types_are_combined(capsys) -> None:
    out, _ = bench(
        capsys, stories(), "-m", stories(), "-p", 0, "-n", 1, "-t", "1-2", "-r", 1, "--no_warmup", "-o", "jsonl", "-ub",
        "4,8", "-ctk", "f32", "--cache-type-v", "f32",
    )  # fmt: skip
    found = [json.loads(line) for line in out.splitlines()]
    keys = ("n_ubatch", "n_threads", "type_k", "type_v", "n_gen", "stddev_ts")
    expected = [(ub, t, "f32", "f32", 1, 0) for _ in range(2) for ub in (4, 8) for t in (1, 2)]
    assert [tuple(row[key] for key in keys) for row in found] == expected
    assert len(found[0]["samples_ns"]) == 1 and found[0]["model_n_params"] == 292800


def test_without_a_model_the_embedded_one_is_measured(capsys) -> None:
    out, _ = bench(capsys, "-p", 4, "-n", 0, "-r", 1, "-t", 1, "-o", "json")
    assert json.loads(out)[0]["model_filename"].endswith("default.gguf")


def test_progress_is_on_stderr(capsys) -> None:
    common = (stories(), "-p", 4, "-n", 0, "-r", 2, "-t", 1, "-d", 4)
    assert "benchmark" not in bench(capsys, *common)[1]
    out, err = bench(capsys, *common, "--progress")
    said = [line for line in err.splitlines() if line.startswith("qllama bench: ")]
    assert said == [
        f"qllama bench: benchmark 1/1: {what}"
        for what in ("starting", "filling the context to 4", "warmup", "run 1/2", "run 2/2")
    ]
    assert "benchmark" not in out


def test_options_of_llama_bench_without_meaning_are_accepted_where_they_say_what_is_so(capsys) -> None:
    out, _ = bench(
        capsys, stories(), "-p", 4, "-n", 0, "-r", 1, "-t", 1, "-o", "csv", "-ngl", 0, "-fa", 1, "-mmp", 0, "-sm",
        "none", "--poll", 50, "--prio", 0, "-nkvo", 0, "-ts", 0, "--cpu_mask", "0x0", "--offline", "-embd", 0,
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(out))
    found = [row[name] for name in ("n_gpu_layers", "flash_attn", "load_mode", "split_mode", "tensor_split")]
    assert found == ["0", "1", "none", "none", "0.00"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-ngl", 99), "-ngl 99"),
        (("-fa", "0"), "-fa 0"),
        (("-fa", "0,1"), "-fa 0,1"),
        (("--numa", "distribute"), "--numa distribute"),
        (("-hf", "user/model"), "-hf user/model"),
        (("-embd", 1), "-embd 1"),
        (("-p", "x"), "-p: found 'x'"),
        (("-pg", "1"), "-pg: found '1'"),
        (("-t", 0), "-t: 0"),
        (("-b", 0), "-b: 0"),
        (("-r", 0), "-r"),
        (("-o", "xml"), "-o"),
        (("-ctk", "q3"), "-ctk=q3"),
        (("-p", 0, "-n", 0), "nothing to measure"),
        (("-m", "/nonexistent.gguf"), "/nonexistent.gguf"),
        (("--plot", "x.svg"), "--roofline"),
        (("--roofline", "--plot", "x.gif"), ".svg or .png"),
        (("--roofline", "--plot", f"{__file__}/x.svg", "-p", 1, "-n", 0), "x.svg: cannot be written"),
        (("--roofline", "-o", "json"), "--roofline has a format of its own"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, args, words) -> None:
    out, err = bench(capsys, *args, code=2)
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("qllama: error: ") and words in line


def test_devices_are_listed_as_llama_bench_does_where_there_are_none(capsys) -> None:
    assert bench(capsys, "--list-devices")[0] == "Available devices:\n  (none)\n"


def test_the_help_loads_no_numpy() -> None:
    script = (
        "import sys; from qllama.cli import _main\n_main(['bench', '--help'])\n"
        "sys.exit(str({'numpy', 'numba', 'llvmlite'} & set(sys.modules) or 0))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr == "0\n" and "--roofline" in result.stdout
