"""llama.cpp as a worker of compare.py and startup.py, through llama-cpp-python's low-level interface.

    python benchmarks/peer.py MODEL -t 2 --ids 1,2,3

llama.cpp's defaults (mmap, repacked weights, f16 KV cache, automatic flash attention, batches of 2048 in
steps of 512), except for the threads, the context and the GPU, which is not used.
"""

import ctypes
import sys
from collections.abc import Sequence

import llama_cpp
import numpy as np
from worker import first_token, parser, run


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, user_data: int) -> None:
    pass


class LlamaCpp:
    """A `worker.Engine`. Lives as long as its process; nothing is freed."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), wanted)
        if not self._model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        self._context(n_ctx, n_threads)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.about = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "features": llama_cpp.llama_print_system_info().decode().strip(" |"),
        }

    def _context(self, n_ctx: int, n_threads: int) -> None:
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = n_ctx
        wanted.n_threads = wanted.n_threads_batch = n_threads
        wanted.n_batch, wanted.n_ubatch = 2048, 512
        self._n_batch = wanted.n_batch
        self._ctx = llama_cpp.llama_init_from_model(self._model, wanted)
        if not self._ctx:
            raise SystemExit(f"llama.cpp cannot make a context of {n_ctx}")

    def decode(self, ids: Sequence[int], n_past: int) -> None:
        if n_past == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._ctx), False)
        for first in range(0, len(ids), self._n_batch):
            part = ids[first : first + self._n_batch]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            # positions go on from the cache's end; logits of the batch's last token only
            code = llama_cpp.llama_decode(self._ctx, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if code:
                raise SystemExit(f"llama_decode failed with {code}")
        self._logits = llama_cpp.llama_get_logits_ith(self._ctx, -1)  # waits until they are there

    def logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(self._logits, (self.n_vocab,))

    def tokenize(self, text: str) -> list[int]:
        """Ids with the vocabulary's own BOS rule; special tokens in the text are parsed."""
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 2))()
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), True, True)
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """The text of a token."""
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:n]


def _main() -> None:
    cli = parser(__doc__)
    cli.add_argument("--text", help="print the text of the token after this text and exit")
    args = cli.parse_args()
    engine = LlamaCpp(args.model, args.ctx_size, args.threads)
    if args.text is None:
        run(engine, args)
    else:
        sys.stdout.buffer.write(engine.piece(first_token(engine, engine.tokenize(args.text))))
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
