"""What the machine can do, on machines that are made up: fake /proc and /sys, fake CPUs, fake users."""

import os
import platform
import sys
import tempfile
from pathlib import Path

import pytest

from qllama import cpu
from qllama.errors import InputError

GIB = 1 << 30


class System:
    """A root folder with the files that Linux has under /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def cores(self, *siblings: str) -> None:
        """The hardware threads that share a core with cpu 0, 1, ..."""
        for i, text in enumerate(siblings):
            self.write(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list", text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """Eight cores, 64 GiB, no cgroups; absolute paths lead into tmp_path."""
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    made = System(tmp_path)
    made.cores(*"01234567")
    made.write("/proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable:   {64 * GIB // 1024} kB")
    return made


# ---- cores


def test_all_cores_without_limits(system):
    assert cpu.default_threads() == 8


def test_hardware_threads_of_a_core_count_once(system):
    system.cores("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
    assert cpu.default_threads() == 4


def test_affinity_counts(system, monkeypatch):
    system.cores("0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert cpu.default_threads() == 2


def test_a_machine_without_topology_or_affinity(system, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / "nothing" / str(path).lstrip("/"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cpu.default_threads() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu.default_threads() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.default_threads() == 1


V2 = ("0::/user.slice/app.scope", "/sys/fs/cgroup/user.slice/app.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("max 100000", 8), ("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
@pytest.mark.parametrize("where", V2[1:])
def test_the_quota_of_cgroup_v2_counts_wherever_it_is(where, limit, threads, system):
    system.write("/proc/self/cgroup", V2[0])
    system.write(f"{where}/cpu.max", limit)
    assert cpu.default_threads() == threads


def test_the_tightest_quota_counts(system):
    system.write("/proc/self/cgroup", V2[0])
    for where, limit in zip(V2[1:], ("600000 100000", "200000 100000", "max 100000"), strict=True):
        system.write(f"{where}/cpu.max", limit)
    assert cpu.default_threads() == 2


@pytest.mark.parametrize(("quota", "threads"), [(-1, 8), (400000, 4), (150000, 1), (50000, 1)])
@pytest.mark.parametrize("where", ["cpu/docker/0a1b", "cpu"])  # inside a container, its own group is the root
def test_the_quota_of_cgroup_v1_counts(where, quota, threads, system):
    system.write("/proc/self/cgroup", "5:memory:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n1:name=systemd:/docker/0a1b")
    system.write(f"/sys/fs/cgroup/{where}/cpu.cfs_quota_us", str(quota))
    system.write(f"/sys/fs/cgroup/{where}/cpu.cfs_period_us", "100000")
    assert cpu.default_threads() == threads


@pytest.mark.parametrize("broken", ["", "max", "many 100000", "100000 0", "-5 100000"])
def test_a_quota_that_makes_no_sense_is_none(broken, system):
    system.write("/proc/self/cgroup", V2[0])
    system.write(f"{V2[1]}/cpu.max", broken)
    assert cpu.default_threads() == 8


def test_real_functions_run_on_this_machine():
    assert 1 <= cpu.default_threads() <= (os.cpu_count() or 1)
    assert cpu.max_threads() >= 64
    assert 0 < cpu.available_memory() < 1 << 60


# ---- memory


def test_available_memory_without_cgroups(system):
    assert cpu.available_memory() == 64 * GIB


def test_the_limit_of_cgroup_v2_less_its_use_but_for_pages_of_files(system):
    system.write("/proc/self/cgroup", V2[0])
    system.write(f"{V2[1]}/memory.max", str(8 * GIB))
    system.write(f"{V2[1]}/memory.current", str(5 * GIB))
    assert cpu.available_memory() == 3 * GIB
    system.write(f"{V2[1]}/memory.stat", f"anon {2 * GIB}\ninactive_file {2 * GIB}\nactive_file {GIB // 2}")
    assert cpu.available_memory() == 3 * GIB + 2 * GIB + GIB // 2
    system.write(f"{V2[2]}/memory.max", str(4 * GIB))
    system.write(f"{V2[2]}/memory.current", str(5 * GIB))
    assert cpu.available_memory() == 0, "the parent's limit counts too"


def test_no_limit_of_cgroup_v2_is_none(system):
    system.write("/proc/self/cgroup", V2[0])
    system.write(f"{V2[1]}/memory.max", "max")
    system.write(f"{V2[1]}/memory.current", str(5 * GIB))
    assert cpu.available_memory() == 64 * GIB


def test_the_limit_of_cgroup_v1(system):
    system.write("/proc/self/cgroup", "5:memory:/docker/0a1b")
    system.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", str(9223372036854771712))  # what no limit is there
    system.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", str(GIB))
    assert cpu.available_memory() == 64 * GIB
    system.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", str(3 * GIB))
    assert cpu.available_memory() == 2 * GIB


def test_memory_of_a_system_without_proc(system, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / "nothing")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert cpu.available_memory() == 4096 * 1000


def test_allocated_memory_is_zero_and_writable():
    for nbytes in (0, 1, 5 << 20):
        memory = cpu.allocate(nbytes)
        assert len(memory) >= nbytes and not any(memory[:1000])
        memory[0:1] = b"x"


def test_memory_that_is_not_there_is_an_oserror():
    with pytest.raises(OSError):
        cpu.allocate(1 << 60)


# ---- ISA


def isa(monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> cpu.ISA:
    monkeypatch.setenv("QLLAMA_ISA", wanted or "")
    return cpu.isa.__wrapped__()


def fake_cpu(monkeypatch: pytest.MonkeyPatch, name: str, features: str, machine: str = "x86_64") -> None:
    monkeypatch.setattr(cpu, "host", lambda: (name, dict.fromkeys(features.split(), True) | {"prefer-256-bit": True}))
    monkeypatch.setattr(platform, "machine", lambda: machine)


AVX2 = "avx2 fma f16c bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq avx512vnni"
CPUS = {
    "icelake-server": (AVX512, "AMD64", "avx512"),
    "skylake-avx512": (AVX512.replace("avx512vnni", ""), "x86_64", "avx2"),
    "alderlake": (f"{AVX2} avxvnni", "x86_64", "avxvnni"),
    "haswell": (AVX2, "x86_64", "avx2"),
    "sandybridge": ("avx", "x86_64", "generic"),
    "cortex-a72": ("neon crc", "aarch64", "neon"),
    "neoverse-n1": ("lse dotprod", "aarch64", "neon-dotprod"),
    "neoverse-v2": ("lse dotprod i8mm sve", "aarch64", "neon-dotprod"),
    "apple-m1": ("lse dotprod", "arm64", "neon-dotprod"),
    "apple-m4": ("lse dotprod i8mm", "arm64", "neon-dotprod"),
    "oryon-1": ("lse dotprod", "ARM64", "neon-dotprod"),
    "snapdragon": (AVX512, "arm64", "neon"),  # whatever features of this name were to mean there
}


@pytest.mark.parametrize("name", CPUS)
def test_the_best_isa_of_a_cpu(name, monkeypatch):
    features, machine, best = CPUS[name]
    fake_cpu(monkeypatch, name, features, machine)
    assert isa(monkeypatch, None).name == best
    assert isa(monkeypatch, "generic").name == "generic"


@pytest.mark.parametrize("wanted", ["avx512", "neon", "AVX2", "sse"])
def test_an_isa_that_the_cpu_cannot_run_is_refused_by_name(wanted, monkeypatch):
    """What it has not is SIGILL, or an abort inside LLVM."""
    fake_cpu(monkeypatch, "haswell", AVX2)
    with pytest.raises(InputError) as caught:
        isa(monkeypatch, wanted)
    assert str(caught.value) == f"QLLAMA_ISA={wanted}: this CPU (haswell) can run avx2, generic"


def test_an_arm_cpu_is_never_compiled_for_with_what_it_lacks(monkeypatch):
    """LLVM's name of a CPU implies features that a system may hide: what is switched on is what the system tells."""
    fake_cpu(monkeypatch, "neoverse-v2", "lse", "aarch64")
    assert isa(monkeypatch, None).name == "neon"
    with pytest.raises(InputError, match=r"neon-dotprod: this CPU \(neoverse-v2\) can run neon, generic$"):
        isa(monkeypatch, "neon-dotprod")
    for name, target in (
        ("neon-dotprod", ("generic", "+lse,+dotprod")),
        ("neon", ("generic", "")),
    ):
        monkeypatch.setattr(cpu, "isa", lambda name=name: next(i for i in cpu.ISAS if i.name == name))
        assert cpu.llvm_target() == target


