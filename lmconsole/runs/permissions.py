"""Permissions: what a person allowed to be done with the runs of a store.

A store is a folder of files that anyone may have written, so nothing in it decides that a run is started, which program
runs when the queue is empty, or where exports go. The process that queues a run for a person saves that as a permission
in the state folder of this user, outside the store. A permission covers one ``queued`` event of one run directory with
one run.json, and is removed when the queue is empty and the run has ended.
"""

import contextlib
import os
import pwd
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import atomic_write, open_file, read_file, sync_folder
from lmconsole.runs.events import DAMAGED
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

MAX_BYTES = 2**22
"""Size above which a permission or a run.json is not read."""
NOT_STARTED = (
    "queued, but not by you in this folder, so it is not started: another user queued it, the store was moved or "
    "copied, or it was queued by version 0.1.0. `lmconsole run ID` with the same options, or u in the console, queues "
    "it for you."
)
"""Message on a queued run that is not ``pending``."""
STALE_S = 30 * 86_400.0
"""Age in seconds from which the permissions of a store that no longer exists are removed. A disk with the store may
only be unmounted."""


class AfterQueue(msgspec.Struct, frozen=True, kw_only=True):
    """Actions when the queue is empty, and at events before."""

    exports: str | None = None
    """Folder to export to; None for no export."""
    on_finish: tuple[str, ...] = ()
    """Program (absolute path) and arguments to run."""
    on_event: tuple[str, ...] = ()
    """Program (absolute path) and arguments that receive each alert."""
    cwd: str = ""
    """Working directory of these programs."""


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """Permission to start one queued run, and to do something when the queue is empty."""

    store: str
    """Real path of the store."""
    run: str
    """Id of the run: the name of its folder."""
    queued_seq: int
    """Number of the ``queued`` event. A run that is queued again needs another permission."""
    info_sha256: str
    """SHA-256 of run.json, which is never changed."""
    after: AfterQueue = AfterQueue()
    given: tuple[str, ...] = ()
    """Keys of the alerts that were given, so that a later runner does not repeat them."""


class Permissions:
    """The permissions of this user for the store at ``root``.

    Methods raise StoreError if the folder of the permissions cannot be read or belongs to someone else.
    """

    def __init__(self, root: Path) -> None:
        self._store = text_of(os.path.realpath(root))
        self._known: dict[tuple[str, int], Permission] = {}

    def prepare(self) -> None:
        """Create the folder for permissions, and remove what is left of stores that no longer exist."""
        folder = self._folder()
        try:
            folder.parents[2].mkdir(parents=True, exist_ok=True)
            for each in (folder.parents[1], folder.parent, folder):
                with contextlib.suppress(FileExistsError):
                    each.mkdir(mode=0o700)
                _check_private(each)
        except OSError as error:
            raise StoreError(
                f"{error.filename or folder}: permissions to start runs cannot be saved: {error.strerror}",
                hint="Set XDG_STATE_HOME to a folder of yours.",
            ) from None
        with contextlib.suppress(OSError):
            for other in folder.parent.iterdir():
                if other != folder and time.time() - other.stat().st_mtime > STALE_S:
                    _remove_if_stale(other)

    def grant(self, paths: RunPaths, queued_seq: int, after: AfterQueue) -> None:
        """Save that this user allows the run to be started as its ``queued`` event number ``queued_seq`` says.

        Call ``sync`` afterwards to force the name of its file to the disk.
        """
        try:
            permission = Permission(
                store=self._store,
                run=text_of(paths.run),
                queued_seq=queued_seq,
                info_sha256=_info_sha256(paths),
                after=after,
            )
            with atomic_write(self._file(permission.run, queued_seq), sync=True, mode=0o600) as file:
                file.write(msgspec.json.encode(permission) + b"\n")
        except OSError as error:
            raise StoreError(
                f"{error.filename or self._folder()}: the permission to start {paths.run} cannot be saved: "
                f"{error.strerror}",
                hint="Correct that, then run it again.",
            ) from None

    def add_given(self, permission: Permission, key: str) -> Permission:
        """Save that the alert ``key`` is given, and return the changed permission.

        Raises:
            OSError: It cannot be saved, or the permission has been removed.
        """
        file = self._file(permission.run, permission.queued_seq)
        os.lstat(file)  # one that was removed, when the run was deleted or queued again, does not return
        changed = msgspec.structs.replace(permission, given=(*permission.given, key))
        with atomic_write(file, sync=True, mode=0o600) as opened:
            opened.write(msgspec.json.encode(changed) + b"\n")
        self._known[permission.run, permission.queued_seq] = changed
        return changed

    def sync(self) -> None:
        """Force the names of new permissions to the disk."""
        with contextlib.suppress(OSError):
            sync_folder(self._folder())

    def find(self, run: Run) -> Permission | None:
        """Return the permission that covers the last ``queued`` event of ``run``, as it was when last found; None if
        this user has given none."""
        return self._known.get((text_of(run.run), run.state.queued_seq)) or self.read(run)

    def allows(self, run: Run) -> bool:
        """Return whether ``find`` finds a permission. No error is raised."""
        with contextlib.suppress(StoreError):
            return self.find(run) is not None
        return False

    def read(self, run: Run) -> Permission | None:
        """Return the permission for ``run`` as ``find`` does, but always from its file."""
        key = name, queued_seq = text_of(run.run), run.state.queued_seq
        self._known.pop(key, None)
        if not queued_seq:
            return None
        found = self._read(self._file(name, queued_seq))
        if found is None or (found.run, found.queued_seq) != key:
            return None
        try:
            if found.info_sha256 != _info_sha256(run.paths):
                return None
        except OSError:
            return None
        self._known[key] = found
        return found

    def saved(self) -> list[Permission]:
        """Return all permissions for runs of the store, whatever has become of the runs."""
        self._check()
        try:
            files = sorted(self._folder().glob("*.json"))  # not what a killed process left
        except OSError:
            return []
        return [found for file in files if (found := self._read(file)) is not None]

    def remove(self, permission: Permission) -> bool:
        """Remove a permission. Return False if that is not possible."""
        self._known.pop((permission.run, permission.queued_seq), None)
        try:
            self._file(permission.run, permission.queued_seq).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def forget(self, name: str) -> None:
        """Remove all permissions for the run ``name``, which has been deleted. Errors are ignored: a permission does
        not cover another run of this name."""
        with contextlib.suppress(StoreError):
            for permission in self.saved():
                if permission.run == text_of(name):
                    self.remove(permission)

    def _folder(self) -> Path:
        return _state_folder() / "permissions" / _name(self._store)

    def _file(self, run: str, queued_seq: int) -> Path:
        return self._folder() / f"{_name(run)}-{queued_seq}.json"

    def _check(self) -> None:
        folder = self._folder()
        for each in (folder.parents[1], folder.parent, folder):
            try:
                _check_private(each)
            except FileNotFoundError:
                return
            except OSError as error:
                raise StoreError(
                    f"{each}: permissions to start runs cannot be read: {error.strerror}",
                    hint="Set XDG_STATE_HOME to a folder of yours.",
                ) from None

    def _read(self, file: Path) -> Permission | None:
        """Return the permission in ``file``; None if there is none that this user has written for this store."""
        self._check()
        try:
            with open(open_file(file, follow=False), "rb") as opened:
                status = os.fstat(opened.fileno())
                if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    return None
                found = msgspec.json.decode(opened.read(MAX_BYTES), type=Permission)
        except (OSError, *DAMAGED):
            return None
        return found if found.store == self._store else None


