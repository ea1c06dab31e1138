"""Deleting runs so that it can be undone: a run directory moves into the store's trash folder, and back."""

import os
from collections.abc import Iterable
from pathlib import Path

from lmconsole.errors import RunActiveError, StoreError
from lmconsole.runs.paths import TRASH
from lmconsole.runs.store import Store


def discard(store: Store, names: Iterable[str]) -> list[str]:
    """Move runs into the trash and name those that were moved; one that somebody else has deleted is passed over.

    Raises:
        RunActiveError: one of them is queued or running; then nothing has been moved.
        StoreError: the store cannot be written.
    """
    there = {run.run: run for run in store.runs()}
    chosen = [there[name] for name in dict.fromkeys(names) if name in there]
    active = [run.run for run in chosen if run.status.active or run.worker() is not None]
    if active:
        raise RunActiveError(f"still queued or running: {', '.join(active)}", hint="Stop it first, then delete it.")
    for run in chosen:
        _move(run.paths.folder, store.root / TRASH / run.run)
    return [run.run for run in chosen]


def restore(store: Store, names: Iterable[str]) -> list[str]:
    """Move runs from the trash back into the store and name those that were moved. Raises StoreError if the store
    cannot be written, or has a run of that name again."""
    done = []
    for name in names:
        if (store.root / TRASH / name).is_dir():
            _move(store.root / TRASH / name, store.root / name)
            done.append(name)
    return done


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            raise StoreError(f"{target}: there is such a run already")
        os.rename(source, target)
    except OSError as error:
        raise StoreError(f"{source}: cannot be moved to {target.parent}: {error.strerror}") from None