@pytest.mark.parametrize(
    ("hwcap", "found"),  # as Linux gives it to a Cortex-A72, a Neoverse N1 and a Neoverse V2
    [(0x8FF, ""), (0x119FFF, "lse dotprod"), (0xEFFFFFFF, "lse dotprod")],
)
def test_linux_tells_what_an_arm_cpu_has(hwcap, found, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "_auxiliary", {16: hwcap}.__getitem__)
    features = cpu.host.__wrapped__()[1]
    assert [f for f in cpu.ARM_FEATURES if features[f]] == found.split()


def test_macos_tells_what_an_arm_cpu_has(monkeypatch):
    told = {"hw.optional.arm.FEAT_LSE": 1, "hw.optional.arm.FEAT_DotProd": 1}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(cpu, "_sysctl", lambda name: told.get(name, 0))
    features = cpu.host.__wrapped__()[1]
    assert [f for f in cpu.ARM_FEATURES if features[f]] == ["lse", "dotprod"]


def test_a_system_that_is_not_asked_has_base_neon(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "machine", lambda: "ARM64")
    assert not any(cpu.host.__wrapped__()[1].get(f) for f in cpu.ARM_FEATURES)


@pytest.mark.skipif(sys.platform != "linux", reason="the auxiliary vector is Linux's")
def test_the_auxiliary_vector_is_read():
    assert cpu._auxiliary(6) == os.sysconf("SC_PAGE_SIZE")  # AT_PAGESZ


