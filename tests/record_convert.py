"""Records what llama.cpp's converter writes: `record_convert.py convert_hf_to_gguf.py` writes data/convert.json.

Needs what that script needs (PyTorch, transformers); not run in CI. The test takes `summary` from here.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_maker import MODELS, make

from qllama.gguf import open_gguf
from qllama.metadata import ArrayValue

OUT = Path(__file__).parent / "data" / "convert.json"


def summary(path: Path) -> dict[str, Any]:
    """Keys and tensors of a file in its order; long arrays and all tensors as the start of their SHA-256."""
    with open_gguf(path) as gguf:
        keys = {}
        for key, value in gguf.metadata.items():
            kind = gguf.metadata.type_of(key)
            if isinstance(value, ArrayValue):
                raw = bytes(value.buffer[value.start : value.start + value.nbytes])
                value = [value.type, value.count, hashlib.sha256(raw).hexdigest()[:32]]
            keys[key] = [kind, value]
        tensors = {}
        for name, t in gguf.tensors.items():
            digest = hashlib.sha256(gguf.data(name).tobytes()).hexdigest()[:32]
            tensors[name] = [t.type.name, list(t.shape), digest]
    return {"keys": keys, "tensors": tensors}


def main(script: str) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            where, out = make(Path(folder), name), Path(folder) / "out.gguf"
            for kind in ("auto", "f32", "q8_0"):
                command = [sys.executable, script, str(where), "--outfile", str(out), "--outtype", kind]
                subprocess.run(command, check=True)
                found.setdefault(name, {})[kind] = summary(out)
    OUT.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
