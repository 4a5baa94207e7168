"""Perplexity and divergence as text, llama.cpp's lines, and for JSON. Returns values, prints nothing."""

from typing import Any

import numpy as np

from qllama.evaluate.divergence import Divergence, Value, percentile
from qllama.evaluate.perplexity import Estimate

TITLES = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
    "            Same top p"
)
ENOUGH = 100  # scored tokens from which on percentiles mean something

KLD_FRACTIONS = (1.0, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0)
P_DIFF_FRACTIONS = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)
NAMES = {1.0: "Maximum", 0.5: "Median", 0.0: "Minimum"}


def name(fraction: float) -> str:
    return NAMES.get(fraction, f"{100 * fraction:4.1f}%")


def final(estimate: Estimate) -> str:
    return f"Final estimate: PPL = {estimate.ppl:.4f} +/- {estimate.error:.5f}"


def detailed(estimate: Estimate, n_ctx: int) -> str:
    """The line of a chunk by `--ppl-output-type 1`."""
    position = (estimate.n_chunk - 1) * n_ctx
    return f"{position:8d}  {estimate.ppl:.4f}  {estimate.log_ppl:4f}  {estimate.log_error:4f}"


def chunk_line(found: Divergence) -> str:
    """The line of a chunk in the table that TITLES begins."""
    plain = ((found.ppl, "9.4f"), (found.log_ratio, "10.5f"), (found.mean_kld, "10.5f"))
    cells = [f"    {v.mean:{width}} ± {v.error:{width}}" for v, width in plain]
    cells += [f"    {_percent(v, '6.3f')}" for v in (found.rms_p_diff, found.top)]
    return f"{found.n_chunk:4d}" + "".join(cells)


def _percent(value: Value, error_width: str = "5.3f") -> str:
    return f"{100 * value.mean:6.3f} ± {100 * value.error:{error_width}} %"


def statistics(found: Divergence) -> str:
    """All that is known in the end; empty for too few tokens."""
    if len(found.nll) < ENOUGH:
        return ""
    titles = ("====== Perplexity", "====== KL divergence", "====== Token probability")
    sections = zip(titles, (_perplexity(found), _kld(found), _p_diff(found)), strict=True)
    return "\n\n".join("\n".join([f"{title} statistics ======", *lines]) for title, lines in sections)


def _perplexity(found: Divergence) -> list[str]:
    rows = [
        ("Mean PPL(Q)", found.ppl), ("Mean PPL(base)", found.ppl_base),
        ("Mean ln(PPL(Q)/PPL(base))", found.log_ratio), ("Mean PPL(Q)/PPL(base)", found.ratio),
        ("Mean PPL(Q)-PPL(base)", found.difference),
    ]  # fmt: skip
    lines = [f"{title:<30}: {value.mean:10.6f} ± {value.error:10.6f}" for title, value in rows]
    lines.insert(2, f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * found.correlation:6.2f}%")
    return lines


def _kld(found: Divergence) -> list[str]:
    values, mean = np.sort(found.kld), found.mean_kld
    lines = [f"{name(f):<7} KLD: {percentile(values, f):10.6f}" for f in KLD_FRACTIONS]
    return [f"Mean    KLD: {mean.mean:10.6f} ± {mean.error:10.6f}", *lines]


def _p_diff(found: Divergence) -> list[str]:
    values = np.sort(found.p_diff)
    lines = [f"{name(f):<7} Δp: {100 * percentile(values, f):6.3f}%" for f in P_DIFF_FRACTIONS]
    return [
        f"Mean    Δp: {_percent(found.mean_p_diff)}", *lines, f"RMS Δp    : {_percent(found.rms_p_diff)}",
        f"Same top p: {_percent(found.top)}",
    ]  # fmt: skip


def as_json(found: Estimate | Divergence) -> dict[str, Any]:
    """Numbers by name; of a `Divergence` also the percentiles, fraction -> value."""
    if isinstance(found, Estimate):
        return {"n_chunks": found.n_chunk, "n_scored": found.count, "ppl": found.ppl, "ppl_error": found.error}
    values = {
        "ppl": found.ppl, "ppl_base": found.ppl_base, "ln_ppl_ratio": found.log_ratio, "ppl_ratio": found.ratio,
        "ppl_difference": found.difference, "kld": found.mean_kld, "p_diff": found.mean_p_diff,
        "rms_p_diff": found.rms_p_diff, "same_top": found.top,
    }  # fmt: skip
    numbers: dict[str, Any] = {"n_chunks": found.n_chunk, "n_scored": len(found.nll)}
    for key, value in values.items():
        numbers |= {key: value.mean, f"{key}_error": value.error}
    kld, p_diff = np.sort(found.kld), np.sort(found.p_diff)
    return numbers | {
        "ln_ppl_correlation": found.correlation,
        "kld_percentiles": {str(f): percentile(kld, f) for f in KLD_FRACTIONS},
        "p_diff_percentiles": {str(f): percentile(p_diff, f) for f in P_DIFF_FRACTIONS},
    }
