"""The queue: decide what to do about each requested run, create run directories, and queue unfinished runs again."""

import contextlib
import itertools
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import msgspec

from lmconsole import __version__
from lmconsole.engine.probe import ResolvedRun
from lmconsole.engine.provenance import Captured
from lmconsole.errors import RunActiveError
from lmconsole.runs import lock
from lmconsole.runs.claim import last_claim, make_claim
from lmconsole.runs.create import create_run, next_places, queue_lock
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Queued, utc_now
from lmconsole.runs.info import SCHEMA, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.permissions import AfterQueue, Permissions, pending
from lmconsole.runs.registration import last_number, readable_registrations
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store, queue_order
from lmconsole.telemetry.host import cores, threads_per_run

RUN_LOCK_TIMEOUT_S = 1.0
_NOTHING = AfterQueue()


class Action(StrEnum):
    """Action of the queue for a requested run, or the reason for none."""

    NEW = "new"
    RESUME = "resume"
    TEST = "test"
    """Finished before without its tests: tested with its best weights, and not trained again."""
    FINISHED = "finished"
    """Finished before; nothing is repeated."""
    ACTIVE = "active"
    """Already queued or running."""

    @property
    def queues(self) -> bool:
        """Whether a run is put into the queue."""
        return self in (Action.NEW, Action.RESUME, Action.TEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueDecision:
    """Decision about one resolved run."""

    resolved: ResolvedRun
    action: Action
    run: str | None
    """Name of the run directory; None for one that does not exist yet."""
    threads: int
    """CPU threads of the run: those it was created with, if it exists."""
    jobs: int
    """Runs at once on its device, this one among them."""
    epoch: int | None = None
    """Epoch from which a run resumes."""


def training_order(
    runs: Iterable[ResolvedRun], seeds: Sequence[int] | None, *, keep_order: bool = False
) -> list[ResolvedRun]:
    """Return every run with each of the ``seeds``, or with its own, in the order of training.

    All experiments run with the first seed before any runs with the second. Within a seed the longest run is first, so
    that the end of the queue leaves few cores idle; with ``keep_order`` runs keep the order given.
    """
    ordered = list(runs)
    if not keep_order:
        ordered.sort(key=lambda run: (-run.flops, run.experiment.id))
    if not seeds:
        return ordered
    return [msgspec.structs.replace(run, seed=seed) for seed in seeds for run in ordered]


def jobs_at_once(threads: int, event: Queued) -> int:
    """Return how many runs a device may train at once while one of them has this many ``threads``.

    That is ``event.jobs``, which may exceed the number of cores, unless the device is a CPU and the run has more
    threads than suit so many runs. Then it is the number of such runs that fit on the cores, at least one. A task of
    SLURM has cores of its own.
    """
    if event.devices != ("cpu",) or event.slurm is not None or threads <= threads_per_run(event.jobs):
        return event.jobs
    return max(1, cores() // threads)


def decide(
    known: Iterable[Run],
    wanted: Iterable[ResolvedRun],
    template: Queued,
    *,
    active: Collection[str],
    fresh: bool,
    after_place: int = 0,
    threads: int | None = None,
) -> list[QueueDecision]:
    """Return what ``enqueue`` would do, without doing it.

    Args:
        known: runs of the store, oldest first. Unreadable ones are ignored.
        active: names of those that are ``pending``.
        wanted, template, fresh, after_place, threads: as for ``enqueue``.
    """
    runs_by_hash: dict[str, list[Run]] = {}
    for run in known:
        # A reproduction takes nobody's place.
        if not run.problem and run.info.reproduces is None and _may_count(run, after_place):
            runs_by_hash.setdefault(run.info.config_hash, []).append(run)
    decisions = []
    for resolved in wanted:
        same = [] if fresh else runs_by_hash.get(resolved.config_hash, [])
        action, found = decide_one(same, active, test=template.test)
        own_threads = _threads(resolved, found, threads)
        decisions.append(
            QueueDecision(
                resolved=resolved,
                action=action,
                run=found.run if found else None,
                threads=own_threads,
                jobs=jobs_at_once(own_threads, _sharing(template, found, action)),
                epoch=found.state.position[0] if found and action is Action.RESUME else None,
            )
        )
    return decisions


def _sharing(template: Queued, found: Run | None, action: Action) -> Queued:
    """Return the event that says how a run shares its device: for a test that of its training, whose times have it."""
    trained = found.state.queued if found is not None and action is Action.TEST else None
    return template if trained is None else trained


def _threads(resolved: ResolvedRun, found: Run | None, requested: int | None) -> int:
    """Return the CPU threads of a run: its own if it was ``found`` in the store, else the number ``requested``, else
    the number that suits its size."""
    if found is not None and found.info.threads:
        return found.info.threads
    return requested or resolved.threads


def _may_count(run: Run, after_place: int) -> bool:
    """Return whether a run may be the one that is wanted: for claims, only if queued after them, and not for tuning."""
    return not after_place or (run.state.first_place > after_place and run.info.test)


def decide_one(same: list[Run], active: Collection[str], *, test: bool) -> tuple[Action, Run | None]:
    """Return the action for a run, and the one of the ``same`` runs in the store (oldest first) that it concerns.

    A finished run is what was asked for if it was tested, or no ``test`` is wanted; otherwise it is tested.
    A run that is queued and not in ``active`` waits for nothing, so it can be queued again like one that stopped. Runs
    of another user that this one cannot write are left alone.
    """
    for run in reversed(same):
        if run.run in active or (run.status is not Status.FINISHED and run.worker() is not None):
            return Action.ACTIVE, run
    for run in reversed(same):
        if run.state.finished is None:
            continue
        if not (test and run.can_be_tested):
            return Action.FINISHED, run
        if _is_writable(run):
            return Action.TEST, run
    for run in reversed(same):
        if run.state.finished is None and _is_writable(run):
            return Action.RESUME, run
    return Action.NEW, None


def _is_writable(run: Run) -> bool:
    return os.access(run.paths.folder, os.W_OK) and os.access(run.paths.events, os.W_OK)


def enqueue(
    store: Store,
    wanted: Sequence[ResolvedRun],
    template: Queued,
    *,
    after: AfterQueue = _NOTHING,
    fresh: bool,
    refuse_active: bool,
    after_place: int = 0,
    threads: int | None = None,
    captured: Captured | None = None,
) -> list[QueueDecision]:
    """Create or requeue a run directory for each of ``wanted``, in this order, and permit the runner of this user to
    start it. In the decisions returned, ``run`` is never None.

    The store's queue lock is held, so that two commands at once never create the same run twice.

    Args:
        wanted: runs without duplicates.
        template: event that queues each run, with ``place`` and ``registrations`` to be filled in, and the index of a
            submission to SLURM. Its ``jobs`` is the most at once for any of them.
        after: what to do when the queue is empty, also for runs that are resumed.
        fresh: create new runs even where the store has the same ones.
        refuse_active: raise if one of the runs is active.
        after_place: look only at runs of the store that were first queued after this place; 0 for all.
        threads: CPU threads of new runs; None, as with ``--jobs auto``, for the number that suits the size of each. A
            resumed run keeps its own.
        captured: code and machine to record with new runs.

    Raises:
        RunActiveError: one of the runs is active, with ``refuse_active``; nothing has been queued. Or another process
            has taken the lock of a run to be resumed; the runs before it have been queued.
        StoreError: the store or the folder of permissions cannot be written; some runs may have been queued.
    """
    with queue_lock(store), granting(store) as permissions:
        runs = store.runs()
        active = {run.run for run in pending(store, runs)}
        decisions = decide(runs, wanted, template, active=active, fresh=fresh, after_place=after_place, threads=threads)
        refused = [decision.run for decision in decisions if decision.action is Action.ACTIVE]
        if refused and refuse_active:
            raise RunActiveError(
                f"{store.root}: already queued or running: {', '.join(map(str, refused))}",
                hint="`lmconsole watch RUN` follows it, `lmconsole stop RUN` stops it. "
                "`lmconsole run --all` does not refuse active runs but waits for them.",
            )
        by_name = {run.run: run for run in runs}
        places = next_places(store, runs)
        registrations = last_number(readable_registrations(store.root), runs)
        template = msgspec.structs.replace(template, registrations=registrations)
        done = []
        indexes = itertools.count()
        for decision in decisions:
            if decision.action.queues:
                event = msgspec.structs.replace(template, jobs=decision.jobs, place=next(places))
                if event.slurm is not None:
                    slurm = msgspec.structs.replace(event.slurm, index=next(indexes))
                    event = msgspec.structs.replace(event, slurm=slurm)
                if decision.run is None:
                    name = _create(store, decision, event, "auto" if threads is None else template.jobs, captured)
                    permissions.grant(RunPaths(store.root / name), 1, after)
                    decision = replace(decision, run=name)
                else:
                    _requeue(by_name[decision.run], event, permissions, after)
            done.append(decision)
        return done


def requeue(store: Store, names: Iterable[str], after: AfterQueue = _NOTHING) -> list[str]:
    """Queue runs again that stopped, failed or were lost, or that wait for nothing, each as it was last queued, and
    return their names. A finished run is queued again only if it was to be tested later and was not. All other finished
    runs and active ones are left alone.

    Args:
        after: what to do when the queue is empty. If it names no program, those that this user asked for when a run
            was queued before are kept, unless the queue has been empty since.

    Raises:
        RunActiveError: another process has taken the lock of a run; the runs before it have been queued.
        StoreError: the store or the folder of permissions cannot be written; some runs may have been queued.
    """
    with queue_lock(store), granting(store) as permissions:
        runs, chosen = store.runs(), set(names)
        active = {run.run for run in pending(store, runs)}
        places = next_places(store, runs)
        done = []
        for run in sorted(runs, key=lambda run: queue_order(run.info, run.state.queued)):
            if run.run not in chosen or run.problem or run.run in active:
                continue
            if run.status is Status.FINISHED and not run.test_is_missing:
                continue
            last = run.state.queued
            if run.info.origin == "imported" or last is None or run.worker() is not None:
                continue
            jobs = jobs_at_once(run.info.threads or 1, last)
            earlier = permissions.find(run)
            kept = after
            if earlier is not None and not (after.on_finish or after.on_event):
                kept = msgspec.structs.replace(earlier.after, exports=after.exports)
            slurm = last.slurm and msgspec.structs.replace(last.slurm, restarts=0)
            event = msgspec.structs.replace(last, jobs=jobs, place=next(places), slurm=slurm)
            _requeue(run, event, permissions, kept)
            done.append(run.run)
        return done


def queue_interrupted(store: Store, run: Run) -> bool:
    """Queue a run again that was interrupted in a task of SLURM, in the same place of its submission, with the
    permission that it has. Return False if the user has given none.

    Raises:
        RunActiveError: another process has taken the run.
        StoreError: the store or the folder of permissions cannot be written.
        OSError: the run cannot be written.
    """
    last = run.state.queued
    with granting(store) as permissions:
        earlier = permissions.find(run)
        if earlier is None or last is None or last.slurm is None:
            return False
        slurm = msgspec.structs.replace(last.slurm, restarts=last.slurm.restarts + 1)
        _requeue(run, msgspec.structs.replace(last, slurm=slurm, seq=0, t=""), permissions, earlier.after)
    return True


@contextlib.contextmanager
def granting(store: Store) -> Iterator[Permissions]:
    """Yield the permissions for the store, and force new ones to the disk at the end."""
    permissions = Permissions(store.root)
    permissions.prepare()
    try:
        yield permissions
    finally:
        permissions.sync()


def _create(
    store: Store,
    decision: QueueDecision,
    event: Queued,
    requested_jobs: int | Literal["auto"],
    captured: Captured | None,
) -> str:
    """Create a new run, queued by ``event``, and return its id."""
    resolved = decision.resolved
    info = RunInfo(
        schema=SCHEMA,
        run="",  # filled in by create_run
        queued_t=utc_now(),
        experiment=resolved.experiment,
        preset=resolved.preset,
        settings=resolved.settings,
        origins=resolved.origins,
        seed=resolved.seed,
        test=event.test,
        config_hash=resolved.config_hash,
        corpus=resolved.corpus,
        embeddings=resolved.embeddings,
        threads=decision.threads,
        jobs=requested_jobs,
        command=tuple(sys.argv),
        cwd=os.getcwd(),
        version=__version__,
        provenance=captured.provenance if captured else None,
    )
    return create_run(store, info, [event], source_diff=captured.source_diff if captured else b"")


def _requeue(run: Run, event: Queued, permissions: Permissions, after: AfterQueue) -> None:
    """Append ``event`` to a run whose worker has ended, so that its lock is free, and permit to start it.

    Raises:
        RunActiveError: another process has taken the lock.
        StoreError: the permission cannot be saved; nobody starts the run until it is queued again.
        OSError: the log cannot be written.
    """
    earlier = permissions.find(run)
    claimed = event.slurm is not None or run.place is not None
    with lock.held(run.paths.lock, RUN_LOCK_TIMEOUT_S, optional=claimed) as held:
        if held is None:
            raise RunActiveError(f"{run.run}: a worker has just started it", hint="`lmconsole watch RUN` follows it.")
        if claimed:
            number, _ = last_claim(run.paths)
            state = RunState()
            state.read(EventReader(run.paths.events))
            seq = run.state.queued_seq
            if state.queued_seq != seq or make_claim(run.paths, number, queued_seq=seq) is None:
                raise RunActiveError(f"{run.run}: another host has just queued it", hint="`lmconsole status` shows it.")
        with contextlib.suppress(FileNotFoundError):
            run.paths.stop.unlink()
        log = EventLog(run.paths.events)
        try:
            queued = log.append(event, sync=True)
        finally:
            log.close()
        permissions.grant(run.paths, queued.seq, after)
        if earlier is not None:
            permissions.remove(earlier)
