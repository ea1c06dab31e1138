"""Deleting runs so that they can be restored: a run directory moves to the trash folder of the store, and back."""

import os
from collections.abc import Iterable
from pathlib import Path

from lmconsole.errors import RunActiveError, StoreError
from lmconsole.runs.paths import TRASH
from lmconsole.runs.permissions import Permissions, pending
from lmconsole.runs.store import Store


def discard(store: Store, names: Iterable[str]) -> list[str]:
    """Move runs to the trash and return the names of those that were moved; runs that no longer exist are skipped.

    Raises:
        RunActiveError: one of them is running, or will be started. Nothing has been moved.
        StoreError: the store cannot be written.
    """
    runs = {run.run: run for run in store.runs()}
    chosen = [runs[name] for name in dict.fromkeys(names) if name in runs]
    waiting = {run.run for run in pending(store, chosen)}
    active = [run.run for run in chosen if run.run in waiting or run.worker() is not None]
    if active:
        raise RunActiveError(f"still queued or running: {', '.join(active)}", hint="Stop it first, then delete it.")
    trash, permissions = _trash(store), Permissions(store.root)
    for run in chosen:
        _move(run.paths.folder, trash / run.run)
        permissions.forget(run.run)
    return [run.run for run in chosen]


def restore(store: Store, names: Iterable[str]) -> list[str]:
    """Move runs from the trash back to the store and return the names of those that were moved.

    Raises:
        StoreError: the store cannot be written, or has another run of that name.
    """
    done, trash = [], _trash(store)
    for name in names:
        if (trash / name).is_dir():
            _move(trash / name, store.root / name)
            done.append(name)
    return done


def _trash(store: Store) -> Path:
    """Return the trash folder. Raises StoreError if it is a symbolic link, which could lead out of the store."""
    folder = store.root / TRASH
    if folder.is_symlink():
        raise StoreError(f"{folder}: expected a folder, found a symbolic link, which is not followed")
    return folder


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            raise StoreError(f"{target}: a run of this name already exists")
        os.rename(source, target)
    except OSError as error:
        raise StoreError(f"{source}: cannot be moved to {target.parent}: {error.strerror}") from None
