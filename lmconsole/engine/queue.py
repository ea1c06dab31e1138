"""Putting runs into the queue: a run directory appears whole, or an unfinished run is queued again."""

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Literal

import msgspec

from lmconsole import __version__
from lmconsole.engine.probe import Prepared, ProbeAnswer
from lmconsole.engine.run_options import threads_per_run
from lmconsole.errors import RunActiveError, StoreError
from lmconsole.plan.flops import run_flops
from lmconsole.runs import lock
from lmconsole.runs.create import create_run
from lmconsole.runs.events import EventLog, Queued, utc_now
from lmconsole.runs.info import SCHEMA, RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, queue_order
from lmconsole.telemetry.host import cores

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
    config_hash: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about a wanted run. ``run`` is the run directory's name, None for one that is still to be made."""

    wanted: Wanted
    action: Action
    run: str | None
    threads: int
    """CPU threads of the run, old or new."""
    jobs: int
    """Runs at once on its device, this one among them."""
    epoch: int | None = None
    """Epoch from which a run resumes."""


def wanted_runs(answer: ProbeAnswer, seeds: Sequence[int] | None, *, typed_order: bool = False) -> list[Wanted]:
    """Every experiment of the answer with each of the seeds, or with its own, in the order in which they are to be
    trained: seed by seed, so that results of all experiments come first, and within a seed the longest first, so that
    the end of the queue leaves few cores idle. With ``typed_order`` experiments keep the order of the answer."""
    prepared = list(answer.prepared)
    if not typed_order:
        prepared.sort(key=lambda each: (-_run_flops(each), each.experiment.id))
    rounds = [[(each, seed) for each in prepared] for seed in seeds] if seeds else [[(p, p.seed) for p in prepared]]
    return [
        Wanted(prepared=each, preset=answer.preset, seed=seed, config_hash=fingerprint(each, seed))
        for pairs in rounds
        for each, seed in pairs
    ]


def _run_flops(prepared: Prepared) -> float:
    return run_flops(prepared.settings, prepared.corpus.vocabulary, prepared.corpus.tokens)


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


def jobs_at_once(threads: int, queued: Queued) -> int:
    """Runs that a device may train at once while one of them has so many ``threads``: ``queued.jobs``, but on a CPU no
    more than the cores have room for."""
    if queued.devices != ("cpu",) or threads <= threads_per_run(queued.jobs):
        return queued.jobs
    return max(1, cores() // threads)


def decide(
    runs: Iterable[Run], wanted: Iterable[Wanted], queued: Queued, *, fresh: bool, threads: int | None = None
) -> list[Decision]:
    """What queuing ``wanted`` would do, given the ``runs`` there are (oldest first), of which unreadable ones do not
    count. With ``fresh`` every run is new. For ``queued`` and ``threads`` see ``enqueue``."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        if not run.problem:
            same.setdefault(run.info.config_hash, []).append(run)
    decisions = []
    for each in wanted:
        action, found = _decide_one([] if fresh else same.get(each.config_hash, []))
        its_threads = (found and found.info.threads) or threads or each.prepared.threads
        decisions.append(
            Decision(
                wanted=each,
                action=action,
                run=found.run if found else None,
                threads=its_threads,
                jobs=jobs_at_once(its_threads, queued),
                epoch=found.state.position[0] if found and action is Action.RESUME else None,
            )
        )
    return decisions


def _decide_one(same: list[Run]) -> tuple[Action, Run | None]:
    """What is done about a run of which there are these, oldest first, and which of them it concerns."""
    for run in reversed(same):
        if run.status.active or (run.status is not Status.FINISHED and run.worker() is not None):
            return Action.ACTIVE, run
    for run in reversed(same):
        if run.status is Status.FINISHED:
            return Action.FINISHED, run
    return (Action.RESUME, same[-1]) if same else (Action.NEW, None)


def enqueue(
    store: Store,
    wanted: Sequence[Wanted],
    queued: Queued,
    *,
    fresh: bool,
    refuse_active: bool,
    threads: int | None = None,
) -> list[Decision]:
    """Make or requeue a run directory for all of ``wanted``, which take their places in the queue in this order, under
    the store's queue lock, so that two commands at once never make the same run twice. Every decision that is returned
    names its run.

    ``queued`` says how they are to be started; its ``jobs`` is the most at once for any of them, and ``place`` is
    filled in. ``threads``: CPU threads of new runs; None, as with ``--jobs auto``: what suits the size of each. A run
    that is resumed keeps its own.

    Raises:
        RunActiveError: with ``refuse_active``, if one of them is active; then nothing has been queued.
        StoreError: the store cannot be written.
    """
    with _queue_lock(store):
        runs = store.runs()
        decisions = decide(runs, wanted, queued, fresh=fresh, threads=threads)
        active = [decision.run for decision in decisions if decision.action is Action.ACTIVE]
        if active and refuse_active:
            raise RunActiveError(
                f"{store.root}: already queued or running: {', '.join(map(str, active))}",
                hint="`lmconsole watch RUN` follows it, `lmconsole stop RUN` stops it; `run --all` waits for it.",
            )
        by_name = {run.run: run for run in runs}
        places = _places(runs)
        done = []
        for decision in decisions:
            if decision.action in (Action.NEW, Action.RESUME):
                event = msgspec.structs.replace(queued, jobs=decision.jobs, place=next(places))
                if decision.run is None:
                    name = _make(store, decision, event, "auto" if threads is None else queued.jobs)
                    decision = msgspec.structs.replace(decision, run=name)
                else:
                    _requeue(by_name[decision.run], event)
            done.append(decision)
        return done


def requeue(store: Store, names: Iterable[str]) -> list[str]:
    """Queue runs that ended before their time again, each as it was last queued and in the order of that time, and name
    those that were; finished and active ones are left alone. Raises StoreError if the store cannot be written."""
    with _queue_lock(store):
        runs, chosen = store.runs(), set(names)
        places = _places(runs)
        done = []
        for run in sorted(runs, key=lambda run: queue_order(run.info, run.state.queued)):
            if run.run not in chosen or run.problem or run.status.active or run.status is Status.FINISHED:
                continue
            last = run.state.queued
            if run.info.origin == "imported" or last is None or run.worker() is not None:
                continue
            jobs = jobs_at_once(run.info.threads or 1, last)
            _requeue(run, msgspec.structs.replace(last, jobs=jobs, place=next(places)))
            done.append(run.run)
        return done


def _places(runs: Iterable[Run]) -> Iterator[int]:
    """The next places in the queue, behind all that was ever queued. To be taken under the queue lock."""
    return itertools.count(1 + max((run.state.queued.place for run in runs if run.state.queued), default=0))


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


def _make(store: Store, decision: Decision, queued: Queued, jobs: int | Literal["auto"]) -> str:
    """Create a new run and return its id. ``jobs``: as asked for."""
    wanted = decision.wanted
    prepared = wanted.prepared
    info = RunInfo(
        schema=SCHEMA,
        run="",
        queued_t=utc_now(),
        experiment=prepared.experiment,
        preset=wanted.preset,
        settings=prepared.settings,
        origins=prepared.origins,
        seed=wanted.seed,
        config_hash=wanted.config_hash,
        corpus=prepared.corpus,
        embeddings=prepared.embeddings,
        threads=decision.threads,
        jobs=jobs,
        command=tuple(sys.argv),
        cwd=os.getcwd(),
        version=__version__,
    )
    return create_run(store, info, [queued])


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
