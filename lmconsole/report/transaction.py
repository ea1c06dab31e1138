"""Replacement of a set of files: all of them, or none."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

TEMPORARY_PREFIX = ".export-"


def replace_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Replace or create files of ``folder`` by their relative paths; None removes a file.

    All new contents are written and synced under temporary names before the first file is replaced, and every file is
    replaced by a rename, so readers see either the old content or the new one. If anything fails, the files that were
    replaced get their old content back, and new files and folders are removed.

    Raises:
        OSError: The files could not be replaced, for example because the disk is full.
    """
    with ExitStack() as new_folders, ExitStack() as temporary_files, ExitStack() as undo:
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


def _create_folder(folder: Path, new_folders: ExitStack) -> None:
    if not folder.exists():
        _create_folder(folder.parent, new_folders)
        folder.mkdir(exist_ok=True)
        new_folders.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _temporary_path(target: Path, temporary_files: ExitStack) -> Path:
    """Return a new name in the same folder, because a rename cannot cross file systems."""
    path = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    temporary_files.callback(_discard, path)
    return path


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _write_temporary(target: Path, content: bytes, temporary_files: ExitStack) -> Path:
    path = _temporary_path(target, temporary_files)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path


def _back_up(target: Path, temporary_files: ExitStack) -> Path | None:
    """Link the old content to a second name, or copy it on file systems without hard links; None if there is none."""
    if not os.path.lexists(target):
        return None
    backup = _temporary_path(target, temporary_files)
    try:
        os.link(target, backup)
    except OSError:
        shutil.copy2(target, backup)
    return backup


def _restore(target: Path, backup: Path | None) -> None:
    if backup is None:
        target.unlink(missing_ok=True)
    else:
        os.replace(backup, target)
