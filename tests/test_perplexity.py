"""`qllama perplexity`: llama.cpp's and PyTorch's perplexities of whole files, its base file, the divergence.

Lines and the file's format are those of llama-perplexity's source; what is computed is computed again here in float64.
"""

import errno
import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from qllama import cli
from qllama.errors import FileError, InputError, QllamaError
from qllama.evaluate import perplexity as module
from qllama.evaluate.base import BaseFile, BaseWriter
from qllama.evaluate.divergence import Divergence, Value, divergence, percentile
from qllama.evaluate.perplexity import Text, chunk_bos, perplexity, predictions, read
from qllama.evaluate.report import TITLES, as_json, chunk_line, statistics
from qllama.llm import LLM

N_CTX = 64


def books(name: str) -> Path:
    return shared(f"models/books-5m-{name}.gguf")


def valid() -> Path:
    return shared("models/books-5m-valid.txt")


@pytest.fixture(scope="module")
def f16() -> Iterator[LLM]:
    llm = LLM(books("f16"), n_threads=2)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def text(f16: LLM) -> Text:
    """The beginning of the validation text in three chunks."""
    return read(f16.tokenizer, valid().read_bytes(), N_CTX, 3)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of rows, in float64."""
    x = logits.astype(np.float64)
    return (
        x - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - x.max(axis=1, keepdims=True)
    )


def log_probabilities(llm: LLM, text: Text) -> list[np.ndarray]:
    """Of each chunk, of all tokens after those that are the context of a scored one: (n_scored, n_vocab)."""
    return [log_softmax(llm.eval([1, *chunk[1:].tolist()]))[N_CTX // 2 : -1] for chunk in text.chunks]


# ---- perplexity


@pytest.mark.parametrize("name", ["f16", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_perplexities_of_a_whole_text_are_llama_cpp_s(name: str, capsys) -> None:
    found = re.search(
        rf"^\| {name.upper()} .*\| ([\d.]+) ± ([\d.]+) \|", shared("models/books-5m.md").read_text(), re.M
    )
    assert found is not None
    assert cli._main(["perplexity", "-m", str(books(name)), "-f", str(valid()), "-t", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(re.findall(r"\[(\d+)\]\d+\.\d{4},", lines[-1])) == 65
    final = re.fullmatch(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (0\.\d{5})", last)
    assert final is not None
    assert float(final[1]) == pytest.approx(float(found[1]), rel=1e-3)
    assert float(final[2]) == pytest.approx(float(found[2]), rel=1e-3)
    if name == "f16":
        assert final[1] == "28.6583", "as PyTorch has it"


def test_the_second_half_of_each_chunk_is_scored(f16: LLM, text: Text) -> None:
    assert text.chunks.shape == (3, N_CTX) and text.bos == 1 and text.n_scored == N_CTX // 2 - 1
    nll = [
        -p[np.arange(text.n_scored), chunk[N_CTX // 2 + 1 :]]
        for p, chunk in zip(log_probabilities(f16, text), text.chunks, strict=True)
    ]
    found = list(perplexity(f16.model, text))
    for i, estimate in enumerate(found, 1):
        so_far = np.concatenate(nll[:i])
        assert (estimate.n_chunk, estimate.count) == (i, len(so_far))
        assert estimate.ppl == pytest.approx(np.exp(so_far.mean()), rel=1e-5)
        assert estimate.error == pytest.approx(estimate.ppl * so_far.std() / np.sqrt(len(so_far) - 1), rel=1e-4)


def test_chunks_are_whole_and_there_are_two_at_least() -> None:
    tokens = list(range(100))
    assert Text.of(tokens, 30, 1).chunks.tolist() == [tokens[:30], tokens[30:60], tokens[60:90]]
    assert Text.of(tokens, 50, None, 1).chunks.tolist() == [tokens[:50]]
    with pytest.raises(InputError, match="the text has 100 tokens, a context of 51 needs at least 102"):
        Text.of(tokens, 51, 1)


def test_a_longer_context_than_the_training_s_is_told(f16: LLM, text: Text, monkeypatch, caplog) -> None:
    monkeypatch.setattr(f16.model, "hparams", replace(f16.model.hparams, n_ctx_train=60))
    next(predictions(f16.model, text))
    assert [r.getMessage() for r in caplog.records] == ["the model was trained on 60 tokens of context, 64 are used"]


def test_batches_change_nothing(f16: LLM, text: Text) -> None:
    other = LLM(books("f16"), n_threads=1, n_batch=7, n_ctx=N_CTX)
    assert list(perplexity(other.model, text)) == list(perplexity(f16.model, text))
    other.close()


def test_a_vocabulary_that_adds_eos_is_refused(f16: LLM, monkeypatch) -> None:
    assert chunk_bos(f16.tokenizer) == 1
    monkeypatch.setattr(f16.tokenizer, "add_bos", False)
    assert chunk_bos(f16.tokenizer) is None
    monkeypatch.setattr(f16.tokenizer, "add_eos", True)
    with pytest.raises(InputError, match="adds EOS"):
        chunk_bos(f16.tokenizer)


def test_logits_that_are_no_numbers_are_an_error(f16: LLM, text: Text, monkeypatch) -> None:
    monkeypatch.setattr(f16.model, "forward", lambda tokens, n_past, n: np.full((n, 2048), np.nan, np.float32))
    with pytest.raises(QllamaError, match="chunk 1: the model produced logits that are not finite"):
        list(perplexity(f16.model, text))


def test_work_in_blocks_changes_nothing(monkeypatch) -> None:
    logits = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32) * 4
    whole = module.log_sums(logits)
    monkeypatch.setattr(module, "BLOCK", 66)
    assert (module.log_sums(logits) == whole).all()
    assert whole == pytest.approx(np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rel=1e-6)


# ---- the base file


def as_llama_cpp_writes_it(text: Text, logits: list[np.ndarray]) -> bytes:
    """Number by number, in float32 where llama.cpp has float32."""
    f = np.float32
    n_vocab = logits[0].shape[1]
    out = b"_logits_" + struct.pack("<3i", text.n_ctx, n_vocab, len(text.chunks)) + text.chunks.astype("<i4").tobytes()
    for row in np.concatenate(logits):
        top, low = row.max(), max(row.min(), row.max() - f(16))
        log_sum = f(np.log(np.exp(row - top).sum(dtype=np.float64)))
        scale = f((top - low) / f(65535))
        inverse = f(1) / scale if scale else f(0)
        q = [int(np.rint(f(inverse * f(x - low)))) if x > low else 0 for x in row]
        out += struct.pack("<2f", scale, f(f(low - top) - log_sum)) + struct.pack(f"<{n_vocab}H", *q)
        out += bytes(2 * (n_vocab % 2))
    return out


@pytest.mark.parametrize("n_vocab", [16, 17])
def test_the_base_file_is_llama_cpp_s(n_vocab: int, tmp_path) -> None:
    rng = np.random.default_rng(n_vocab)
    text = Text(rng.integers(0, n_vocab, (2, 8)).astype(np.int32), 1)
    logits = [rng.normal(scale=scale, size=(3, n_vocab)).astype(np.float32) for scale in (3, 12)]
    logits[1][0] = 2.5  # all the same
    with BaseWriter(tmp_path / "base", text, n_vocab) as writer:
        for chunk in logits:
            writer.save(chunk)
    assert (tmp_path / "base").read_bytes() == as_llama_cpp_writes_it(text, logits)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    base = BaseFile(tmp_path / "base")
    assert (base.n_ctx, base.n_vocab, base.chunks.tolist()) == (8, n_vocab, text.chunks.tolist())
    assert len(list(BaseFile(tmp_path / "base", 1).rows())) == 1


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A base file for a vocabulary of 4: 2 chunks of 8 tokens."""
    text = Text(np.arange(16, dtype=np.int32).reshape(2, 8) % 4, 1)
    path = tmp_path / "small"
    path.write_bytes(as_llama_cpp_writes_it(text, [np.eye(3, 4, dtype=np.float32)] * 2))
    return path


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"_logitz_", "is not a file of predictions"),
        (8, struct.pack("<i", 4), "n_ctx=4"),
        (8, struct.pack("<i", -8), "n_ctx=-8"),
        (8, struct.pack("<i", 1 << 30), "n_ctx=1073741824"),
        (12, struct.pack("<i", 0), "a vocabulary of 0"),
        (12, struct.pack("<i", 5), "bytes, 2 chunks of 8 tokens need"),
        (16, struct.pack("<i", 0), "has 0 chunks"),
        (16, struct.pack("<i", 2**31 - 1), "chunks of 8 tokens need"),
        (20, struct.pack("<i", 4), "token 4 is not in its vocabulary of 4"),
        (20, struct.pack("<i", -1), "token -1 is not in"),
    ],
)
def test_a_damaged_base_file_is_refused(at: int, value: bytes, words: str, small: Path) -> None:
    good = small.read_bytes()
    small.write_bytes(good[:at] + value + good[at + len(value) :])
    with pytest.raises(FileError, match=re.escape(words)):
        BaseFile(small)


