"""Actions on runs, for the command line and the console: queue them, resume them, ask them to stop."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from lmconsole.engine.probe import ProbeAnswer, ResolvedRun
from lmconsole.engine.processes import disown, start_runner
from lmconsole.engine.queue import QueueDecision, decide, enqueue, jobs_at_once, requeue, training_order
from lmconsole.engine.register import claimed_runs, register, registered
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.poll import refresh_status
from lmconsole.engine.slurm.submit import Submission, check_submitter, submit_resumed
from lmconsole.engine.slurm.tasks import cancel_tasks
from lmconsole.errors import StoreError
from lmconsole.formatting import counted
from lmconsole.plan.presets import ranges
from lmconsole.runs.events import Queued, Stopped
from lmconsole.runs.permissions import AfterQueue, Permissions, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import cores, threads_per_run


def requested_threads(request: RunRequest) -> int | None:
    """Return the CPU threads of each new run; None if its size decides."""
    return None if request.jobs == "auto" or request.executor == "slurm" else threads_per_run(request.jobs)


def queued_as(answer: ProbeAnswer, request: RunRequest) -> Queued:
    """Return how to start the runs of a request; ``jobs`` is the most at once for any of them."""
    if request.executor == "slurm":  # each task has a device of its own, whichever it is
        devices: tuple[str, ...] = ("cpu",) if answer.device_keys == ("cpu",) else ("cuda:0",)
        return Queued(devices=devices, jobs=1, test=not request.no_test)
    return Queued(
        devices=answer.device_keys,
        jobs=request.jobs if request.jobs != "auto" else cores() if answer.device_keys == ("cpu",) else 1,
        test=not request.no_test,
    )


def _after_queue(request: RunRequest) -> AfterQueue:
    return AfterQueue(
        exports=str(request.exports) if request.exports else None,
        on_finish=request.on_finish,
        on_event=request.on_event,
        cwd=os.getcwd(),
    )


def preview(runs: Iterable[Run], answer: ProbeAnswer, request: RunRequest) -> list[QueueDecision]:
    """Return what ``submit`` would do, given the store's ``runs`` (oldest first), in the order of the queue."""
    runs, store = list(runs), Store(request.runs)
    registration = registered(store, answer) if answer.claims else None
    return decide(
        runs,
        _wanted(answer, request),
        queued_as(answer, request),
        active={run.run for run in pending(store, runs)},
        fresh=request.fresh or (bool(answer.claims) and registration is None),
        after_place=registration.place if registration else 0,
        threads=requested_threads(request),
    )


def _wanted(answer: ProbeAnswer, request: RunRequest) -> list[ResolvedRun]:
    if answer.claims:
        return claimed_runs(answer)
    return training_order(answer.runs, request.seeds, keep_order=request.keep_order)


def describe_sharing(answer: ProbeAnswer, request: RunRequest) -> str:
    """Describe how new runs share a device, such as ``2 runs at once, 1 thread each (auto)``."""
    if request.executor == "slurm":
        numbers = sorted({run.threads for run in answer.runs})
        shown = f"{' or '.join(map(str, numbers))} {'thread' if numbers == [1] else 'threads'}"
        return f"one task of SLURM a run, {shown} each"
    queued = queued_as(answer, request)
    found: dict[str, list[int]] = {}
    for run in answer.runs:
        threads = requested_threads(request) or run.threads
        words = f"{counted(jobs_at_once(threads, queued), 'run')} at once, {counted(threads, 'thread')} each"
        found.setdefault(words, []).append(run.experiment.id)
    several = len(found) > 1
    text = "; ".join(f"{words} for {ranges(ids)}" if several else words for words, ids in found.items())
    return f"{text} (auto)" if request.jobs == "auto" else text


def submit(store: Store, answer: ProbeAnswer, request: RunRequest) -> list[QueueDecision]:
    """Queue the runs of a request; the caller starts a runner. If queuing fails half-way, a runner is started for the
    runs that have been queued. Claims are registered first.

    With SLURM, the runs are submitted to it, after it has been asked whether it accepts them.

    Raises:
        LmconsoleError: claims cannot be registered, because results are known; nothing has been queued. Or SLURM does
            not accept the runs.
        RunActiveError: one of the runs is active, and not ``request.wait_for_active``; nothing has been queued.
        StoreError: the store or the folder of permissions cannot be written.
    """
    refresh_status(store)
    if request.executor != "slurm":
        return _queue(store, answer, request, None)
    submission = prepare_submission(store, answer, request)
    with submission.open():
        decisions = _queue(store, answer, request, submission)
        if queued := [str(each.run) for each in decisions if each.action.queues]:
            submission.submit(queued)
    return decisions


