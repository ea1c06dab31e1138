"""Memory, cores and disk space are those of the machine on which the tests run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmconsole.telemetry import host

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_resident_memory_grows_with_the_memory_in_use() -> None:
    before = host.rss_mib()
    ballast = bytearray(os.urandom(1)) * (64 * host.MIB)
    after = host.rss_mib()
    assert before is not None
    assert after is not None
    assert 48 < after - before < 96, len(ballast)


def test_the_memory_of_another_process_is_known_until_it_ends() -> None:
    script = "print('running', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = host.rss_mib(child.pid)
        child.communicate(b"\n", timeout=30)
    assert alive is not None
    assert alive > 1
    assert host.rss_mib(child.pid) is None


def test_the_machine_has_more_memory_than_it_uses() -> None:
    memory = host.host_memory()
    assert 0 < memory.used_mib < memory.total_mib
    assert 0 < memory.available_mib <= memory.total_mib


def test_cores_without_a_quota_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert host.cores(tmp_path, tmp_path) == ALLOWED


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_cores_follow_the_affinity() -> None:
    script = (
        "import os, pathlib; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from lmconsole.telemetry.host import cores; print(cores(pathlib.Path('/nowhere'), pathlib.Path('/nowhere')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"


def quota_v2(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text)


def quota_v1(folder: Path, quota: int, period: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("text", "expected"),
    [("250000 100000\n", 2), ("50000 100000\n", 1), ("6400000 100000\n", 64), ("max 100000\n", 64), ("", 64)],
)
def test_a_quota_limits_the_cores(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cgroup").write_text("0::/jobs/this one\n")
    quota_v2(tmp_path / "sys" / "jobs" / "this one", text)
    assert host.cores(tmp_path, tmp_path / "sys") == expected


@pytest.mark.usefixtures("many_cores")
def test_the_smallest_quota_of_all_parent_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/jobs/inner\n")
    quota_v2(tmp_path / "sys" / "jobs", "300000 100000\n")
    quota_v2(tmp_path / "sys" / "jobs" / "inner", "900000 100000\n")
    assert host.cores(tmp_path, tmp_path / "sys") == 3


@pytest.mark.usefixtures("many_cores")
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/system.slice/docker-1234.scope\n")
    quota_v2(tmp_path / "sys", "400000 100000\n")
    assert host.cores(tmp_path, tmp_path / "sys") == 4


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "expected"), [(500000, 5), (-1, 64), (1000, 1)])
def test_quotas_of_cgroup_v1_count_too(tmp_path: Path, mount: str, quota: int, expected: int) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/docker/1234\n4:memory:/docker/1234\n0::/\n")
    quota_v1(tmp_path / "sys" / mount / "docker" / "1234", quota, 100000)
    assert host.cores(tmp_path, tmp_path / "sys") == expected


def limit_v2(folder: Path, limit: str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\nactive_file 1\n")


def limit_v1(folder: Path, limit: int, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 5\ntotal_inactive_file {cached}\n")


def memory_mib(root: Path) -> tuple[float, float, float]:
    found = host.host_memory(root, root / "sys")
    return found.used_mib, found.total_mib, found.available_mib


@pytest.mark.parametrize("group", ["/jobs/this one", "/", "/system.slice/docker-1234.scope"])
def test_the_limit_of_a_container_bounds_the_memory(tmp_path: Path, group: str) -> None:
    (tmp_path / "cgroup").write_text(f"0::{group}\n")
    limit_v2(tmp_path / "sys", str(64 * host.MIB), 40 * host.MIB, cached=24 * host.MIB)
    assert memory_mib(tmp_path) == (16, 64, 48)
    limit_v2(tmp_path / "sys", str(64 * host.MIB), 80 * host.MIB)
    assert memory_mib(tmp_path) == (80, 64, 0)


def test_a_limit_of_cgroup_v1_bounds_the_memory(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("9:cpu:/docker/1\n4:memory:/docker/1\n0::/\n")
    limit_v1(tmp_path / "sys" / "memory" / "docker" / "1", 64 * host.MIB, 32 * host.MIB, cached=8 * host.MIB)
    limit_v1(tmp_path / "sys" / "memory", 2**63 - 4096, 10 * host.MIB)
    assert memory_mib(tmp_path) == (24, 64, 40)


def test_the_group_with_the_least_memory_left_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/jobs/inner\n")
    limit_v2(tmp_path / "sys" / "jobs", str(32 * host.MIB), 30 * host.MIB)
    limit_v2(tmp_path / "sys" / "jobs" / "inner", str(16 * host.MIB), 1 * host.MIB)
    assert memory_mib(tmp_path) == (30, 32, 2)


@pytest.mark.parametrize("text", ["max", "", "many", str(2**62)])
def test_without_a_limit_the_memory_is_that_of_the_machine(tmp_path: Path, text: str) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    limit_v2(tmp_path / "sys", text, 1)
    assert host.host_memory(tmp_path, tmp_path / "sys").total_mib == host.host_memory(tmp_path, tmp_path).total_mib


def test_free_disk_space_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    existing = host.free_disk_mib(tmp_path)
    missing = host.free_disk_mib(tmp_path / "not" / "yet")
    assert existing is not None
    assert missing is not None
    assert existing > 0
    assert missing == pytest.approx(existing, rel=0.1)


def test_free_disk_space_below_a_file_is_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert host.free_disk_mib(tmp_path / "file" / "below") == pytest.approx(host.free_disk_mib(tmp_path), rel=0.1)


def test_the_machine_has_a_name() -> None:
    assert host.host_name() == os.uname().nodename
