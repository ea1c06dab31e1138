"""What people do with runs, from a shell or the app: put them into the queue, resume them, ask them to stop."""

import contextlib
import os
from collections.abc import Sequence

from lmconsole.engine.local import disown, start_runner
from lmconsole.engine.options import RunOptions, threads_per_run
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.queue import Decision, enqueue, requeue, wanted_runs
from lmconsole.errors import StoreError
from lmconsole.runs.events import Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store


def submit(store: Store, answer: ProbeAnswer, options: RunOptions) -> list[Decision]:
    """Queue what is wanted; the caller starts a runner. If it fails half-way, a runner sees to what has been queued.

    Raises:
        RunActiveError: unless ``options.everything``, if one of the runs is active; then nothing has been queued.
        StoreError: the store cannot be written.
    """
    queued = Queued(
        devices=answer.device_keys,
        jobs=options.jobs,
        exports=None if options.exports is None else str(options.exports),
        on_finish=options.on_finish,
        cwd=os.getcwd(),
    )
    try:
        return enqueue(
            store,
            wanted_runs(answer, options.seeds),
            queued,
            fresh=options.fresh,
            refuse_active=not options.everything,
            threads=threads_per_run(options.jobs),
        )
    except BaseException:
        with contextlib.suppress(StoreError):
            if any(run.status is Status.QUEUED for run in store.runs()):
                wake_runner(store)
        raise


def wake_runner(store: Store) -> None:
    """See that a runner is at work, which goes on alone. Raises StoreError if it cannot be started."""
    runner = start_runner(store)
    if runner is not None:
        disown(runner)


def resume_runs(store: Store, names: Sequence[str]) -> list[str]:
    """Queue these runs again as they are, each with the devices and exports it was last queued with, and name those
    that were: finished and active ones are left alone. Raises StoreError if the store cannot be written."""
    resumed = requeue(store, names)
    if resumed:
        wake_runner(store)
    return resumed


def stop_runs(store: Store, runs: Sequence[Run]) -> list[str]:
    """Ask active ``runs`` to stop and see that queued ones are taken out; what was done, a line each."""
    lines = []
    for run in runs:
        if run.status.active:
            run.request_stop()
            lines.append(f"{run.run}: asked to stop; it saves a checkpoint first")
        else:
            lines.append(f"{run.run}: not active ({run.status.value})")
    if any(run.status is Status.QUEUED for run in runs):
        wake_runner(store)
    return lines