def test_base_files_that_are_cut_or_have_no_numbers_are_refused(small: Path) -> None:
    good = small.read_bytes()
    for n in (0, 7, 12, 19, 50, len(good) - 1):
        small.write_bytes(good[:n])
        with pytest.raises(FileError):
            BaseFile(small)
    small.write_bytes(good[:84] + struct.pack("<f", np.nan) + good[88:])
    with pytest.raises(FileError, match="the predictions of chunk 1 are damaged"):
        list(BaseFile(small).rows())
    with pytest.raises(FileError, match="cannot be read: No such file"):
        BaseFile(small.with_name("none"))


def test_a_base_file_of_another_vocabulary_is_refused(f16: LLM, small: Path) -> None:
    with pytest.raises(FileError, match="made with a vocabulary of 4 tokens, the model has 2048"):
        next(divergence(f16.model, BaseFile(small), 1))


def test_what_was_there_stays_until_all_is_written(tmp_path, monkeypatch) -> None:
    path, text, logits = tmp_path / "base", Text(np.zeros((2, 8), np.int32), 1), np.zeros((3, 4), np.float32)
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), BaseWriter(path, text, 4) as writer:
        writer.save(logits)
        raise KeyboardInterrupt
    with BaseWriter(path, text, 4) as writer:
        writer.save(logits)  # and not the second
    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(FileError, match="need 180 bytes, the disk has 100"):
        BaseWriter(path, text, 4)
    monkeypatch.undo()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileError, match="No space left"), BaseWriter(path, text, 4) as writer:
        monkeypatch.setattr(writer, "file", type("Full", (), {"write": full, "close": writer.file.close}))
        writer.save(logits)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("base", "old")]
    with pytest.raises(FileError, match="cannot be written"):
        BaseWriter(tmp_path / "no folder" / "base", text, 4)


