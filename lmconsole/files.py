"""Writing files whole, and reading files that grow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CUT_BYTES = 1_000
"""Length to which a line is cut that is longer than ``LineTail`` reads at once."""


@contextlib.contextmanager
def atomic_write(
    path: Path, *, sync: bool = False, mode: int = 0o666, temporary: Path | None = None, keep_as: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, so that readers see the old content or the new.

    If the block raises, ``path`` stays as it was and the temporary file is removed.

    Args:
        sync: force the content to the disk before the renaming. For the name itself, call ``sync_folder`` afterwards.
        mode: permissions of a new file, less the umask.
        temporary: where to write until the end; by default a random name in the same folder. A fixed name suits a file
            with a single writer, since what a killed process left there is overwritten.
        keep_as: new name of the file that ``path`` was until now, if there was one.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    flags = os.O_TRUNC
    if temporary is None:
        temporary, flags = path.with_name(f".{os.urandom(8).hex()}.tmp"), os.O_EXCL
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if keep_as is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep_as)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk: syncing a file keeps its content, not its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path | None:
    """Return the folder for this user's cached data of one kind; None for a user without a home folder."""
    import platformdirs

    folder = platformdirs.user_cache_path("lmconsole", appauthor=False) / name
    return folder if folder.is_absolute() else None


class LineTail:
    """Reads the complete lines that were appended to a file since the last call.

    A last line without its line feed waits for the rest.
    """

    def __init__(
        self, path: Path, *, last_bytes: int | None = None, limit: int | None = None, restart: bool = True
    ) -> None:
        """Start at the beginning of the file.

        Args:
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
        self._offset: int | None = None if last_bytes else 0
        self._skipping = False
        """Whether the rest of a line that was cut is still to come."""
        if last_bytes == 0:
            with contextlib.suppress(OSError):  # a file that cannot be read yet is read from its beginning
                self._offset = os.stat(path).st_size

    def read_new(self) -> bytes:
        """Return the new lines, each with its line feed; nothing if there are none.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """
        size = os.stat(self._path).st_size
        if self._offset is None or (self._restart and size < self._offset):
            self._offset = max(size - (self._last_bytes or size), 0)
            self._skipping = self._offset > 0
        if size <= self._offset:
            return b""
        with open(self._path, "rb", buffering=0) as file:
            file.seek(self._offset)
            data = file.read(self._limit)
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
