"""The poller of a store: it asks SLURM about all runs of its user at once, and saves the answer for all viewers."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from lmconsole.engine.slurm.batch import Batch, is_being_submitted, read_batch, user_name
from lmconsole.engine.slurm.commands import SlurmError, SlurmJob, SlurmMissingError, jobs, tasks_by_place
from lmconsole.errors import StoreError
from lmconsole.runs.claim import log_bytes
from lmconsole.runs.cluster import ClusterStatus, StatusReader, TaskStatus, last_job_key, place_key, write_status
from lmconsole.runs.events import utc_now
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

POLL_S = 20.0
"""Interval at which SLURM is asked: three times a minute, however many runs there are."""
EAGER_S = 5.0
"""Interval at which SLURM is asked while a run waits for the answer whether it is started again."""
CONFIRM_S = 2.0
"""Wait before SLURM is asked again about a job that is missing."""
SUBMISSION_S = 600.0
"""Time without progress after which a command on another host, or without locks, no longer submits its runs."""
MISSES = 2
"""Consecutive answers without a job after which SLURM has ended it: a job may be missing for a moment, while it is
submitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Progress:
    """Progress of a command that makes a submission."""

    runs: int
    """Runs that it has queued."""
    since_s: float
    """When there were as many for the first time."""


@dataclass
class Poller:
    """Asks SLURM about the active runs of this user in a store."""

    store: Store
    log: Callable[[str], None]
    interval_s: float = POLL_S
    ask: Callable[[Iterable[str]], list[SlurmJob]] = jobs
    _asked_s: float | None = None
    _misses: dict[str, int] = field(default_factory=dict)
    _watched: dict[str, int] = field(default_factory=dict)
    """Submissions that are not known to have ended, with the number of consecutive answers without a job of theirs."""
    _batches: dict[str, Batch] = field(default_factory=dict)
    _progress: dict[str, _Progress] = field(default_factory=dict)
    """Progress of the commands that make or made them."""
    _missing: bool = False
    """Whether this host has no SLURM; another one may ask."""
    problem: str = ""
    """Reason why SLURM did not answer; empty if it did."""

    def owns(self, run: Run) -> bool:
        """Return whether this user has submitted the run."""
        batch = self.batch(run)
        return batch is not None and batch.user == user_name()

    def batch(self, run: Run) -> Batch | None:
        """Return the submission of a run; None if it cannot be read."""
        place = run.place
        if place is None:
            return None
        if place.batch not in self._batches:
            with contextlib.suppress(StoreError):
                self._batches[place.batch] = read_batch(self.store.root, place.batch)
        return self._batches.get(place.batch)

    def watch(self, runs: Iterable[Run]) -> bool:
        """Note which submissions have active ``runs``, and return whether there is one to ask SLURM about."""
        if self._missing:
            return False
        for run in runs:
            active = run.state.status.active or run.slurm.interrupted or run.slurm.unanswered
            # the end of one that waited is recorded by the poller alone
            lost = run.slurm.left and not run.slurm.interrupted and run.state.status is not Status.QUEUED
            if run.place and active and not lost and self.owns(run):
                self._watched.setdefault(run.place.batch, 0)
        return bool(self._watched)

    def _being_submitted(self, runs: Iterable[Run]) -> set[str]:
        """Return the submissions that a command may still be making, so that some of their runs have no jobs yet."""
        counts = Counter(run.place.batch for run in runs if run.place)
        found = set()
        for batch in self._watched:
            known, now_s = is_being_submitted(self.store.root, batch, self._batches[batch]), time.monotonic()
            last = self._progress.get(batch)
            if last is None or last.runs != counts[batch]:
                last = self._progress[batch] = _Progress(runs=counts[batch], since_s=now_s)
            if known or (known is None and now_s - last.since_s < SUBMISSION_S):
                found.add(batch)
        return found

    def poll(self, runs: Sequence[Run]) -> list[str]:
        """Ask SLURM if it is time, save the status of active ``runs``, and return the submissions without jobs, each
        once."""
        now_s = time.monotonic()
        interval_s = min(self.interval_s, EAGER_S) if any(run.slurm.unanswered for run in runs) else self.interval_s
        asked_now = self._asked_s is not None and now_s - self._asked_s < interval_s
        if asked_now or not self.watch(runs):
            return []
        self._asked_s = now_s
        active = [run for run in runs if (run.state.status.active or run.slurm.stopped) and self.owns(run)]
        before = {run.run: log_bytes(run.paths.events) for run in active}
        try:
            found = self.ask([user_name()])
        except SlurmMissingError:
            self._missing = True
            return []
        except SlurmError as error:
            self._report(error.message)
            if not any(run.state.status.active or run.slurm.interrupted for run in active):
                self._watched.clear()  # nothing is left to wait for but the last job
            return []
        self.problem = ""
        tasks = tasks_by_place(found)
        last = {job.batch: job for job in found if job.index is None and job.is_live}
        places = self._places_of_others(runs)
        being_submitted = self._being_submitted(runs)
        for run in active:
            if run.place is None:
                continue
            task = tasks.get((run.place.batch, run.place.index))
            places[place_key(run.place)] = self._status(
                run, task, before, may_follow=run.place.batch in being_submitted
            )
            if job := last.get(run.place.batch):
                places[last_job_key(run.place)] = describe_task(job, None)
        with contextlib.suppress(OSError):
            write_status(self.store.root, ClusterStatus(t=utc_now(), places=places))
        return self._without_jobs(found, being_submitted)

    def _places_of_others(self, runs: Iterable[Run]) -> dict[str, TaskStatus]:
        """Return what pollers of other users have saved about their runs."""
        earlier = StatusReader(self.store.root)
        earlier.refresh()
        known = earlier.status.places if earlier.status else {}
        others = {run.place for run in runs if (run.state.status.active or run.slurm.stopped) and not self.owns(run)}
        keys = {key for place in others if place for key in (place_key(place), last_job_key(place))}
        return {key: task for key, task in known.items() if key in keys}

    def _status(
        self, run: Run, job: SlurmJob | None, before: Mapping[str, int | None], *, may_follow: bool
    ) -> TaskStatus:
        """Return the status of the task of a run, given its job; ``may_follow``: a command may still submit one."""
        place = run.place
        assert place is not None
        key = place_key(place)
        if job is not None and job.is_live:
            self._misses.pop(key, None)
            return describe_task(job, before[run.run])
        misses = self._misses[key] = self._misses.get(key, 0) + 1
        size = before[run.run]
        # What the last attempt wrote may not be visible yet, and a run that was queued again has a new job in a moment.
        certain = job is not None and job.state != "COMPLETED" and run.state.status is not Status.QUEUED
        waits = may_follow and job is None and run.state.status is Status.QUEUED
        ended = (certain or misses >= MISSES) and not waits and log_bytes(run.paths.events) == size
        if job is None:  # SLURM forgets jobs some minutes after their end
            known = run.slurm.task or TaskStatus()
            return TaskStatus(
                job=known.job,
                state="" if known.is_live else known.state,
                node=known.node,
                log_bytes=size,
                ended=ended,
            )
        return msgspec.structs.replace(describe_task(job, size), ended=ended)

    def _without_jobs(self, found: Sequence[SlurmJob], being_submitted: Collection[str]) -> list[str]:
        """Return the submissions that have had no job, not even the last one, for some time. They are watched no
        longer."""
        live = {job.batch for job in found if job.is_live}
        for batch in self._watched:
            self._watched[batch] = 0 if batch in live or batch in being_submitted else self._watched[batch] + 1
        left = [batch for batch, misses in self._watched.items() if misses >= MISSES]
        for batch in left:
            del self._watched[batch]
        return left

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.log(f"SLURM does not answer: {problem}")
        with contextlib.suppress(OSError):
            earlier = StatusReader(self.store.root)
            earlier.refresh()
            places = earlier.status.places if earlier.status else {}
            t = earlier.status.t if earlier.status else utc_now()
            write_status(self.store.root, ClusterStatus(t=t, places=places, problem=problem))


def describe_task(job: SlurmJob, size: int | None) -> TaskStatus:
    """Return the status of a job, asked for when the log of its run had this ``size`` in bytes."""
    return TaskStatus(job=job.name, state=job.state, reason=job.reason, node=job.node, log_bytes=size)


def refresh_status(store: Store) -> None:
    """Ask SLURM about active runs of this user, before anything is queued: nobody may have asked for a long time. Where
    a job is missing, ask once more, since one is missing for a moment while it is submitted."""
    poller = Poller(store, lambda _: None, interval_s=0.0)
    runs = store.runs()
    if not any(run.place and (run.state.status.active or run.slurm.stopped) for run in runs):
        return
    for _ in range(MISSES):
        poller.poll(runs)
        runs = store.runs()
        if poller.problem or all(run.slurm.task is None or run.slurm.task.is_live for run in runs):
            return
        time.sleep(CONFIRM_S)