# ---- divergence


@pytest.fixture(scope="module")
def base(f16: LLM, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of the F16 file."""
    path = tmp_path_factory.mktemp("base") / "base.kld"
    with BaseWriter(path, text, 2048) as writer:
        assert len(list(perplexity(f16.model, text, writer.save))) == 3
    return path


def test_the_divergence_is_that_of_the_distributions(f16: LLM, text: Text, base: Path) -> None:
    other = LLM(books("Q2_K"), n_threads=2)
    *_, found = divergence(other.model, BaseFile(base), 1)
    log_p, log_q = (np.concatenate(log_probabilities(llm, text)) for llm in (other, f16))
    other.close()
    rows, wanted = np.arange(len(log_p)), text.chunks[:, N_CTX // 2 + 1 :].reshape(-1)
    assert found.nll == pytest.approx(-log_p[rows, wanted], rel=1e-5, abs=2e-6)
    assert found.nll_base == pytest.approx(-log_q[rows, wanted], abs=2e-4)  # 16 bits for what spans up to 16
    assert found.kld == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(axis=1), rel=2e-3, abs=1e-4)
    assert found.p_diff == pytest.approx(np.exp(log_p[rows, wanted]) - np.exp(log_q[rows, wanted]), abs=2e-4)
    same = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    assert (found.same_top == same).mean() > 0.97  # two that are equal in 16 bits may change places
    assert found.mean_kld.mean > 0.05 and 0.5 < found.top.mean < 1


def test_a_model_does_not_diverge_from_itself(f16: LLM, base: Path) -> None:
    first, *_, last = divergence(f16.model, BaseFile(base), 1)
    assert (first.n_chunk, last.n_chunk, len(last.kld)) == (1, 3, 3 * (N_CTX // 2 - 1))
    step = 16 / 65535  # of the base's log-probabilities, which are rounded to it
    assert abs(last.kld).max() < step / 2 and abs(last.mean_kld.mean) < 1e-5
    assert abs(last.p_diff).max() < step and last.top.mean > 0.95
    assert last.ratio.mean == pytest.approx(1, abs=1e-5) and last.correlation == pytest.approx(1, abs=1e-6)


RNG = np.random.default_rng(1)
KNOWN = Divergence(2, *RNG.normal(2, 1, (3, 200)), RNG.normal(0, 0.1, 200), np.arange(200) < 150)


def test_errors_are_those_of_the_values_and_of_what_is_made_of_them() -> None:
    def error(values: np.ndarray) -> float:
        return float(values.std(ddof=1) / np.sqrt(len(values)))

    assert KNOWN.mean_kld == pytest.approx(Value(KNOWN.kld.mean(), error(KNOWN.kld)))
    assert KNOWN.log_ratio == pytest.approx(
        Value((KNOWN.nll - KNOWN.nll_base).mean(), error(KNOWN.nll - KNOWN.nll_base))
    )
    assert KNOWN.correlation == pytest.approx(np.corrcoef(KNOWN.nll, KNOWN.nll_base)[0, 1])
    assert KNOWN.ratio.mean == pytest.approx(KNOWN.ppl.mean / KNOWN.ppl_base.mean)
    assert KNOWN.difference.mean == pytest.approx(KNOWN.ppl.mean - KNOWN.ppl_base.mean)
    assert KNOWN.rms_p_diff.mean == pytest.approx(np.sqrt((KNOWN.p_diff**2).mean()))
    assert KNOWN.top == pytest.approx(Value(0.75, np.sqrt(0.75 * 0.25 / 199)))
    values = np.sort(KNOWN.kld)
    assert [percentile(values, f) for f in (0, 0.001, 0.5, 0.95, 1)] == pytest.approx(
        np.quantile(values, [0, 0.001, 0.5, 0.95, 1])
    )


def test_lines_are_llama_cpp_s() -> None:
    number = r" *-?\d+\.\d+"
    assert re.fullmatch(
        rf"   2    {number} ± {number}    {number} ± {number}    {number} ± {number}    {number} ± {number} %"
        rf"    75.000 ± {number} %",
        chunk_line(KNOWN),
    )
    assert TITLES.split("  ")[0] == "chunk" and len(chunk_line(KNOWN)) > 120
    lines = statistics(KNOWN).splitlines()
    # fmt: off
    assert [re.split(r" *: +", line)[0] for line in lines] == [
        "====== Perplexity statistics ======", "Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)", "",
        "====== KL divergence statistics ======", "Mean    KLD", "Maximum KLD", "99.9%   KLD", "99.0%   KLD",
        "95.0%   KLD", "90.0%   KLD", "Median  KLD", "10.0%   KLD", " 5.0%   KLD", " 1.0%   KLD", " 0.1%   KLD",
        "Minimum KLD", "",
        "====== Token probability statistics ======", "Mean    Δp", "Maximum Δp", "99.9%   Δp", "99.0%   Δp",
        "95.0%   Δp", "90.0%   Δp", "75.0%   Δp", "Median  Δp", "25.0%   Δp", "10.0%   Δp", " 5.0%   Δp", " 1.0%   Δp",
        " 0.1%   Δp", "Minimum Δp", "RMS Δp", "Same top p",
    ]
    # fmt: on
    assert lines[-1] == f"Same top p: 75.000 ± {100 * KNOWN.top.error:5.3f} %"
    assert lines[1] == f"Mean PPL(Q)                   : {KNOWN.ppl.mean:10.6f} ± {KNOWN.ppl.error:10.6f}"
    few = Divergence(1, *(getattr(KNOWN, a)[:9] for a in ("nll", "nll_base", "kld", "p_diff", "same_top")))
    assert statistics(few) == "" and few.mean_kld.error == 0
    assert as_json(KNOWN)["kld_percentiles"]["0.5"] == pytest.approx(np.median(KNOWN.kld))


# ---- the command


def run(capsys, *args: object, code: int = 0) -> tuple[str, str]:
    assert cli._main(["perplexity", *map(str, args)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_base_is_written_and_compared_with(capsys, tmp_path) -> None:
    path = tmp_path / "base.kld"
    common = ("-t", 2, "--kl-divergence-base", path)
    out, err = run(capsys, books("f16"), "-f", valid(), "-c", N_CTX, "--chunks", 4, "--ppl-output-type", 1, *common)
    *lines, last = out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "64", "128", "192"] and last.startswith(
        "Final estimate: PPL = "
    )
    assert re.search(r"perplexity: 4 chunks, \d+\.\d\d seconds per pass - ETA 0:\d\d", err)
    out, _ = run(capsys, "-m", books("Q4_K_M"), "--kl-divergence", *common)
    title, *rows = out.split("\n\n")[0].splitlines()
    assert title == TITLES and len(rows) == 4 and "\nSame top p: " in out
    out, _ = run(capsys, "-m", books("Q4_K_M"), "--kl-divergence", "--json", "--chunks", 2, *common)
    found = json.loads(out)
    assert (found["n_chunks"], found["n_ctx"], found["base"]) == (2, N_CTX, str(path))
    assert 0 < found["kld"] < 0.05 and found["kld_error"] > 0 and found["same_top"] > 0.8


def test_json_has_every_number(capsys) -> None:
    out, _ = run(capsys, books("f16"), "-f", valid(), "-c", N_CTX, "--chunks", 2, "--json", "-t", 2)
    found = json.loads(out)
    assert (found["n_chunks"], found["n_scored"], found["n_ctx"]) == (2, 62, N_CTX)
    assert found["running_ppl"][-1] == found["ppl"] > 1 and found["ppl_error"] > 0


def test_the_new_line_at_the_end_is_not_read(tmp_path) -> None:
    from qllama.cli.perplexity import clock, read_text

    (tmp_path / "a").write_bytes(b"text\n\n")
    assert read_text(str(tmp_path / "a")) == b"text\n"
    assert (clock(59.4), clock(61), clock(3725)) == ("0:59", "1:01", "1:02:05")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no text: -f is needed"),
        (("--ppl-stride", 32), "--ppl-stride is not implemented"),
        (("--hellaswag",), "--hellaswag is not implemented"),
        (("--kl-divergence",), "needs --kl-divergence-base FILE"),
        (("--kl-divergence", "--kl-divergence-base", "x", "-f", "y"), "the text is that of the base file"),
        (("--kl-divergence", "--kl-divergence-base", "/nonexistent"), "/nonexistent: cannot be read"),
        (("-f", "/nonexistent"), "/nonexistent: cannot read the text"),
        (("-f", __file__, "--chunks", 0), "--chunks 0"),
        (("-f", __file__, "-c", 4), "-c"),
        (("-f", "/dev/null"), "the text has 1 tokens, a context of 512 needs at least 1024"),
        (("a", "-m", "b"), "two models are given"),
    ],
)
def test_bad_usage_is_one_line(args: tuple[object, ...], words: str, capsys) -> None:
    out, err = run(capsys, *args, code=2)
    assert out == "" and words in err.splitlines()[-1] and err.startswith("qllama: error: ")


def test_a_context_that_is_not_the_base_s(capsys, base: Path, small: Path) -> None:
    _, err = run(capsys, "--kl-divergence", "--kl-divergence-base", base, "-c", N_CTX - 1, code=2)
    assert f"-c {N_CTX - 1}: {base} was made with {N_CTX}" in err
    _, err = run(capsys, "--kl-divergence", "--kl-divergence-base", small, "-c", N_CTX, code=2)
    assert "made with a vocabulary of 4 tokens" in err


def test_predictions_are_after_bos(f16: LLM, text: Text) -> None:
    (with_bos, wanted), *_ = predictions(f16.model, text)
    (without, _), *_ = predictions(f16.model, Text(text.chunks[1:], None))
    assert len(wanted) == len(with_bos) == len(without) == text.n_scored
    expected = f16.eval(text.chunks[1].tolist())[N_CTX // 2 : -1]
    assert (without == expected).all()
