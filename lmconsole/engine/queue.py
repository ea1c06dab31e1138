"""Putting runs into the queue: a run directory appears whole, or an unfinished run is queued again."""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from lmconsole import __version__
from lmconsole.engine.probe import Prepared, ProbeAnswer
from lmconsole.errors import RunActiveError, StoreError
from lmconsole.runs import lock
from lmconsole.runs.events import EventLog, Queued, utc_now
from lmconsole.runs.info import SCHEMA, RunInfo, write_info
from lmconsole.runs.paths import RunPaths, sync_folder
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

LOCK_TIMEOUT_S = 60.0


class Action(StrEnum):
    """What queuing does about one wanted run."""

    NEW = "new"
    RESUME = "resume"
    FINISHED = "finished"
    """Done before; nothing is repeated."""
    ACTIVE = "active"
    """Queued or running already."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A run as asked for, whether or not it exists."""

    prepared: Prepared
    preset: str
    seed: int
    same_run: str

    @property
    def stem(self) -> str:
        """Beginning of the run's id, all but the time."""
        experiment = self.prepared.experiment
        return (
            f"{experiment.id:02d}-{experiment.model}-{experiment.layers}l-{experiment.optimizer}"
            f"-{self.preset}-s{self.seed}"
        )


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about a wanted run. ``run`` is the run directory's name, None for one that is still to be made."""

    wanted: Wanted
    action: Action
    run: str | None
    epoch: int | None = None
    """Epoch from which a run resumes."""


def wanted_runs(answer: ProbeAnswer, seeds: Sequence[int] | None) -> list[Wanted]:
    """Every experiment of the answer with each of the seeds, or with its own."""
    return [
        Wanted(prepared=prepared, preset=answer.preset, seed=seed, same_run=fingerprint(prepared, seed))
        for prepared in answer.prepared
        for seed in (seeds or [prepared.seed])
    ]


def fingerprint(prepared: Prepared, seed: int) -> str:
    """One hash over all that decides a run's numbers: equal hashes, same run."""
    identity = {
        "experiment": prepared.experiment.id,
        "settings": prepared.settings,
        "seed": seed,
        "corpus": prepared.corpus.sha256,
        "embeddings": prepared.embeddings.sha256 if prepared.embeddings else None,
        "max_tokens": prepared.corpus.max_tokens,
    }
    return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()


def decide(runs: Iterable[Run], wanted: Iterable[Wanted], *, fresh: bool) -> list[Decision]:
    """What queuing ``wanted`` would do beside ``runs`` (oldest first), of which unreadable ones do not count. With
    ``fresh`` every run is new."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        if not run.problem:
            same.setdefault(run.info.same_run, []).append(run)
    return [_decide_one([] if fresh else same.get(each.same_run, []), each) for each in wanted]


def _decide_one(same: list[Run], wanted: Wanted) -> Decision:
    for run in reversed(same):
        if run.status.active or (run.status is not Status.FINISHED and run.worker() is not None):
            return Decision(wanted=wanted, action=Action.ACTIVE, run=run.run)
    for run in reversed(same):
        if run.status is Status.FINISHED:
            return Decision(wanted=wanted, action=Action.FINISHED, run=run.run)
    for run in reversed(same):
        return Decision(wanted=wanted, action=Action.RESUME, run=run.run, epoch=run.state.position[0])
    return Decision(wanted=wanted, action=Action.NEW, run=None)


def enqueue(
    store: Store,
    wanted: Sequence[Wanted],
    queued: Queued,
    *,
    fresh: bool,
    refuse_active: bool,
    threads: int,
) -> list[Decision]:
    """Make or requeue a run directory for all of ``wanted``, under the store's queue lock, so that two commands at once
    never make the same run twice. Every decision that is returned names its run.

    Raises:
        RunActiveError: with ``refuse_active``, if one of them is active; then nothing has been queued.
        StoreError: the store cannot be written.
    """
    with _queue_lock(store):
        runs = store.runs()
        decisions = decide(runs, wanted, fresh=fresh)
        active = [decision.run for decision in decisions if decision.action is Action.ACTIVE]
        if active and refuse_active:
            raise RunActiveError(
                f"{store.root}: already queued or running: {', '.join(map(str, active))}",
                hint="`lmconsole watch RUN` follows it, `lmconsole stop RUN` stops it; `run --all` waits for it.",
            )
        by_name = {run.run: run for run in runs}
        done = []
        for decision in decisions:
            if decision.action is Action.NEW:
                name = _make(store, decision.wanted, queued, threads)
                decision = msgspec.structs.replace(decision, run=name)
            elif decision.action is Action.RESUME:
                _requeue(by_name[str(decision.run)], queued)
            done.append(decision)
        return done


def requeue(store: Store, names: Iterable[str]) -> list[str]:
    """Queue runs that ended before their time again, each as it was last queued, and name those that were; finished
    and active ones are left alone. Raises StoreError if the store cannot be written."""
    with _queue_lock(store):
        by_name = {run.run: run for run in store.runs()}
        done = []
        for name in names:
            run = by_name.get(name)
            if run is None or run.problem or run.status.active or run.status is Status.FINISHED:
                continue
            if run.info.origin == "imported":
                continue
            if run.state.queued is not None and run.worker() is None:
                _requeue(run, run.state.queued)
                done.append(name)
        return done


@contextlib.contextmanager
def _queue_lock(store: Store) -> Iterator[None]:
    """The store, made if need be, for this process alone as far as queuing goes."""
    store.create()
    try:
        with lock.held(store.queue_lock, LOCK_TIMEOUT_S) as mine:
            if mine is None:
                raise StoreError(f"{store.queue_lock}: another command has been queuing for {LOCK_TIMEOUT_S:.0f} s")
            yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or store.root}: the run store cannot be written: {error.strerror}",
            hint="Make room or correct its permissions, or name another store with --runs.",
        ) from None


def _make(store: Store, wanted: Wanted, queued: Queued, threads: int) -> str:
    now = datetime.now(UTC)
    stem = f"{wanted.stem}-{now:%Y%m%dT%H%M%SZ}"
    run, number = stem, 1
    while (store.root / run).exists():
        number += 1
        run = f"{stem}-{number}"
    prepared = wanted.prepared
    info = RunInfo(
        schema=SCHEMA,
        run=run,
        queued_t=utc_now(),
        experiment=prepared.experiment,
        preset=wanted.preset,
        settings=prepared.settings,
        origins=prepared.origins,
        seed=wanted.seed,
        same_run=wanted.same_run,
        corpus=prepared.corpus,
        embeddings=prepared.embeddings,
        threads=threads,
        command=tuple(sys.argv),
        cwd=os.getcwd(),
        version=__version__,
    )
    temporary = store.temporary(run)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        paths = RunPaths(temporary)
        write_info(paths.info, info)
        log = EventLog(paths.events)
        log.append(queued, sync=True)
        log.close()
        paths.lock.touch()
        sync_folder(temporary)
        os.rename(temporary, store.root / run)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(store.root)
    return run


def _requeue(run: Run, queued: Queued) -> None:
    """Append ``queued`` to a run that ended before its time. Its worker is dead, so its lock is free."""
    with lock.held(run.paths.lock, 1.0) as mine:
        if mine is None:
            raise RunActiveError(f"{run.run}: a worker has just taken it", hint="`lmconsole watch RUN` follows it.")
        with contextlib.suppress(FileNotFoundError):
            run.paths.stop.unlink()
        log = EventLog(run.paths.events)
        log.append(queued, sync=True)
        log.close()
