"""The one way to open files that others may have left; files written whole, files that grow, folders of the user."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

CUT_BYTES = 1_000
"""Length to which a line is cut that is longer than ``LineTail`` reads at once."""


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link, which is not followed",
}


def open_file(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666, *, follow: bool) -> int:
    """Open a regular file without ever blocking, and return its descriptor.

    Args:
        flags, mode: as for ``os.open``. Files that are opened to be written must not be followed links.
        follow: whether ``path`` may be a symbolic link: True for files that a person names or puts into a folder of
            their own, False for files of a run store.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened, or is a folder, pipe, device, socket or forbidden link; ``strerror`` says which.
    """
    assert not (follow and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    try:
        # Asked first, since opening a device can have an effect; a file that appears in between is asked again below.
        with contextlib.suppress(FileNotFoundError):
            _check_regular(os.stat(path, follow_symlinks=follow).st_mode, path)
        extra = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags | extra, mode)
    except ValueError:
        raise OSError(errno.EINVAL, "the name contains a NUL character", str(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            _check_regular(stat.S_IFLNK, path)
        raise
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP if stat.S_ISLNK(mode) else errno.EINVAL
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(number, f"expected a file, found {kind}", str(path))


def read_file(path: Path, limit: int, *, follow: bool) -> bytes:
    """Read a regular file of at most ``limit`` bytes, as ``open_file`` opens it.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, is no regular file, or is larger.
    """
    with open(open_file(path, follow=follow), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            data = bytearray()
            while len(data) <= limit and (more := file.read(limit + 1 - len(data))):
                data += more
            if len(data) <= limit:
                return bytes(data)
    size = f"{limit // 2**20:,} MiB" if limit >= 2**20 else f"{limit:,} bytes"
    raise OSError(errno.EFBIG, f"larger than {size}", str(path))


@contextlib.contextmanager
def atomic_write(
    path: Path,
    *,
    sync: bool = False,
    mode: int = 0o666,
    temporary: Path | None = None,
    keep_as: Path | None = None,
    replace: bool = True,
) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, so that readers see the old content or the new.

    If the block raises, ``path`` stays as it was and the temporary file is removed.

    Args:
        sync: force the content to the disk before the renaming. For the name itself, call ``sync_folder`` afterwards.
        mode: permissions of a new file, less the umask.
        temporary: where to write until the end; by default a random name in the same folder. A fixed name suits a file
            with a single writer, since what a killed process left there is removed.
        keep_as: new name of the file that ``path`` was until now, if there was one.
        replace: whether to replace an existing file.

    Raises:
        FileExistsError: ``path`` exists, and not ``replace``.
        OSError: a file cannot be written or renamed.
    """
    if temporary is None:
        temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    else:
        temporary.unlink(missing_ok=True)  # never opened: it may be a link or a pipe that someone else put there
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, follow=False)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if keep_as is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep_as)
        if replace:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file. Raises FileExistsError if ``path`` exists, even if it was created a moment ago."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False))
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


MAX_NAME_BYTES = 120
"""Bytes of a file name that come from text at most: a name of 255 leaves room for the rest."""


def file_name_part(text: str) -> str:
    """Return ``text`` as a part of a file name: the one way by which text from a file becomes part of a path.

    Letters, digits, ``_``, ``-`` and inner dots stay as they are. Everything else, separators of paths among it,
    becomes ``_``, and a long text is cut, so that different texts can give the same part.
    """
    safe = re.sub(r"[^\w.-]+", "_", text)
    safe = re.sub(r"^\.+|\.+$", "_", safe)
    return safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "_"


def sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk: syncing a file keeps its content, not its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expand_home(path: Path | str) -> Path:
    """Return ``path`` with the home folder in place of ``~`` or ``~user`` at its beginning.

    A shell does so only for a word that begins with it: not in ``--runs=~/r``, and not in quotes.

    Raises:
        FileNotFoundError: there is no such user; ``strerror`` says how to name a folder that is called so.
    """
    text = os.fspath(path)
    if not text.startswith("~"):
        return Path(text)
    user, _, rest = text[1:].partition("/")
    home = os.environ.get("HOME", "")
    if user or not os.path.isabs(home):
        import pwd

        try:
            home = (pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())).pw_dir
        except (KeyError, ValueError):
            missing = f"there is no user {user!r}" if user else "this user has no home folder"
            reason = f"{missing}; write ./{text} for a folder of this name"
            raise FileNotFoundError(errno.ENOENT, reason, text) from None
    return Path(home, rest)


def user_folder(kind: Literal["cache", "config", "data"]) -> Path | None:
    """Return this user's folder for files of one kind; None for a user without a home folder."""
    import platformdirs

    find = getattr(platformdirs, f"user_{kind}_path")
    folder: Path = find("lmconsole", appauthor=False)
    return folder if folder.is_absolute() else None


def cache_folder(name: str) -> Path | None:
    """Return the folder for this user's cached data of one kind; None for a user without a home folder."""
    folder = user_folder("cache")
    return None if folder is None else folder / name


class LineTail:
    """Reads the complete lines that were appended to a file since the last call.

    A last line without its line feed waits for the rest. A symbolic link is not followed.
    """

    def __init__(
        self,
        path: Path,
        *,
        offset: int = 0,
        last_bytes: int | None = None,
        limit: int | None = None,
        restart: bool = True,
    ) -> None:
        """Start at the beginning of the file.

        Args:
            offset: start this far from the beginning instead, which must be the beginning of a line.
            last_bytes: start this far from the end instead, after the line that is cut there; with 0 only lines written
                from now on are read.
            limit: most bytes to read in one call. A longer line is cut to ``CUT_BYTES`` and marked with "…".
            restart: start over if the file becomes shorter, which means that it was truncated or replaced. Otherwise
                wait until it is longer again.
        """
        self._path = path
        self._last_bytes = last_bytes
        self._limit = -1 if limit is None else limit
        self._restart = restart
        self._offset: int | None = None if last_bytes else offset
        self._skipping = False
        """Whether the rest of a line that was cut is still to come."""
        self.more = False
        """Whether the last call read as much as it may, so that another call may find more at once."""
        if last_bytes == 0:
            with contextlib.suppress(OSError):  # a file that cannot be read yet is read from its beginning
                self._offset = os.stat(path).st_size

    def read_new(self) -> bytes:
        """Return the new lines, each with its line feed; nothing if there are none.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """
        self.more = False
        found = os.lstat(self._path)
        _check_regular(found.st_mode, self._path)
        size = found.st_size
        if self._offset is None or (self._restart and size < self._offset):
            self._offset = max(size - (self._last_bytes or size), 0)
            self._skipping = self._offset > 0
        if size <= self._offset:
            return b""
        wanted = size - self._offset
        descriptor = open_file(self._path, follow=False)
        try:
            data = os.pread(descriptor, wanted if self._limit < 0 else min(self._limit, wanted), self._offset)
        finally:
            os.close(descriptor)
        self.more = len(data) == self._limit
        if self._skipping:
            rest, line_feed, data = data.partition(b"\n")
            self._offset += len(rest) + len(line_feed)
            self._skipping = not line_feed
        complete = data.rfind(b"\n") + 1
        if not complete and len(data) == self._limit:
            self._offset += len(data)
            self._skipping = True
            return data[:CUT_BYTES] + " …\n".encode()
        self._offset += complete
        return data[:complete]

    def read_lines(self) -> list[str]:
        """Return the new lines as text, without line feeds; a missing file has none. Invalid UTF-8 is replaced.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            return self.read_new().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
