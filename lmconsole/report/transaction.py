"""Replacement of a set of files: all of them, or none."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from lmconsole.errors import ExportError

STALE_S = 3600.0
"""Age in seconds from which temporary files are taken for those of a process that was killed."""

_TEMPORARY = re.compile(r"\.export-[0-9a-f]{16}")
"""Names of folders with temporary files, and of the temporary files of version 0.1.0."""


def replace_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Replace or create files of ``folder`` by their relative paths; None removes a file.

    All new contents are written and synced in temporary folders before the first file is replaced, and every file is
    replaced by a rename, so readers see either the old content or the new one. If anything fails, the files that were
    replaced get their old content back, and new files and folders are removed.

    Symbolic links are replaced, and never followed, but ``folder`` itself may be one.

    Raises:
        OSError: The files could not be replaced, for example because the disk is full.
    """
    for name in files:
        check_folders(folder, name)
    with ExitStack() as new_folders, _TemporaryFiles() as temporary_files, ExitStack() as undo:
        staged: dict[Path, Path] = {}
        for name, content in files.items():
            if content is not None:
                _create_folder((folder / name).parent, new_folders)
                staged[folder / name] = _write_temporary(folder / name, content, temporary_files)
        for name in files:
            target = folder / name
            backup = _back_up(target, temporary_files)
            undo.callback(_restore, target, backup)
            if target in staged:
                os.replace(staged[target], target)
            else:
                target.unlink(missing_ok=True)
        undo.pop_all()
        new_folders.pop_all()


def cannot_be_written(error: OSError, folder: Path) -> ExportError:
    """Return the error for people: the file in ``folder`` that could not be written, and why."""
    path = error.filename2 or error.filename or folder
    return ExportError(f"{path}: cannot be written: {error.strerror}", hint="Use --out to name another folder.")


def check_folders(folder: Path, name: str) -> None:
    """Raise OSError if the relative path ``name`` leads out of ``folder``, or through a symbolic link in it."""
    path = folder
    for part in PurePosixPath(name).parts[:-1]:
        path /= part
        if part in ("..", "/"):
            raise OSError(errno.EINVAL, "outside of the folder", str(path))
        if path.is_symlink():
            raise OSError(errno.ELOOP, "this folder is a symbolic link, which is not followed", str(path))


def _create_folder(folder: Path, new_folders: ExitStack) -> None:
    if not folder.is_dir():
        _create_folder(folder.parent, new_folders)
        folder.mkdir(exist_ok=True)
        new_folders.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


class _TemporaryFiles(ExitStack):
    """Temporary files, which are removed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._folders: dict[Path, Path] = {}

    def new_path(self, target: Path) -> Path:
        """Return a path in a temporary folder next to ``target``, because a rename cannot cross file systems."""
        if target.parent not in self._folders:
            self._folders[target.parent] = self._create_folder(target.parent)
        path = self._folders[target.parent] / secrets.token_hex(8)
        self.callback(_discard, path)
        return path

    def _create_folder(self, parent: Path) -> Path:
        _remove_stale(parent)
        folder = parent / f".export-{secrets.token_hex(8)}"
        try:
            folder.mkdir()
        except OSError as error:
            error.filename = str(parent)  # a temporary name would mean nothing to the user
            raise
        self.callback(_remove_if_empty, folder)
        return folder


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of exports that were killed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_temporary(target: Path, content: bytes, temporary_files: _TemporaryFiles) -> Path:
    path = temporary_files.new_path(target)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path


def _back_up(target: Path, temporary_files: _TemporaryFiles) -> Path | None:
    """Keep the old content under a second name; None if there is none.

    It is linked, or copied on file systems without hard links. A file of another user that cannot be read can be
    neither, and is renamed, and so is what is no file.
    """
    if not os.path.lexists(target):
        return None
    mode = os.lstat(target).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    backup = temporary_files.new_path(target)
    for keep in (os.link, shutil.copy2) if stat.S_ISREG(mode) else ():
        with contextlib.suppress(OSError):
            keep(target, backup)
            return backup
    os.rename(target, backup)
    return backup


def _restore(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    else:
        os.replace(backup, target)
