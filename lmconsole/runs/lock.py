"""POSIX record locks: one process writes, any other can ask who without disturbing it.

A record lock belongs to a process and is gone when the process is, however it ended. Closing any descriptor of the
file gives the lock up, so a process that holds one must not open that file again. Asking (``F_GETLK``) takes nothing;
probing by locking would, for a moment, and make the real owner fail.
"""

import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DARWIN = sys.platform == "darwin"
_FLOCK = (
    "@qqihh" if _DARWIN else "@hhqqi"
)  # struct flock: start, len, pid, type, whence / type, whence, start, len, pid
_POLL_S = 0.02


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. ``pid`` is None where the kernel cannot tell (another host, another container)."""

    pid: int | None


class Lock:
    """A lock that this process holds, until ``release`` or the process's end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up; the file stays, since removing it would let two processes hold "the" lock."""
        os.close(self._descriptor)


def acquire(path: Path, timeout_s: float = 0.0) -> Lock | None:
    """Take the lock on ``path`` (made if need be), waiting up to ``timeout_s``; None if somebody else keeps it.

    Raises OSError if the file cannot be made or opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(path, descriptor)
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise


@contextmanager
def held(path: Path, timeout_s: float) -> Iterator[Lock | None]:
    """``acquire`` for the length of a ``with`` block."""
    lock = acquire(path, timeout_s)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def owner(path: Path) -> Owner | None:
    """Who holds the lock on ``path``, or None. Must not be asked by the holder itself: it would lose the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _DARWIN:
            query = struct.pack(_FLOCK, 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
            _, _, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        else:
            query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return None
    return Owner(pid if pid > 0 else None)