def _queue(
    store: Store, answer: ProbeAnswer, request: RunRequest, submission: Submission | None
) -> list[QueueDecision]:
    """Queue the runs of a request, in the places of the ``submission`` if there is one, as ``submit`` does."""
    registration = register(store, answer, request.experiments or "experiments.toml")[0] if answer.claims else None
    template = queued_as(answer, request)
    if submission is not None:
        template = msgspec.structs.replace(template, slurm=submission.place)
    try:
        return enqueue(
            store,
            _wanted(answer, request),
            template,
            after=_after_queue(request),
            fresh=request.fresh,
            refuse_active=not request.wait_for_active,
            after_place=registration.place if registration else 0,
            threads=requested_threads(request),
            captured=answer.captured,
        )
    except BaseException:
        if submission is not None:
            submission.withdraw()
        with contextlib.suppress(StoreError):
            if _any_queued(store, store.runs()):
                wake_runner(store)
        raise


def prepare_submission(store: Store, answer: ProbeAnswer, request: RunRequest) -> Submission:
    """Return a submission to SLURM for the runs of a request, which SLURM would accept. Raises LmconsoleError."""
    submission = Submission(store, request)
    count = sum(decision.action.queues for decision in preview(store.runs(), answer, request))
    if count:
        submission.check(count)
    return submission


def wake_runner(store: Store) -> None:
    """Start a runner unless one is at work; it outlives this process. Raises StoreError if it cannot be started."""
    runner = start_runner(store)
    if runner is not None:
        disown(runner)


def keep_polling(store: Store, runs: Iterable[Run]) -> None:
    """See that SLURM is asked about ``runs`` that it trains, even if the process that did so was ended. Raises
    StoreError if a runner cannot be started."""
    if any(run.active_on_slurm or run.slurm.stopped for run in runs):
        wake_runner(store)


def _any_queued(store: Store, runs: Iterable[Run]) -> bool:
    """Return whether a runner of this user would start one of ``runs``, or remove it from the queue."""
    permissions = Permissions(store.root)
    return any(run.status is Status.QUEUED and permissions.find(run) is not None for run in runs)


def resume_runs(store: Store, names: Sequence[str], exports: Path | None = None) -> list[str]:
    """Queue these runs again, each on the devices for which it was last queued, and return the names of those that were
    queued. When the queue is empty, results are exported to ``exports``.

    Finished runs, except those whose later test is missing, and active ones are left alone. Raises StoreError if the
    store or the folder of permissions cannot be written.
    """
    refresh_status(store)
    check_submitter(store, names)
    resumed = requeue(store, names, AfterQueue(exports=None if exports is None else str(exports)))
    if resumed:
        submit_resumed(store, resumed)
        wake_runner(store)
    return resumed


def stop_runs(store: Store, runs: Sequence[Run]) -> list[str]:
    """Ask active ``runs`` to stop, and remove queued ones from the queue. Return a line on each."""
    lines, removed = [], []
    for run in runs:
        if run.slurm.interrupted:
            run.request_stop()
            removed.append(run)
            lines.append(f"{run.run}: not started again")
            continue
        if not run.status.active:
            lines.append(f"{run.run}: not active ({run.status.value})")
            continue
        if run.status is Status.QUEUED and run.problem:
            lines.append(f"{run.run}: not in the queue: {run.problem}")
            continue
        run.request_stop()
        if run.status is Status.QUEUED and _remove_from_queue(run):
            removed.append(run)
            lines.append(f"{run.run}: removed from the queue")
        else:
            lines.append(f"{run.run}: asked to stop; it saves a checkpoint first")
    cancel_tasks(store, removed)
    with contextlib.suppress(StoreError):  # what this user may start plays no part in stopping runs
        if _any_queued(store, runs):
            wake_runner(store)  # to do what was asked for when the queue is empty
    return lines


def _remove_from_queue(run: Run) -> bool:
    """Record that a queued run was stopped, and return whether that was done: a worker that has it records it itself.
    Raises StoreError if the log cannot be written."""
    epoch, step = run.state.position
    try:
        return run.record_end(Stopped(epoch=epoch, step=step), after=run.state.queued_seq)
    except OSError as error:
        raise StoreError(f"{error.filename or run.paths.events}: cannot be written: {error.strerror}") from None
