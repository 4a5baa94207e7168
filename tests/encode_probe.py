"""Prints the SHA-256 of what the encoders of this ISA make of the same values. Run by test_quant.py."""

import hashlib
import json
import sys

import numpy as np

from qllama.quant import quantize


def main(type_names: list[str]) -> None:
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((9, 768)) * 10.0 ** rng.integers(-6, 3, (9, 1))).astype(np.float16)
    importance = rng.random(768)
    blocks = {name: [quantize(x, name, w).tobytes() for w in (None, importance)] for name in type_names}
    print(json.dumps({name: [hashlib.sha256(b).hexdigest() for b in both] for name, both in blocks.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
