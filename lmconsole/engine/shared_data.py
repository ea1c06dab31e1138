"""Corpora and embedding tables that are read and verified once for all runs of a queue, and memory-mapped by each.

They are kept in a private folder that the runner makes for its workers and removes when the queue is empty. Entries are
named by the hash of their content, so an entry that exists is the data a run was queued with.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmconsole.files import file_name_part
from lmconsole.runs import lock

LOCK_TIMEOUT_S = 60.0
Arrays = Mapping[str, Any]
"""NumPy arrays by name. Untyped because the runner, which makes the folder, must not import NumPy."""


@contextlib.contextmanager
def shared_folder(store: Path) -> Iterator[Path | None]:
    """Make a private folder for the workers of the store at ``store``, and remove it at the end.

    Folders that a killed runner of the same store left behind are removed first: a store has one runner at a time.
    Yields None where no folder can be made; then each worker reads its own data.
    """
    folder = None
    with contextlib.suppress(OSError):
        prefix = _prefix(store)
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            if left.lstat().st_uid == os.getuid():
                gone = left.with_name(f"{left.name}-old")
                left.rename(gone)  # at once, so that no worker left behind finds half of an entry
                shutil.rmtree(gone, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # data that workers have mapped stays readable


def _prefix(store: Path) -> str:
    """Return the beginning of the folder's name, the same for every runner of this store by whatever path."""
    found = store.stat()
    identity = f"{os.getuid()} {found.st_dev} {found.st_ino}"
    return f"lmconsole-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-"


def load_shared(folder: Path | None, key: str, names: Sequence[str], read: Callable[[], Arrays]) -> Arrays:
    """Return the arrays ``names`` of entry ``key``, memory-mapped. If one is missing, ``read`` them and save the entry.

    ``read`` verifies its result and may raise. One worker reads at a time, so that only one of several that start
    together does the work. Pages are private: changes to an array stay in this process.
    """
    key = file_name_part(key)  # from run.json, which anyone may have written
    with contextlib.ExitStack() as reading:
        held = None
        if folder is not None:
            with contextlib.suppress(OSError):  # the folder was removed with its runner
                held = reading.enter_context(lock.held(folder / f"{key}.lock", LOCK_TIMEOUT_S))
        known = None if folder is None else _map(folder / key, names)
        if known is not None:
            return known
        found = read()
        if folder is not None and held is not None:
            _save(folder / key, found)
        return found


def _map(entry: Path, names: Sequence[str]) -> Arrays | None:
    """Return the arrays of an entry; None if one of them is missing."""
    import numpy as np

    try:
        return {name: np.load(entry / f"{name}.npy", mmap_mode="c") for name in names}
    except (OSError, ValueError):
        return None


def _save(entry: Path, arrays: Arrays) -> None:
    """Write ``arrays`` as an entry that appears whole, or not at all if the disk is full."""
    import numpy as np

    temporary = entry.with_suffix(".tmp")
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        temporary.rename(entry)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
