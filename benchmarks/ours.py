"""qllama as a worker of compare.py and startup.py.

python benchmarks/ours.py MODEL -t 2 --ids 1,2,3
"""

from collections.abc import Sequence

import numpy as np
from worker import parser, run

from qllama import __version__, cpu
from qllama.errors import QllamaError
from qllama.model import Model


class Qllama:
    """A `worker.Engine`: qllama's Model with its defaults."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        self.model = Model(path, n_ctx=n_ctx, n_threads=n_threads)
        self.n_vocab = self.model.hparams.n_vocab
        self.about = {"version": __version__, "isa": cpu.isa().name}

    def decode(self, ids: Sequence[int], n_past: int) -> None:
        self._logits = self.model.forward(ids, n_past, n_out=1)

    def logits(self) -> np.ndarray:
        return self._logits[0]


if __name__ == "__main__":
    args = parser(__doc__).parse_args()
    try:
        run(Qllama(args.model, args.ctx_size, args.threads), args)
    except QllamaError as error:
        raise SystemExit(f"qllama: {error}") from None
