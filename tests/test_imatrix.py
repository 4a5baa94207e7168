"""Importance matrices in files: read, written, refused."""

import struct

import numpy as np
import pytest
from conftest import shared
from gguf_maker import auto, gguf, tensor, write

from qllama.errors import FileError, InputError
from qllama.imatrix import ImportanceMatrix, Sums, load_imatrix, save_imatrix

MATRIX = ImportanceMatrix(
    {"blk.0.a.weight": Sums(np.array([[2.0, 8.0]]), np.array([4])),
     "blk.0.e.weight": Sums(np.array([[3.0, 6.0], [0.0, 0.0]]), np.array([3, 0]))},
    ["text"], 2, 512,
)  # fmt: skip


def legacy(name: bytes, n_calls: int, values: list[float], tail: bytes = b"") -> bytes:
    head = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", n_calls, len(values))
    return head + np.array(values, "<f4").tobytes() + tail


def test_a_file_of_llama_cpp():
    matrix = load_imatrix(shared("oracles/quant/qmoe.imatrix.gguf"))
    assert matrix.n_chunks == 1 and matrix.chunk_size == 512 and len(matrix.datasets) == 1
    experts = matrix.importance("blk.0.ffn_up_exps.weight", (64, 64, 8))
    assert experts is not None and experts.shape == (8, 64) and (experts > 0).all()
    assert matrix.importance("token_embd.weight", (64, 288)) is None
    with pytest.raises(FileError, match="8x64 values, the tensor needs 4x64"):
        matrix.importance("blk.0.ffn_up_exps.weight", (64, 64, 4))


@pytest.mark.parametrize("is_legacy", [False, True])
def test_written_and_read_again(tmp_path, is_legacy):
    save_imatrix(MATRIX, tmp_path / "m", legacy=is_legacy)
    matrix = load_imatrix(tmp_path / "m")
    assert matrix.datasets == ["text"] and matrix.n_chunks == 2
    np.testing.assert_allclose(matrix.importance("blk.0.a.weight", (2, 5)), [[0.5, 2.0]])
    np.testing.assert_allclose(matrix.importance("blk.0.e.weight", (2, 5, 2)), [[1.0, 2.0], [1.0, 1.0]])


def test_the_old_format(tmp_path):
    """Sums over calls; files end after the entries, or with the chunks and the name of the text."""
    path = write(tmp_path / "m.dat", legacy(b"blk.0.x", 4, [8.0, 2.0]))
    np.testing.assert_allclose(load_imatrix(path).importance("blk.0.x", (2, 3)), [[2.0, 0.5]])
    path = write(tmp_path / "m.dat", legacy(b"blk.0.x", 0, [8.0], struct.pack("<ii", 7, 2) + b"ab"))
    matrix = load_imatrix(path)
    assert matrix.n_chunks == 7 and matrix.datasets == ["ab"]
    np.testing.assert_allclose(matrix.importance("blk.0.x", (1, 3)), [[8.0]])


def test_filters():
    assert list(MATRIX.filtered(["e.weight"]).tensors) == ["blk.0.e.weight"]
    assert list(MATRIX.filtered([], [".e."]).tensors) == ["blk.0.a.weight"]
    with pytest.raises(InputError, match="not both"):
        MATRIX.filtered(["a"], ["b"])


KEYS = {"imatrix.datasets": ["t"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}


def entry(sums: bytes, counts: bytes, kind: str = "F32", height: int = 1) -> bytes:
    names = [tensor("x.in_sum2", (2, height), kind), tensor("x.counts", (1, 1), "F32", 32)]
    return gguf([auto(k, v) for k, v in KEYS.items()], names, sums.ljust(32, b"\0") + counts.ljust(32, b"\0"))


ONE = np.ones(1, "<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (legacy(b"x", 1, [1.0])[:-2], "cut off"),
        (struct.pack("<i", -1), "no importance matrix"),
        (struct.pack("<ii", 1, -5), "no importance matrix"),
        (b"ab", "no importance matrix"),
        (legacy(b"x", 1, [float("nan")]), "not finite"),
        (legacy(b"x", 1, [-1.0]), "negative"),
        (gguf([auto(k, v) for k, v in KEYS.items()]), "no importance matrix"),
        (gguf([auto("a", 1)], [tensor("x", (1,))], bytes(32)), "missing key imatrix.datasets"),
        (entry(2 * ONE, ONE, "F16"), "must be F32"),
        (entry(4 * ONE, ONE, height=2), "2 rows of sums, 1 counts"),
        (
            gguf([auto(k, v) for k, v in KEYS.items()], [tensor("x.in_sum2", (1,))], bytes(32)),
            "missing tensor x.counts",
        ),
    ],
)
def test_what_is_no_importance_matrix(tmp_path, content, message):
    with pytest.raises(FileError, match=message) as caught:
        load_imatrix(write(tmp_path / "m", content))
    assert "\n" not in str(caught.value)
