"""The vocabulary's other half: what threads need of the machine. Nothing here computes.

Memory order is chosen for machines that reorder what x86 does not. Threads hand over data in one way only: all that a
thread wrote before an `atomic_store` (release) or a read-modify-write is seen by the thread whose `atomic_load`
(acquire) or read-modify-write reads that value. So plain loads and stores are right for whatever is handed over so, and
for nothing else. Read-modify-writes are sequentially consistent. That is more than counters need, and what two threads
need that each set a flag and then look at the other's: release and acquire alone let both miss. It costs no barrier
(x86: the locked instruction; ARM: one instruction that acquires and releases, or a pair of exclusives).
"""

from llvmlite import ir
from numba import types

from qllama import cpu
from qllama.simd.build import I32, I64, addr, call, pointer, primitive
from qllama.simd.target import target

i64 = types.int64


@primitive(i64, addr, i64)
def atomic_add(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> ir.Value:
    """Add v; returns what was there."""
    return b.atomic_rmw("add", pointer(b, a, I64), v, "seq_cst")


@primitive(i64, addr)
def atomic_load(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    return b.load_atomic(pointer(b, a, I64), "acquire", 8)


@primitive(types.void, addr, i64)
def atomic_store(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> None:
    b.store_atomic(v, pointer(b, a, I64), "release", 8)


@primitive(i64, addr, i64)
def atomic_exchange(b: ir.IRBuilder, a: ir.Value, v: ir.Value) -> ir.Value:
    return b.atomic_rmw("xchg", pointer(b, a, I64), v, "seq_cst")


@primitive(types.void)
def in_order(b: ir.IRBuilder) -> None:
    """No load moves across: else LLVM may load all that a block needs first, and spill it. No instruction."""
    b.fence("acq_rel", "singlethread")


@primitive(types.void)
def pause(b: ir.IRBuilder) -> None:
    target.pause(b)


@primitive(types.void)
def yield_core(b: ir.IRBuilder) -> None:
    """Let another thread have this core (sched_yield of the C library)."""
    call(b, "sched_yield", I32)


@primitive(i64, addr)
def monotonic_ns(b: ir.IRBuilder, scratch: ir.Value) -> ir.Value:
    """The C library's monotonic clock in ns; 16 bytes at `scratch` are overwritten."""
    clock_id = ir.Constant(I32, cpu.CLOCK_ID)
    call(b, "clock_gettime", I32, clock_id, b.inttoptr(scratch, I64.as_pointer()))
    seconds = b.load(pointer(b, scratch, I64))
    nanos = b.load(pointer(b, b.add(scratch, ir.Constant(I64, 8)), I64))
    return b.add(b.mul(seconds, ir.Constant(I64, 10**9)), nanos)


@primitive(i64, i64, addr, addr, addr, i64)
def call_kernel(
    b: ir.IRBuilder, fn: ir.Value, args: ir.Value, step: ir.Value, ctl: ir.Value, tid: ir.Value
) -> ir.Value:
    """Call a compiled kernel (Numba's convention: result and exception pointers first); returns its status."""
    scratch = b.alloca(I64)
    excinfo = b.alloca(ir.IntType(8).as_pointer())
    ret = b.bitcast(scratch, ir.IntType(8).as_pointer().as_pointer())
    kind = ir.FunctionType(I32, [ret.type, excinfo.type, I64, I64, I64, I64])
    return b.sext(b.call(b.inttoptr(fn, kind.as_pointer()), [ret, excinfo, args, step, ctl, tid]), I64)
