"""Plans: buffers, printing, and binding to memory. No kernel runs; machine code is made up."""

import struct

import numpy as np
import pytest

from qllama import jit
from qllama.kernels.layouts import F32, LAYOUTS, Q8
from qllama.plan import GUARD, OUTPUTS, BoundPlan, Buffer, Plan, Weight, padded_vector

# Addresses of kernels that are never called.
SCALE = jit.Kernel("test.scale", 0x1000, (("x", "i64"), ("eps", "f32"), ("ld_x", "i64")), 0)
PRODUCT = jit.Kernel("test.product", 0x2000, (("w", "i64"), ("x", "i64"), ("out", "i64")), 0)
KERNELS = {k.name: k for k in (SCALE, PRODUCT)}


def example() -> tuple[Plan, Weight]:
    plan = Plan()
    x = plan.buffer("x", 40)
    q8, out = plan.buffer("x.q8", 64, kind=Q8), plan.buffer("out", 5, OUTPUTS)
    w = Weight("w.weight", LAYOUTS["Q8_0"], 5, 64, address=0x5000)
    plan.add("test.scale", x=x, eps=1e-5, ld_x=x.ld)
    plan.add("test.product", rows=OUTPUTS, meet=False, w=w, x=q8, out=out)
    return plan, w


def test_the_rows_of_a_buffer_are_whole_panels_or_blocks():
    assert Buffer("x", 40).ld == 64 * 4
    assert Buffer("x", 64).ld == 64 * 4
    assert Buffer("x", 96, kind=Q8).ld == 3 * 48


def test_layers_share_buffers_of_one_name():
    plan = Plan()
    assert plan.buffer("x", 40) == plan.buffer("x", 40)
    assert len(plan.buffers) == 1
    with pytest.raises(AssertionError, match="two shapes for buffer x"):
        plan.buffer("x", 41)


def test_a_plan_prints_its_buffers_and_operations():
    plan, _ = example()
    first, *lines = str(plan).splitlines()
    assert first == "2 operations, 3 buffers"
    assert [line.split() for line in lines[:3]] == [
        ["x", "f32", "[n_tokens,", "40]"], ["x.q8", "q8", "[n_tokens,", "64]"], ["out", "f32", "[n_out,", "5]"],
    ]  # fmt: skip
    assert lines[3].split() == ["0", "test.scale", "x=x", "eps=1e-05"]
    assert lines[4].split() == ["1", "test.product", "w=w.weight", "x=x.q8", "out=out", "&"]


def test_an_array_prints_as_its_length():
    plan = Plan()
    plan.add("test.scale", x=np.zeros(7), eps=1.0, ld_x=28)
    assert "x=[7]" in str(plan)


def test_a_plan_says_how_much_memory_it_needs():
    plan, _ = example()
    rows = 10 + 6  # what the last of the largest tiles may have behind
    spans = [-(-(rows * ld + GUARD) // 64) * 64 for ld in (256, 96, 128)]
    assert plan.nbytes(10) == sum(spans)
    assert plan.kernels() == {"test.scale", "test.product"}


def test_a_weight_takes_whole_panels():
    w = Weight("w", LAYOUTS["Q4_0"], 33, 64)
    assert w.n_block == 2
    assert w.nbytes == 64 * 2 * 18


def test_binding_writes_the_arguments_in_the_order_of_the_kernel():
    plan, w = example()
    bound = BoundPlan(plan, 3, KERNELS)
    x, q8, out = (bound.arguments[i, jit.FIELDS + j] for i, j in ((0, 0), (1, 1), (1, 2)))
    eps = bound.arguments[0, jit.FIELDS + 1]
    assert struct.unpack("<fi", struct.pack("<q", eps)) == (np.float32(1e-5), 0)
    assert bound.arguments[0, jit.FIELDS + 2] == 256
    assert bound.arguments[1, jit.FIELDS] == w.address
    assert q8 - x >= 3 * 256 + GUARD and out - q8 >= 3 * 96 + GUARD
    assert all(at % 64 == 0 for at in (x, q8, out))
    assert bound.tape.tolist() == [
        [0x1000, bound.arguments[0].ctypes.data, 1], [0x2000, bound.arguments[1].ctypes.data, 0],
    ]  # fmt: skip
    assert all(a.ctypes.data % 64 == 0 for a in bound.arguments), "row counters are alone on their cache lines"


def test_the_step_says_how_many_rows_an_operation_has():
    plan, _ = example()
    bound = BoundPlan(plan, 3, KERNELS)
    bound.set_step(n_tokens=3, n_out=2, n_past=100)
    assert [bound.step[at // 8] for at in bound.arguments[:, jit.ROWS]] == [3, 2]
    assert bound.step[jit.STEP.index("n_past")] == 100


def test_a_view_is_the_memory_itself():
    plan, _ = example()
    bound = BoundPlan(plan, 3, KERNELS)
    view = bound.view("x", 2)
    assert view.shape == (2, 40) and view.dtype == np.float32 and not view.any()
    view[1, 39] = 7
    assert bound.view("x", 3)[1, 39] == 7
    assert view.ctypes.data == bound.arguments[0, jit.FIELDS]
    for name, n_rows in (("x", 4), ("x.q8", 1)):
        with pytest.raises(AssertionError):
            bound.view(name, n_rows)


def test_what_does_not_fit_the_kernel_is_refused():
    plan = Plan()
    plan.add("test.scale", x=plan.buffer("x", 8), eps=0.5, ld_x=1, extra=2)
    with pytest.raises(AssertionError, match=r"test\.scale takes .*'eps'.*got .*'extra'"):
        BoundPlan(plan, 1, KERNELS)
    plan, w = example()
    w.address = 0
    with pytest.raises(AssertionError, match=r"w\.weight is not packed"):
        BoundPlan(plan, 1, KERNELS)


def test_memory_of_rows_that_are_not_used_is_not_taken():
    """A plan for 2**24 rows can be bound anywhere: 4 GiB that are only promised."""
    plan = Plan()
    plan.buffer("x", 64, kind=F32)
    bound = BoundPlan(plan, 1 << 24, {})
    assert not bound.view("x", 1).any()


@pytest.mark.parametrize(("n", "length"), [(1, 32), (32, 32), (33, 64)])
def test_padded_vector(n, length):
    values = np.arange(1, n + 1, dtype=np.float32)
    got = padded_vector(values)
    assert got.dtype == np.float32 and len(got) == length and got.ctypes.data % 64 == 0
    assert np.array_equal(got[:n], values) and not got[n:].any()
