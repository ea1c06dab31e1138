"""The one writer of run directories: each appears in the store whole or not at all, and has its place in the queue."""

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import atomic_write, file_name_part, read_file, sync_folder
from lmconsole.runs import lock
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import queued_places
from lmconsole.runs.events import DAMAGED, Event
from lmconsole.runs.info import RunInfo, write_info, write_new
from lmconsole.runs.paths import QUEUE_CLAIM, SLURM, TRASH, RunPaths
from lmconsole.runs.registration import readable_registrations
from lmconsole.runs.store import Run, Store, highest_place
from lmconsole.telemetry.host import host_name

QUEUE_LOCK_TIMEOUT_S = 60.0
"""Time for other commands to queue thousands of runs, each of which is written to the disk."""


@contextlib.contextmanager
def queue_lock(store: Store) -> Iterator[None]:
    """Create the store if it does not exist, and keep others from queuing into it. Raises StoreError if the lock stays
    taken, and for any OSError of the ``with`` block."""
    store.create()
    try:
        with lock.held(store.queue_lock, QUEUE_LOCK_TIMEOUT_S) as held:
            if held is None:
                raise StoreError(
                    f"{store.queue_lock}: another command has been queuing for {QUEUE_LOCK_TIMEOUT_S:.0f} s"
                )
            if not (store.root / SLURM).exists():
                yield
                return
            with _claimed(store.root / QUEUE_CLAIM):
                yield
    except lock.NoLocksError as error:
        raise StoreError(
            f"{store.root}: {error.strerror}, without which two processes could train one run",
            hint=lock.NO_LOCKS_HINT,
        ) from None
    except OSError as error:
        raise StoreError(
            f"{error.filename or store.root}: the run store cannot be written: {error.strerror}",
            hint="Free space or correct its permissions, or name another store with --runs.",
        ) from None


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Keep commands on other hosts, which may not see the lock, from queuing. The caller holds the lock here.

    Raises:
        StoreError: another host has been queuing for too long.
        OSError: the store cannot be written.
    """
    deadline_s = time.monotonic() + QUEUE_LOCK_TIMEOUT_S
    while True:
        try:
            with atomic_write(path, replace=False) as file:
                file.write(msgspec.json.encode({"host": host_name(), "pid": os.getpid()}))
            break
        except FileExistsError:
            pass
        owner: dict[str, object] = {}
        with contextlib.suppress(FileNotFoundError, *DAMAGED):
            owner = msgspec.json.decode(read_file(path, 4_096, follow=False), type=dict[str, object])
        if owner.get("host") == host_name():  # that process died: this one holds the lock
            path.unlink(missing_ok=True)
        elif time.monotonic() > deadline_s:
            raise StoreError(
                f"{path}: process {owner.get('pid')} on {owner.get('host')} has been queuing for "
                f"{QUEUE_LOCK_TIMEOUT_S:.0f} s",
                hint="If it no longer exists, remove that file.",
            )
        else:
            time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def next_places(store: Store, runs: Iterable[Run]) -> Iterator[int]:
    """Yield increasing places in the queue, starting after the highest of ``runs``, those of the store, and of deleted
    runs, which can be restored, and of registered claims. The caller holds the queue lock."""
    places = [run.state.queued.place for run in runs if run.state.queued]
    places += [registration.place for registration in readable_registrations(store.root)]
    with contextlib.suppress(OSError):
        for name in os.listdir(store.root / TRASH):
            with contextlib.suppress(OSError):
                places += queued_places(RunPaths(store.root / TRASH / name).events)
    return itertools.count(1 + highest_place(places))


def create_run(store: Store, info: RunInfo, events: Iterable[Event], *, source_diff: bytes = b"") -> str:
    """Make the directory of a new run under a temporary name, force it to the disk, rename it, and return the run's id.

    The id consists of the experiment, the preset, the seed and the time, and replaces ``info.run``. A ``source_diff``
    that is not empty becomes a file of the run.

    Raises:
        OSError: the store cannot be written, or another process has taken the id in the same second, which the store's
            queue lock prevents. Nothing is left of the run.
    """
    run = _free_id(store, info)
    temporary = store.temporary(run)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        paths = RunPaths(temporary)
        write_info(paths.info, msgspec.structs.replace(info, run=run))
        if source_diff:
            write_new(paths.source_diff, source_diff)
        log = EventLog(paths.events)
        try:
            *earlier, last = events
            for event in earlier:
                log.append(event)
            log.append(last, sync=True)
        finally:
            log.close()
        paths.lock.touch()
        sync_folder(temporary)
        os.rename(temporary, store.root / run)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(store.root)
    return run


def _free_id(store: Store, info: RunInfo) -> str:
    experiment = info.experiment
    stem = (
        f"{experiment.id:02d}-{experiment.model}-{experiment.layers}l-{experiment.optimizer}"
        f"-{file_name_part(info.preset)}"
        f"-s{info.seed}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    )
    run, number = stem, 1
    while (store.root / run).exists():
        number += 1
        run = f"{stem}-{number}"
    return run
