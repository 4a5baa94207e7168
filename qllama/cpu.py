"""What this machine can do: its ISA, the cores this process may use, its memory. The system is asked here only."""

import contextlib
import errno
import mmap
import os
import platform
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qllama.errors import InputError, QllamaError


@dataclass(frozen=True)
class ISA:
    """What kernels are compiled for. `cpu` and `features` are LLVM's; an empty `cpu` means the host's own."""

    name: str
    cpu: str
    needs: tuple[str, ...]  # LLVM feature names that the host must have
    machine: str = ""  # platform.machine(), empty for any
    features: str = ""  # LLVM's, beyond those of `cpu`


# Best first; the first that the host has is used unless QLLAMA_ISA names another.
ISAS = (
    ISA("avx512", "", ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma", "f16c"), "x86_64"),
    ISA("avxvnni", "x86-64-v3", ("avx2", "fma", "f16c", "bmi2", "avxvnni"), "x86_64", "+avxvnni"),
    ISA("avx2", "x86-64-v3", ("avx2", "fma", "f16c", "bmi2"), "x86_64"),
    ISA("neon-dotprod", "generic", ("lse", "dotprod"), "aarch64", "+lse,+dotprod"),
    ISA("neon", "generic", (), "aarch64"),  # which every 64-bit ARM has
    ISA("generic", "generic", ()),
)


@cache
def host() -> tuple[str, dict[str, bool]]:
    """LLVM's name of this CPU and its features, by LLVM's names."""
    from llvmlite import binding

    features = dict(binding.get_host_cpu_features())
    if _machine() == "aarch64":
        features |= _arm_features()
    return binding.get_host_cpu_name(), features


def _machine() -> str:
    return {"AMD64": "x86_64", "amd64": "x86_64", "ARM64": "aarch64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )


# What ISAs need of ARM, by LLVM's names: the bit in a word of Linux's auxiliary vector, and macOS's name. LLVM itself
# knows of dotprod only from the names of CPUs.
AT_HWCAP = 16
ARM_FEATURES = {"lse": (8, "FEAT_LSE"), "dotprod": (20, "FEAT_DotProd")}


def _arm_features() -> dict[str, bool]:
    """What the system says this ARM CPU has, of ARM_FEATURES; nothing on a system that is not asked."""
    if sys.platform == "darwin":
        return {name: bool(_sysctl(f"hw.optional.arm.{feat}")) for name, (_, feat) in ARM_FEATURES.items()}
    if sys.platform == "linux":
        return {name: bool(_auxiliary(AT_HWCAP) >> bit & 1) for name, (bit, _) in ARM_FEATURES.items()}
    return {}


def _auxiliary(word: int) -> int:
    """A word of the vector that Linux gives to a process."""
    import ctypes

    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(getauxval(word))


def supports(isa: ISA) -> bool:
    """Whether this CPU has all that `isa` needs."""
    features = host()[1]
    return isa.machine in ("", _machine()) and all(features.get(f) for f in isa.needs)


@cache
def isa() -> ISA:
    """The ISA of this process: QLLAMA_ISA, else the best one. Raises InputError for one this CPU cannot run."""
    usable = [i for i in ISAS if supports(i)]
    wanted = os.environ.get("QLLAMA_ISA", "")
    if not wanted:
        return usable[0]
    for i in usable:
        if i.name == wanted:
            return i
    names = ", ".join(i.name for i in usable)
    raise InputError(f"QLLAMA_ISA={wanted}: this CPU ({host()[0]}) can run {names}")


def llvm_target() -> tuple[str, str]:
    """(CPU name, feature string) that kernels are compiled for."""
    chosen = isa()
    if chosen.cpu:
        return chosen.cpu, chosen.features
    name, features = host()
    # Our vectors are 512 bits wide on purpose; LLVM would split them on CPUs tuned for 256.
    wanted = {**features, "prefer-256-bit": False}
    return name, ",".join(f"{'+' if on else '-'}{f}" for f, on in sorted(wanted.items()))


# ---- time

CLOCK_ID = getattr(time, "CLOCK_MONOTONIC", 1)  # for the C library's clock_gettime, which compiled code calls


def now_ns() -> int:
    """The clock that compiled code reads (`simd.monotonic_ns`)."""
    return time.clock_gettime_ns(CLOCK_ID)


# ---- cores


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical(cpus: set[int]) -> int:
    """How many physical cores `cpus` are on; hardware threads of one core count once."""
    cores = set()
    for c in cpus:
        try:
            path = f"/sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list"
            cores.add(Path(path).read_text().strip())
        except OSError:
            return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or len(cpus)
    return len(cores)


def _sysctl(name: str) -> int:
    if sys.platform != "darwin":
        return 0
    import ctypes

    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value


def _cgroups() -> list[Path]:
    """The directories of this process's cgroups and their ancestors, v1 and v2."""
    out: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return out
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / controller
            here = root / path.lstrip("/")
            out += [here, *[p for p in here.parents if p.is_relative_to(root)]]
    return out


def _number(path: Path) -> int | None:
    """The integer in a cgroup file; None when it is absent or says there is no limit."""
    try:
        text = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def _quota() -> float:
    """The CPU time per second that cgroups leave to this process; infinity without a limit."""
    best = float("inf")
    for d in _cgroups():
        try:
            quota, period = (d / "cpu.max").read_text().split()[:2]
        except (OSError, ValueError):
            quota, period = (
                str(_number(d / "cpu.cfs_quota_us") or "max"),
                str(_number(d / "cpu.cfs_period_us") or 1),
            )
        if quota.isdigit() and int(quota) > 0 and int(period) > 0:
            best = min(best, int(quota) / int(period))
    return best


def default_threads() -> int:
    """Physical cores this process may use: affinity and cgroup quota included, at least 1."""
    return max(1, int(min(_physical(_allowed()), _quota())))


def processors() -> int:
    """Hardware threads this process may run on."""
    return len(_allowed())


def max_threads() -> int:
    """The most threads that are accepted: a few per hardware thread, beyond that it is a mistake."""
    return max(64, 4 * (os.cpu_count() or 1))


# ---- memory

LLVM_MEMORY = 16 << 20  # bytes


def _meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 62  # unknown: the allocation itself will tell


def _address_space() -> int:
    """Bytes that `ulimit -v` leaves."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return 1 << 62
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    except (ImportError, AttributeError, ValueError, OSError):  # no such limit, or nobody says what is in use
        return 1 << 62
    return max(0, limit - used)


def available_memory() -> int:
    """Bytes this process may still take: the system's estimate, capped by limits (ulimit -v, cgroups) less their use.

    Pages of files that a cgroup holds in its cache count as free, as the kernel gives them back.
    """
    best = min(_meminfo(), _address_space())
    for d in _cgroups():
        limit, used = _number(d / "memory.max"), _number(d / "memory.current")
        if limit is None:
            limit, used = _number(d / "memory.limit_in_bytes"), _number(d / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            best = min(best, limit - used + _file_pages(d))
    return max(0, best)


def check_memory() -> None:
    """Raises QllamaError when there is too little memory for LLVM, which would end the process without a reason."""
    free = available_memory()
    if free < LLVM_MEMORY:
        raise QllamaError(f"out of memory: {free} bytes are left, loading kernels needs {LLVM_MEMORY}")


def _file_pages(cgroup: Path) -> int:
    try:
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def allocate(nbytes: int) -> mmap.mmap:
    """Private zeroed memory, in huge pages where the system has them; pages become resident when they are written.

    Raises OSError when there is none. (numpy.zeros would do, but says nothing of huge pages and may not return memory.)
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, max(1, nbytes))
    memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


# ---- caches


def lock(handle: int) -> bool:
    """Lock an open file until it is closed; False when another process has it, True where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows does not let go of a file that is open: nothing to lock
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # others: a file system without locks
    return True


def is_private(directory: Path) -> bool:
    """Whether only this user can put files into `directory`, or something else in its place.

    Always true where there are no POSIX owners.
    """
    if not hasattr(os, "getuid"):
        return True
    stat = directory.stat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        return False
    above = [d.stat() for d in directory.resolve().parents]
    return all(s.st_uid in (0, os.getuid()) and (not s.st_mode & 0o002 or s.st_mode & 0o1000) for s in above)


def cache_roots() -> list[Path]:
    """Where a cache may go, in order of preference."""
    if os.environ.get("QLLAMA_CACHE"):
        return [Path(os.environ["QLLAMA_CACHE"])]
    roots = []
    if os.environ.get("XDG_CACHE_HOME"):
        roots.append(Path(os.environ["XDG_CACHE_HOME"]) / "qllama")
    home = Path(os.path.expanduser("~"))
    if home.is_absolute():
        roots.append(home / ("Library/Caches/qllama" if sys.platform == "darwin" else ".cache/qllama"))
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    roots.append(Path(tempfile.gettempdir()) / f"qllama-{user}")
    return roots
