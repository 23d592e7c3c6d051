"""What the benchmark of serving asks of the machine: AMX withheld, a quota of one CPU, its peak, MKL as on Intel.

Linux on x86 only, and what cannot be had is None.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PERIOD = 100_000  # microseconds, as on Lambda's hosts by default


class Peak(NamedTuple):
    """Billions of operations per CPU second that one core can do at most."""

    int8: float
    fp32: float


def flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


def intel() -> bool:
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text()


def withhold_amx() -> None:
    """From now on the kernel refuses AMX to this process and all that it starts, which then do without.

    A program must ask the kernel for AMX's registers: arch_prctl(ARCH_REQ_XCOMP_PERM). A filter answers EPERM.
    """

    class Step(ctypes.Structure):
        _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step)))

    load, equal, end = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001
    steps = (Step * 6)(
        Step(load, 0, 0, 0), Step(equal, 0, 3, 158),  # the number of the call: arch_prctl
        Step(load, 0, 0, 16), Step(equal, 0, 1, 0x1023),  # its first argument
        Step(end, 0, 0, refuse), Step(end, 0, 0, allow),
    )  # fmt: skip
    system = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp = (38, 1, 0, 0, 0), (22, 2, ctypes.byref(Program(len(steps), steps)))
    for call in (no_new_privileges, seccomp):
        if system.prctl(*call):
            raise OSError(ctypes.get_errno(), "AMX cannot be withheld")


def peak(scratch: Path) -> Peak | None:
    """The peak as peak.c measures it, without AMX; None where no C compiler is."""
    program = scratch / "peak"
    if not program.is_file() and not _compiled("-march=native", str(HERE / "peak.c"), "-o", str(program)):
        return None
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return Peak(*map(float, done.stdout.split()))


def as_on_intel(scratch: Path) -> Path | None:
    """A library to preload, with which MKL takes the path of Intel's processors; None where no C compiler is."""
    source, library = scratch / "mkl.c", scratch / "mkl.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    return library if _compiled("-shared", "-fPIC", str(source), "-o", str(library)) else None


def _compiled(*words: str) -> bool:
    compiler = shutil.which("cc")
    if not compiler or platform.machine() != "x86_64":
        return False
    return not subprocess.run([compiler, "-O3", *words], check=False).returncode


@contextmanager
def one_cpu() -> Iterator[Path | None]:
    """A control group with the quota of one CPU, to whose cgroup.procs a process is written; None without the right."""
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (first if first.is_dir() else second) / f"bench-serve-{os.getpid()}"
    try:
        group.mkdir()
        if (group / "cpu.cfs_quota_us").is_file():
            (group / "cpu.cfs_period_us").write_text(f"{PERIOD}")
            (group / "cpu.cfs_quota_us").write_text(f"{PERIOD}")
        else:
            (group / "cpu.max").write_text(f"{PERIOD} {PERIOD}")
    except OSError:
        with suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()
