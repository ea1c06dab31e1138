"""What people do with runs, from a shell or the app: put them into the queue, resume them, ask them to stop."""

import contextlib
import os
from collections.abc import Iterable, Sequence

from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.processes import disown, start_runner
from lmconsole.engine.queue import Decision, Wanted, decide, enqueue, jobs_at_once, requeue, wanted_runs
from lmconsole.engine.run_options import RunOptions
from lmconsole.errors import StoreError
from lmconsole.plan.presets import ranges
from lmconsole.runs.events import Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import cores


def queued_as(answer: ProbeAnswer, options: RunOptions) -> Queued:
    """How runs are to be started; ``jobs`` is the most at once for any of them."""
    return Queued(
        devices=answer.device_keys,
        jobs=options.jobs or (cores() if answer.device_keys == ("cpu",) else 1),
        exports=None if options.exports is None else str(options.exports),
        on_finish=options.on_finish,
        cwd=os.getcwd(),
    )


def preview(runs: Iterable[Run], answer: ProbeAnswer, options: RunOptions) -> list[Decision]:
    """What ``submit`` would do, given the ``runs`` there are (oldest first), in the order of the queue."""
    queued = queued_as(answer, options)
    return decide(runs, _wanted(answer, options), queued, fresh=options.fresh, threads=options.threads)


def _wanted(answer: ProbeAnswer, options: RunOptions) -> list[Wanted]:
    return wanted_runs(answer, options.seeds, typed_order=options.typed_order)


def sharing_words(answer: ProbeAnswer, options: RunOptions) -> str:
    """How new runs share a device, such as ``2 at once, 1 thread each (auto)``; by experiment where they differ."""
    queued = queued_as(answer, options)
    found: dict[str, list[int]] = {}
    for prepared in answer.prepared:
        threads = options.threads or prepared.threads
        words = f"{jobs_at_once(threads, queued)} at once, {thread_words(threads)} each"
        found.setdefault(words, []).append(prepared.experiment.id)
    several = len(found) > 1
    text = "; ".join(f"{words} for {ranges(ids)}" if several else words for words, ids in found.items())
    return f"{text} (auto)" if options.jobs is None else text


def thread_words(threads: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def submit(store: Store, answer: ProbeAnswer, options: RunOptions) -> list[Decision]:
    """Queue what is wanted; the caller starts a runner. If it fails half-way, a runner sees to what has been queued.

    Raises:
        RunActiveError: unless ``options.everything``, if one of the runs is active; then nothing has been queued.
        StoreError: the store cannot be written.
    """
    try:
        return enqueue(
            store,
            _wanted(answer, options),
            queued_as(answer, options),
            fresh=options.fresh,
            refuse_active=not options.everything,
            threads=options.threads,
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
