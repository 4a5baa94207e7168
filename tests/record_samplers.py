"""Records what llama.cpp's samplers do: `record_samplers.py VOCABULARY.gguf` writes data/samplers.json.

Needs llama-cpp-python; not run in CI. The tests take `logits_of` from here: logits need not be stored.
"""

import ctypes
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "data" / "samplers.json"


def logits_of(seed: int, n: int, shape: str) -> np.ndarray:
    """(n,) float32, the same on every machine: sums and products of uniform numbers, no library function."""
    rng = Random(seed)
    x = np.array([sum(rng.random() for _ in range(4)) - 2 for _ in range(n)])
    if shape == "flat":
        x = 0.3 * x
    if shape == "peaked":
        x = 8 * x * x * x
    if shape == "wide":
        x = 7 * x - 3
    if shape == "holes":
        x = np.where(np.arange(n) % 3 == 1, -np.inf, 4 * x)
    return x.astype(np.float32)


def history_of(seed: int, n: int, n_vocab: int, breakers: list[list[int]] = ()) -> list[int]:
    """Token ids with many repetitions: phrases of a few tokens, now and then a breaker, again and again."""
    rng = Random(seed)
    phrases = [[int(rng.random() * n_vocab) for _ in range(int(rng.random() * 7) + 1)] for _ in range(3)]
    phrases += [breakers[int(rng.random() * len(breakers))] for _ in breakers[:2]]
    out: list[int] = []
    while len(out) < n:
        out += phrases[int(rng.random() * len(phrases))]
    return out[:n]


SHAPES = ("flat", "wide", "peaked", "holes")
MIROSTAT_SHAPES = ("wide", "peaked")  # in "flat", llama.cpp's Mirostat 1 converts a float beyond int to int
SIZES = (8, 24, 70, 200, 500)


def grid(**values: tuple) -> list[dict[str, Any]]:
    """Every combination of the values."""
    out: list[dict[str, Any]] = [{}]
    for name, choices in values.items():
        out = [{**o, name: choice} for o in out for choice in choices]
    return out


# Sampler -> the options to try; each option set meets every shape and one size.
CASES: dict[str, list[dict[str, Any]]] = {
    "top_k": grid(top_k=(1, 2, 7, 40, 100)),
    "top_p": grid(top_p=(0.0, 0.1, 0.5, 0.9, 0.99), min_keep=(0, 5)),
    "min_p": grid(min_p=(0.01, 0.05, 0.3, 1.0), min_keep=(0, 5)),
    "typ_p": grid(typical_p=(0.05, 0.2, 0.5, 0.95), min_keep=(0, 5)),
    "top_n_sigma": grid(top_n_sigma=(0.2, 1.0, 1.7, 3.0)),
    "xtc": grid(xtc_probability=(1.0,), xtc_threshold=(0.01, 0.05, 0.1, 0.3, 0.5), min_keep=(0, 9)),
    "temperature": grid(temp=(0.1, 0.8, 1.7), dynatemp_range=(0.0, 0.5), dynatemp_exp=(0.5, 1.0, 2.0)),
    "logit_bias": [{"logit_bias": {"1": 2.5, "5": -3.25, "7": -np.inf}}],
    "penalties": grid(
        repeat_last_n=(5, 64, 300),
        repeat_penalty=(1.0, 1.3, 0.8),
        frequency_penalty=(0.0, 0.25),
        presence_penalty=(0.5, -0.5),
    ),
    "dry": [
        {"dry_multiplier": 0.8, "dry_sequence_breaker": breakers, **o}
        for breakers in (["\n", ":", '"', "*"], [], [". ", "he said", "\n\n", "on"])
        for o in grid(dry_base=(1.0, 1.3, 1.75), dry_allowed_length=(0, 1, 2, 4), dry_penalty_last_n=(20, 64, 300))
    ],
}

# Several samplers one after the other.
ORDERS = (
    "penalties;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
    "temperature;min_p;top_p;penalties;top_k",
    "top_k;penalties;temperature;xtc;typ_p",
    "typ_p;top_n_sigma;xtc;penalties;top_p",
)
TOGETHER = {
    "repeat_last_n": 64,
    "repeat_penalty": 1.2,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.0,
    "top_n_sigma": 2.5,
    "top_k": 50,
    "typical_p": 0.95,
    "top_p": 0.9,
    "min_p": 0.02,
    "xtc_probability": 1.0,
    "xtc_threshold": 0.1,
    "temp": 0.7,
    "dynatemp_range": 0.0,
    "dynatemp_exp": 1.0,
}