def test_the_target_is_the_isa_s_cpu_or_this_one_with_wide_vectors(monkeypatch):
    fake_cpu(monkeypatch, "icelake-server", AVX512)
    for name, target in (
        ("generic", ("generic", "")),
        ("avx2", ("x86-64-v3", "")),
        ("avxvnni", ("x86-64-v3", "+avxvnni")),
    ):
        monkeypatch.setattr(cpu, "isa", lambda name=name: next(i for i in cpu.ISAS if i.name == name))
        assert cpu.llvm_target() == target
    monkeypatch.setattr(cpu, "isa", lambda: cpu.ISAS[0])
    name, features = cpu.llvm_target()
    assert name == "icelake-server"
    assert set(features.split(",")) == {f"+{f}" for f in AVX512.split()} | {"-prefer-256-bit"}


# ---- caches


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX owners and modes here")
def test_a_folder_is_private_if_no_one_else_can_write(tmp_path, monkeypatch):
    for mode, private in ((0o700, True), (0o755, True), (0o775, False), (0o757, False), (0o777, False)):
        tmp_path.chmod(mode)
        assert cpu.is_private(tmp_path) is private
    tmp_path.chmod(0o700)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert not cpu.is_private(tmp_path)


def test_where_a_cache_may_go(monkeypatch, tmp_path):
    for name in ("QLLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", str(tmp_path)))
    monkeypatch.setattr(sys, "platform", "linux")
    *first, last = cpu.cache_roots()
    assert first == [tmp_path / ".cache/qllama"]
    assert last.parent == Path(tempfile.gettempdir()) and last.name.startswith("qllama-")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cpu.cache_roots() == [tmp_path / "xdg/qllama", *first, last]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu.cache_roots() == [tmp_path / "xdg/qllama", tmp_path / "Library/Caches/qllama", last]
    monkeypatch.setenv("QLLAMA_CACHE", str(tmp_path / "mine"))
    assert cpu.cache_roots() == [tmp_path / "mine"]


def test_a_user_without_a_home_has_the_temporary_folder(monkeypatch):
    for name in ("QLLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert [r.parent for r in cpu.cache_roots()] == [Path(tempfile.gettempdir())]