def _state_folder() -> Path:
    import platformdirs

    folder = platformdirs.user_state_path("lmconsole", appauthor=False)
    if not folder.is_absolute():
        raise StoreError(
            f"{folder}: permissions to start runs cannot be saved: not an absolute path",
            hint="Set XDG_STATE_HOME to a folder of yours.",
        )
    return folder


def _check_private(folder: Path) -> None:
    """Raise StoreError unless ``folder`` is a folder that only this user can open, and OSError if it cannot be asked.

    A user who can write to it decides which programs this user runs.
    """
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode):
        problem = "a symbolic link, which is not followed"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "not a folder"
    elif status.st_uid != os.geteuid():
        problem = f"owned by {_user(status.st_uid)}, not by {_user(os.geteuid())}"
    elif status.st_mode & 0o077:
        import shlex

        raise StoreError(
            f"{folder}: accessible to other users (mode {stat.S_IMODE(status.st_mode):o}), so the permissions to start "
            "runs in it are not used",
            hint=f"Make sure that all files in it are yours, then run `chmod -R go= {shlex.quote(str(folder))}`. "
            "On a file system without modes, set XDG_STATE_HOME to a folder elsewhere.",
        )
    else:
        return
    raise StoreError(
        f"{folder}: {problem}, so the permissions to start runs in it are not used",
        hint="Move it away, or set XDG_STATE_HOME to a folder of yours.",
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def text_of(path: str) -> str:
    """Return a path as text that JSON can hold, even if it is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _name(text: str) -> str:
    return _sha256(text.encode())[:32]


def _info_sha256(paths: RunPaths) -> str:
    return _sha256(read_file(paths.info, MAX_BYTES, follow=False))


def _sha256(data: bytes) -> str:
    import hashlib  # loads OpenSSL, which the first paint of the console does not need

    return hashlib.sha256(data).hexdigest()


def _remove_if_stale(folder: Path) -> None:
    """Remove the permissions in ``folder`` if their store no longer exists. Raises OSError."""
    files = list(folder.iterdir())
    for file in files:
        with contextlib.suppress(OSError, *DAMAGED):
            found = msgspec.json.decode(read_file(file, MAX_BYTES, follow=False), type=Permission)
            if os.path.lexists(found.store):
                return
    for file in files:
        file.unlink()
    folder.rmdir()


def pending(store: Store, runs: Iterable[Run]) -> list[Run]:
    """Return the runs that are running, or will be started without anyone doing anything more.

    A queued run will be started if this user has a permission for it, or if a runner of another user is at work, which
    may have one. All other queued runs wait for nothing: someone else left them, or the store was moved.
    """
    runs = list(runs)
    permissions = Permissions(store.root)
    owner = store.runner() if any(run.status is Status.QUEUED for run in runs) else None
    served_by_others = owner is not None and not owner.is_own
    return [run for run in runs if _is_pending(run, permissions, served_by_others=served_by_others)]


def _is_pending(run: Run, permissions: Permissions, *, served_by_others: bool) -> bool:
    if run.problem or not run.status.active or run.info.origin == "imported":
        return False
    if run.place is not None:
        return run.slurm.interrupted or not run.slurm.left
    if run.status is Status.RUNNING or served_by_others:
        return True
    if permissions.allows(run):
        return True
    with contextlib.suppress(StoreError):
        return run.worker() is not None
    return False
