"""Memory, cores and disk space of this machine. Unknown is None, never 0."""

import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

MIB = 1024 * 1024


PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of this machine, or of the cgroup of this process if less is left there, as in a container."""

    used_mib: float
    total_mib: float
    available_mib: float
    """Memory that a new process could get without swapping; includes caches that can be dropped."""


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory:
    """Return the present use of memory."""
    import psutil  # takes longer than all of the console's own modules, whose first paint needs none of it

    memory = psutil.virtual_memory()
    host = HostMemory(used_mib=memory.used / MIB, total_mib=memory.total / MIB, available_mib=memory.available / MIB)
    groups = [
        HostMemory(used_mib=used / MIB, total_mib=limit / MIB, available_mib=max(limit - used, 0) / MIB)
        for limit, used in _memory_limits(proc, cgroups)
        if limit < memory.total
    ]
    return min([host, *groups], key=lambda each: each.available_mib)


def rss_mib(pid: int | None = None) -> float | None:
    """Return the resident memory of process ``pid`` (this one by default); None if it has ended or is inaccessible."""
    import psutil

    try:
        return float(psutil.Process(pid).memory_info().rss) / MIB
    except psutil.Error:
        return None


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the number of CPU cores that this process may keep busy, at least 1.

    It is bounded by the CPU affinity, by the CPUs of a SLURM job, and by the quota of the cgroup, rounded down since
    threads beyond a quota are throttled all together.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _slurm_cpus() or allowed)
    quota = min(_cpu_quotas(proc, cgroups), default=math.inf)
    return max(1, allowed if quota >= allowed else int(quota))


def _slurm_cpus() -> int | None:
    """Return the CPUs of the SLURM job that this process is part of: not every site binds processes to them."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        value = os.environ.get(name, "")
        if "SLURM_JOB_ID" in os.environ and value.isdecimal() and int(value):
            return int(value)
    return None


def threads_per_run(jobs: int) -> int:
    """Return the number of CPU threads for each of ``jobs`` runs at once."""
    return max(1, cores() // jobs)


def host_name() -> str:
    """Return the host name."""
    return socket.gethostname()


def free_disk_mib(path: Path) -> float | None:
    """Return the free space for this user at ``path``, which need not exist yet; None if unknown."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free / MIB
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return None


def _cpu_quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """Yield the limits in cores."""
    for version, folder in _groups(proc, cgroups, "cpu"):
        quota = _quota_v1(folder) if version == 1 else _quota_v2(folder)
        if quota is not None:
            yield quota


def _memory_limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield the limits and the use of memory in bytes, without caches that the kernel drops first."""
    for version, folder in _groups(proc, cgroups, "memory"):
        limit_name, used_name, cached_name = _MEMORY_NAMES[version]
        try:
            limit = int(_read(folder / limit_name))  # "max", no limit, is not a number
            used = int(_read(folder / used_name))
            cached = re.search(rf"^{cached_name} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        except (OSError, ValueError):
            continue
        yield limit, max(used - int(cached[1] if cached else 0), 0)


_MEMORY_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def _groups(proc: Path, cgroups: Path, controller: str) -> Iterator[tuple[Literal[1, 2], Path]]:
    """Yield version and folder of the cgroup of this process and of its parents. A container often sees its own group
    as the root, whatever its name in ``/proc``."""
    try:
        lines = _read(proc / "cgroup").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for root in _mounts(cgroups, controllers, controller):
            folder = root / group.strip("/")
            while folder.is_relative_to(root):
                yield (1 if controllers else 2), folder
                folder = folder.parent


def _mounts(cgroups: Path, controllers: str, controller: str) -> list[Path]:
    """Return the possible roots of a line's hierarchy in ``/proc/self/cgroup``: v2 names no controller, v1 several."""
    if not controllers:
        return [cgroups, cgroups / "unified"]
    return [cgroups / controller, cgroups / controllers] if controller in controllers.split(",") else []


def _read(path: Path) -> str:
    """Read a file of the kernel. Raises OSError or UnicodeDecodeError."""
    return path.read_text(encoding="utf-8")


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = _read(folder / "cpu.max").split()
        return int(quota) / int(period)  # "max", no limit, is not a number
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int(_read(folder / "cpu.cfs_quota_us"))
        period = int(_read(folder / "cpu.cfs_period_us"))
        return quota / period if quota > 0 else None  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
