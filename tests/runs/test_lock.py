"""Locks: one owner, which every process can ask for, until its process ends."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from factories import kill_and_wait, locked_by_another_process

from lmconsole.runs import lock


def test_a_lock_has_no_owner_before_it_is_acquired(tmp_path: Path) -> None:
    assert lock.owner(tmp_path / "lock") is None
    (tmp_path / "lock").touch()
    assert lock.owner(tmp_path / "lock") is None


def test_asking_for_the_owner_and_trying_to_acquire_leave_the_lock_to_it(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path / "lock") as process:
        for _ in range(50):
            assert lock.owner(tmp_path / "lock") == lock.Owner(process.pid)
        assert lock.acquire(tmp_path / "lock") is None
        assert lock.acquire(tmp_path / "lock", timeout_s=0.1) is None


def test_a_lock_is_free_when_its_owner_was_killed(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path / "lock") as process:
        kill_and_wait(process)
        assert lock.owner(tmp_path / "lock") is None
        with lock.held(tmp_path / "lock", timeout_s=0.0) as mine:
            assert mine is not None


def test_the_owner_of_a_read_only_lock_file_is_known(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path / "lock") as process:
        (tmp_path / "lock").chmod(0o444)
        assert lock.owner(tmp_path / "lock") == lock.Owner(process.pid)


def test_a_waiting_process_gets_the_lock_when_it_is_released(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path / "lock") as process:
        process.kill()
        with lock.held(tmp_path / "lock", timeout_s=10.0) as mine:
            assert mine is not None


ASK = "import sys; from pathlib import Path; from lmconsole.runs import lock; print(lock.owner(Path(sys.argv[1])))"


def owner_seen_by_another_process(path: Path) -> str:
    command = [sys.executable, "-c", ASK, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_lock_is_held_during_its_block_only(tmp_path: Path) -> None:
    with lock.held(tmp_path / "lock", timeout_s=0.0):
        assert owner_seen_by_another_process(tmp_path / "lock") == f"Owner(pid={os.getpid()})"
    assert owner_seen_by_another_process(tmp_path / "lock") == "None"


def test_a_process_may_ask_for_its_own_lock_and_keeps_it(tmp_path: Path) -> None:
    """The console reads runs in one thread and queues them in another."""
    path = tmp_path / "lock"
    with lock.held(path, timeout_s=0.0):
        assert lock.owner(path) == lock.Owner(os.getpid())
        assert lock.acquire(path) is None
        assert owner_seen_by_another_process(path) == f"Owner(pid={os.getpid()})"
    assert lock.owner(path) is None


def test_threads_of_a_process_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    got: list[bool] = []

    def wait_for_it() -> None:
        with lock.held(path, timeout_s=20.0) as mine:
            got.append(mine is not None)

    with lock.held(path, timeout_s=0.0):
        assert lock.acquire(path, timeout_s=0.1) is None
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert owner_seen_by_another_process(path) == f"Owner(pid={os.getpid()})"
        assert got == []
    thread.join()
    assert got == [True]


def test_a_forked_child_does_not_hold_the_locks_of_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from lmconsole.runs import lock\n"
        "path = Path(sys.argv[1])\n"
        "held = lock.acquire(path)\n"
        "if os.fork() == 0:\n"
        "    owner = lock.owner(path)\n"
        "    os._exit(0 if owner is not None and owner.pid == os.getppid() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "lock")], check=True, timeout=60)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_unless_a_lock_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "lock"
    path.touch()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    monkeypatch.setattr("fcntl.fcntl", refuse)
    for ask in (lock.acquire, lock.owner):
        with pytest.raises(lock.NoLocksError, match=r"its file system has no file locks: '.*lock'"):
            ask(path)
    with pytest.raises(lock.NoLocksError):
        lock.check(tmp_path)
    for _ in range(2):
        with lock.held(path, 0.0, optional=True) as held:
            assert held is not None
            assert lock.acquire(path, optional=True) is None  # this process knows its own


def test_other_errors_of_a_lock_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.raises(OSError, match="Input/output error"):
        lock.acquire(tmp_path / "lock", optional=True)
    lock_folder = tmp_path / "locks"
    lock_folder.mkdir()
    monkeypatch.undo()
    lock.check(lock_folder)
    assert list(lock_folder.iterdir()) == []
