"""Memory, cores and disk space of this machine. Unknown is None, never 0."""

import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

MIB = 1024 * 1024


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of this machine."""

    used_mib: float
    total_mib: float
    available_mib: float
    """Memory that a new process could get without swapping; includes caches that can be dropped."""


def host_memory() -> HostMemory:
    """Return the present use of memory."""
    memory = psutil.virtual_memory()
    return HostMemory(used_mib=memory.used / MIB, total_mib=memory.total / MIB, available_mib=memory.available / MIB)


def rss_mib(pid: int | None = None) -> float | None:
    """Return the resident memory of process ``pid`` (this one by default); None if it has ended or is inaccessible."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / MIB
    except psutil.Error:
        return None


def cores(proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPU cores that this process may keep busy, at least 1.

    It is bounded by the CPU affinity and by the quota of the cgroup, rounded down since threads beyond a quota are
    throttled all together.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_cpu_quotas(proc, cgroups), default=math.inf)
    return max(1, allowed if quota >= allowed else int(quota))


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
    """Yield the limits, in cores, of the cgroup of this process and of its parents, for cgroup v1 and v2. A container
    often sees its own group as the root, whatever its name in ``/proc``."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for root in _mounts(cgroups, controllers):
            folder = root / group.strip("/")
            while folder.is_relative_to(root):
                quota = _quota_v1(folder) if controllers else _quota_v2(folder)
                if quota is not None:
                    yield quota
                folder = folder.parent


def _mounts(cgroups: Path, controllers: str) -> list[Path]:
    """Return the possible roots of a line's hierarchy in ``/proc/self/cgroup``: v2 names no controller, v1 several."""
    if not controllers:
        return [cgroups, cgroups / "unified"]
    return [cgroups / "cpu", cgroups / controllers] if "cpu" in controllers.split(",") else []


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period)  # "max", no limit, is not a number
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
        return quota / period if quota > 0 else None  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