class Recorder:
    """llama.cpp's low-level samplers, fed with our logits."""

    def __init__(self, vocabulary: str) -> None:
        import llama_cpp

        self.lib = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(vocabulary.encode(), params)
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def array(self, logits: np.ndarray) -> Any:
        data = (self.lib.llama_token_data * len(logits))()
        for i, x in enumerate(logits.tolist()):
            data[i] = self.lib.llama_token_data(i, x, 0.0)
        return self.lib.llama_token_data_array(data, len(logits), -1, False), data

    def sampler(self, name: str, n_vocab: int, o: dict[str, Any]) -> Any:
        lib, keep = self.lib, o.get("min_keep", 0)
        if name == "logit_bias":
            pairs = [lib.llama_logit_bias(int(t), b) for t, b in o["logit_bias"].items()]
            return lib.llama_sampler_init_logit_bias(n_vocab, len(pairs), (lib.llama_logit_bias * len(pairs))(*pairs))
        if name == "dry":
            texts = [b.encode() for b in o["dry_sequence_breaker"]]
            values = o["dry_multiplier"], o["dry_base"], o["dry_allowed_length"], o["dry_penalty_last_n"]
            return lib.llama_sampler_init_dry(self.vocab, *values, (ctypes.c_char_p * len(texts))(*texts), len(texts))
        if name == "mirostat":
            if o["mirostat"] == 1:
                return lib.llama_sampler_init_mirostat(n_vocab, 1, o["mirostat_ent"], o["mirostat_lr"], 100)
            return lib.llama_sampler_init_mirostat_v2(1, o["mirostat_ent"], o["mirostat_lr"])
        init, *arguments = {
            "top_k": (lib.llama_sampler_init_top_k, "top_k"),
            "top_p": (lib.llama_sampler_init_top_p, "top_p", keep),
            "min_p": (lib.llama_sampler_init_min_p, "min_p", keep),
            "typ_p": (lib.llama_sampler_init_typical, "typical_p", keep),
            "top_n_sigma": (lib.llama_sampler_init_top_n_sigma, "top_n_sigma"),
            "xtc": (lib.llama_sampler_init_xtc, "xtc_probability", "xtc_threshold", keep, 1),
            "temperature": (lib.llama_sampler_init_temp_ext, "temp", "dynatemp_range", "dynatemp_exp"),
            "penalties": (lib.llama_sampler_init_penalties, n_vocab, "repeat_last_n", "repeat_penalty",
                          "frequency_penalty", "presence_penalty"),
        }[name]  # fmt: skip
        return init(*(o[a] if isinstance(a, str) else a for a in arguments))

    def case(self, names: list[str], options: dict[str, Any], source: list[Any], history: list[int]) -> dict[str, Any]:
        """What samplers in this order leave after `history`."""
        logits = logits_of(*source)
        array, _data = self.array(logits)
        for sampler in [self.sampler(name, len(logits), options) for name in names]:
            for token in history:
                self.lib.llama_sampler_accept(sampler, token)
            self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
        left = {array.data[i].id: array.data[i].logit for i in range(array.size) if array.data[i].logit > -np.inf}
        found = {"samplers": ";".join(names), "options": options, "logits": source}
        return {**found, **({"history": history} if history else {}), **_told(left, logits)}

    def mirostat(self, options: dict[str, Any], seed: int) -> dict[str, Any]:
        """A run of tokens: what was left each time, and which of them was drawn."""
        sampler = self.sampler("mirostat", 200, options)
        steps = []
        for i in range(8):
            array, _data = self.array(logits_of(seed + i, 200, MIROSTAT_SHAPES[i % 2]))
            self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
            ids = [array.data[j].id for j in range(array.size)]
            steps.append({"left": sorted(ids), "drawn": ids[array.selected]})
        return {"options": options, "seed": seed, "steps": steps}

    def text(self, token: int) -> str:
        buffer = ctypes.create_string_buffer(64)
        tokens = (self.lib.llama_token * 1)(token)
        n = self.lib.llama_detokenize(self.vocab, tokens, 1, buffer, 64, False, True)
        return buffer.raw[:n].decode("latin-1")

    def breakers(self, texts: list[str]) -> list[list[int]]:
        """Ways to write the texts in tokens: in one, or one that ends as it begins and then the rest."""
        words = [self.text(t) for t in range(self.n_vocab)]
        out = []
        for text in texts:
            out += [[t] for t, word in enumerate(words) if text in word][:1]
            for i in range(1, len(text)):
                out += [[t, *self.tokens(text[i:])] for t, word in enumerate(words) if word.endswith(text[:i])][:1]
        return out

    def tokens(self, text: str) -> list[int]:
        raw, out = text.encode(), (self.lib.llama_token * 64)()
        return out[: self.lib.llama_tokenize(self.vocab, raw, len(raw), out, 64, False, False)]


def _told(left: dict[int, float], logits: np.ndarray) -> dict[str, Any]:
    """What is left, briefly: all ids as null, and only the logits that changed."""
    everything = np.flatnonzero(logits > -np.inf).tolist()
    changed = {t: float(f"{x:.9g}") for t, x in left.items() if np.float32(x) != logits[t]}
    return {"ids": None if sorted(left) == everything else sorted(left), "changed": changed}


def main(vocabulary: str) -> None:
    recorder = Recorder(vocabulary)
    cases = []
    for name, choices in CASES.items():
        for i, options in enumerate(choices):
            for shape in SHAPES if name not in ("penalties", "dry") else ["wide"]:
                n = recorder.n_vocab if name == "dry" else SIZES[(i + len(cases)) % len(SIZES)]
                n = min(n, 24) if name == "temperature" else n
                texts = options.get("dry_sequence_breaker", [])
                history = history_of(i, 90, n, recorder.breakers(texts)) if name in ("penalties", "dry") else []
                cases.append(recorder.case([name], options, [len(cases), n, shape], history))
    for i, order in enumerate(ORDERS):
        for shape in SHAPES[:3]:
            history = history_of(i, 90, 200)
            cases.append(recorder.case(order.split(";"), TOGETHER, [len(cases), 200, shape], history))
    mirostat = [
        recorder.mirostat({"mirostat": version, "mirostat_ent": tau, "mirostat_lr": eta}, seed)
        for version in (1, 2)
        for tau, eta, seed in ((5.0, 0.1, 100), (3.0, 0.5, 200), (1.0, 1.0, 300))
    ]
    tails = {b[i:]: None for c in CASES["dry"] for b in c["dry_sequence_breaker"] for i in range(1, len(b))}
    found = {
        "cases": cases,
        "mirostat": mirostat,
        "texts": [recorder.text(t) for t in range(recorder.n_vocab)],
        "tokenized": {tail: recorder.tokens(tail) for tail in tails},
    }
    OUT.write_text(json.dumps(found, separators=(",", ":")).replace('{"samplers"', '\n{"samplers"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
