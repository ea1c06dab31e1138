"""The one writer of run directories: each appears in the store whole or not at all."""

import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from lmconsole.files import file_name_part, sync_folder
from lmconsole.runs.events import Event, EventLog
from lmconsole.runs.info import RunInfo, write_info
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store


def create_run(store: Store, info: RunInfo, events: Iterable[Event]) -> str:
    """Make the directory of a new run under a temporary name, force it to the disk, rename it, and return the run's id.

    The id consists of the experiment, the preset, the seed and the time, and replaces ``info.run``.

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
