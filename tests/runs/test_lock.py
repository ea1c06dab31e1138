"""Locks: one owner, known to everybody, gone with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lmconsole.runs import lock

HOLD = """
import sys, time
from pathlib import Path
from lmconsole.runs import lock
held = lock.acquire(Path(sys.argv[1]))
print("held" if held else "lost", flush=True)
time.sleep(60)
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_nobody_holds_a_lock_that_nobody_took(tmp_path: Path) -> None:
    assert lock.owner(tmp_path / "lock") is None
    (tmp_path / "lock").touch()
    assert lock.owner(tmp_path / "lock") is None


def test_the_owner_is_known_by_its_pid_and_keeps_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    try:
        for _ in range(50):
            assert lock.owner(tmp_path / "lock") == lock.Owner(process.pid)
        assert lock.acquire(tmp_path / "lock") is None
        assert lock.acquire(tmp_path / "lock", timeout_s=0.1) is None
    finally:
        end(process)


def test_the_lock_is_free_once_its_owner_was_killed(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert lock.owner(tmp_path / "lock") is None
    mine = lock.acquire(tmp_path / "lock")
    assert mine is not None
    mine.release()


def test_a_read_only_file_can_be_asked_about(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    try:
        (tmp_path / "lock").chmod(0o444)
        assert lock.owner(tmp_path / "lock") == lock.Owner(process.pid)
    finally:
        end(process)


def test_waiting_gets_the_lock_when_it_is_given_up(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    process.kill()
    with lock.held(tmp_path / "lock", timeout_s=10.0) as mine:
        assert mine is not None
    process.communicate()
