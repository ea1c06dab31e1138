"""The folded logs of finished runs of a large store, in the user's cache folder.

A fold has the lines of a log that its state depends on. It holds only while the log has the size, time and inode number
that it had, so the log stays the only truth, and the file can be deleted at any time.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lmconsole.files import atomic_write, cache_folder, read_file
from lmconsole.runs.event_reader import MAX_LOG_BYTES, EventReader
from lmconsole.runs.events import DAMAGED, Progress, Telemetry, decoder, restore_non_finite
from lmconsole.runs.state import RunState, Status

SCHEMA = 1
"""Version of the layout."""

FEWEST_RUNS = 500
"""Smaller stores are read as quickly without a cache."""

MAX_BYTES = 2**30
"""Size of the largest file that is read."""


class Fold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Folded log of a finished run that is not damaged."""

    version: tuple[int, int, int]
    """Size of the log in bytes, time in nanoseconds, and inode number."""
    lines: int
    """Number of lines of the log, and of its last event."""
    events: bytes
    """Its lines without progress and telemetry, except for the last of each that counts."""


class _Folds(msgspec.Struct, frozen=True, array_like=True):
    """Content of the file."""

    schema: int
    folds: dict[str, Fold]
    """Folds by the names of the runs."""


class FoldCache:
    """Folds of the runs in the store ``root``. A file that is damaged, or cannot be read or written, counts as none."""

    def __init__(self, root: Path) -> None:
        folder = cache_folder("folds")
        name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:40]
        self._path = None if folder is None else folder / f"{name}.msgpack"
        self._known: dict[str, Fold] = {}
        self._restored: set[str] = set()
        """Runs whose state is from here, or has been put here."""
        if self._path is not None:
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                found = msgspec.msgpack.decode(read_file(self._path, MAX_BYTES, follow=False), type=_Folds)
                self._known = found.folds if found.schema == SCHEMA else {}

    def restore(self, name: str, log: Path, state: RunState) -> EventReader | None:
        """Apply the fold of the run ``name`` to ``state``, which is that of no event yet. Return a reader that goes on
        after it; None if there is no fold, or if the log is no longer that of before."""
        fold = self._known.get(name)
        if fold is None or fold.version != _version(log):
            return None
        try:
            events = decoder.decode_lines(fold.events)
        except DAMAGED:
            return None
        restore_non_finite(events)
        reader = EventReader(log, offset=fold.version[0], lines=fold.lines)
        state.restore(events, reader)
        self._restored.add(name)
        return reader

    def update(self, runs: Iterable[tuple[str, Path, RunState]]) -> None:
        """Write the folds of these runs, by name, log and state, if any has changed."""
        folds: dict[str, Fold] = {}
        for name, log, state in runs:
            known = self._known.get(name)
            unchanged = known is not None and name in self._restored and state.seq == known.lines
            fold = known if unchanged else _fold(log, state)
            if fold is not None:
                folds[name] = fold
        if self._path is None or folds == self._known:
            return
        self._known, self._restored = folds, set(folds)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path, mode=0o600) as file:
                file.write(msgspec.msgpack.encode(_Folds(SCHEMA, folds)))


def _version(log: Path) -> tuple[int, int, int] | None:
    """Return what changes when a log does; None if there is no log."""
    try:
        found = os.lstat(log)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _fold(log: Path, state: RunState) -> Fold | None:
    """Return the fold of a log whose state is known; None if it has not finished, is damaged, has changed since, or has
    events of a later version."""
    version = _version(log)
    if version is None or state.status is not Status.FINISHED or state.log_damaged or state.damage:
        return None
    try:
        data = read_file(log, MAX_LOG_BYTES, follow=False)
        events = decoder.decode_lines(data)
    except (OSError, *DAMAGED):
        return None
    lines = data.splitlines(keepends=True)
    whole = version == _version(log) and len(data) == version[0] and data.endswith(b"\n")
    if not whole or not events or not len(lines) == len(events) == state.seq:
        return None
    last = {each[-1].seq for each in (state.progress, state.telemetry) if each}
    kept = [
        line
        for line, event in zip(lines, events, strict=True)
        if not isinstance(event, Progress | Telemetry) or event.seq in last
    ]
    return Fold(version=version, lines=len(lines), events=b"".join(kept))
