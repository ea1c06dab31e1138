"""POSIX record locks: one process holds a lock, and any other can ask which one without disturbing it.

A record lock belongs to a process and disappears with it, however the process ends. It does not keep threads of that
process apart, and closing any descriptor of the file releases it. This module therefore knows the locks of its own
process, and never opens their files again. Asking (``F_GETLK``) locks nothing; probing by locking would take the lock
for a moment, and the rightful owner could fail to get it.
"""

import errno
import fcntl
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmconsole.files import open_file

_DARWIN = sys.platform == "darwin"
_FLOCK = "@qqihh" if _DARWIN else "@hhqqi"
"""Layout of ``struct flock``: start, len, pid, type, whence on macOS; type, whence, start, len, pid on Linux."""
_POLL_S = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""
NO_LOCKS_HINT = "Have it mounted with locks (Lustre: flock or localflock), or choose another folder with --runs."
_own: set[str] = set()
"""Absolute paths of the locks that this process holds."""
_mutexes: dict[str, threading.Lock] = {}
"""Mutex for each lock file, held while the file is opened or closed: a file that blocks delays no other."""
os.register_at_fork(after_in_child=_own.clear)  # a child does not inherit record locks


class NoLocksError(OSError):
    """The file system has no locks."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Process that holds a lock. ``pid`` is None if the kernel does not know it: another host or container has it."""

    pid: int | None

    @property
    def is_own(self) -> bool | None:
        """Whether it is a process of this user, as the kernel says; None if that is unknown."""
        import psutil

        if self.pid is None:
            return None
        try:
            return psutil.Process(self.pid).uids().effective == os.geteuid()
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied:
            return False


class Lock:
    """A lock that this process holds until ``release`` or its end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock. The file stays: if it were removed, two processes could each lock a file of this name."""
        with _guarded(self.path) as key:
            _own.discard(key)
            os.close(self._descriptor)


def acquire(path: Path, timeout_s: float = 0.0, *, optional: bool = False) -> Lock | None:
    """Acquire the lock on ``path``, which is created if it does not exist, within ``timeout_s``. Return None if another
    process, or another thread of this one, keeps it.

    ``optional``: on a file system without locks, return a lock that keeps no process out. Something else decides which
    one may go on.

    Raises:
        NoLocksError: the file system has no locks, and the lock is not ``optional``.
        OSError: the file cannot be created or opened, or is a link, a pipe, or anything else that is no file.
    """
    deadline = time.monotonic() + timeout_s
    while (lock := _try_acquire(path, optional=optional)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return lock


def _try_acquire(path: Path, *, optional: bool) -> Lock | None:
    with _guarded(path) as key:
        if key in _own:
            return None
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT, 0o644, follow=False)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS or not optional:
                os.close(descriptor)
                raise _explain(error, path) from None
        except BaseException:
            os.close(descriptor)
            raise
        _own.add(key)
        return Lock(Path(key), descriptor)


@contextmanager
def _guarded(path: Path) -> Iterator[str]:
    """Keep other threads from opening the lock file ``path``, and yield its key in ``_own``."""
    key = os.path.abspath(path)
    with _mutexes.setdefault(key, threading.Lock()):
        yield key


def _explain(error: OSError, path: Path) -> OSError:
    if error.errno not in _NO_LOCKS:
        return error
    return NoLocksError(error.errno, "its file system has no file locks", str(path))


@contextmanager
def held(path: Path, timeout_s: float, *, optional: bool = False) -> Iterator[Lock | None]:
    """Hold the lock on ``path`` during a ``with`` block, as ``acquire`` does; None if it is taken."""
    lock = acquire(path, timeout_s, optional=optional)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def owner(path: Path) -> Owner | None:
    """Return the process that holds the lock on ``path``, or None.

    Raises:
        NoLocksError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    with _guarded(path) as key:
        if key in _own:
            return Owner(os.getpid())
        try:
            descriptor = open_file(path, follow=False)
        except FileNotFoundError:
            return None
        try:
            return _ask(descriptor)
        except OSError as error:
            raise _explain(error, path) from None
        finally:
            os.close(descriptor)


def check(folder: Path) -> None:
    """Raise NoLocksError if the file system of ``folder`` has no locks, and OSError if it cannot be written."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _explain(error, folder) from None


def _ask(descriptor: int) -> Owner | None:
    if _DARWIN:
        query = struct.pack(_FLOCK, 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
    else:
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
    if kind == fcntl.F_UNLCK:
        return None
    return Owner(pid if pid > 0 else None)
