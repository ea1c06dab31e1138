"""The store: a folder of run directories, which any process can read without locking anything."""

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from lmconsole.errors import RunNotFoundError, StoreError
from lmconsole.files import open_file
from lmconsole.runs import lock
from lmconsole.runs.claim import last_claim, make_claim
from lmconsole.runs.cluster import NOT_ON_SLURM, SlurmState, StatusReader, slurm_state
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import AnyEvent, Failed, Queued, SlurmPlace, Stopped
from lmconsole.runs.fold_cache import FEWEST_RUNS, FoldCache
from lmconsole.runs.info import RunInfo, read_info
from lmconsole.runs.notes import NO_NOTES, Notes, read_notes
from lmconsole.runs.paths import QUEUE_LOCK, RUNNER_LOCK, RUNNER_LOG, TEMPORARY, RunPaths
from lmconsole.runs.state import RunState, Status

_ANOTHER_STORE = "Choose another folder with --runs."

MAX_PLACE_GAP = 1_000_000
"""A place in the queue that is further above all lower ones was not given by a queue: the file was changed."""

T = TypeVar("T")


@dataclass
class Run:
    """One run, as last read."""

    paths: RunPaths
    info: RunInfo
    state: RunState = field(default_factory=RunState)
    problem: str | None = None
    """Error in the files of the run, if there is one."""
    notes: Notes = NO_NOTES
    notes_problem: str | None = None
    """Reason why its notes cannot be read, which is no problem of the run."""
    cluster: StatusReader | None = None
    """Reader of the status of the runs of the store in SLURM."""
    slurm: SlurmState = NOT_ON_SLURM
    """State in SLURM of a run that it starts."""
    _notes_version: tuple[int, int, int] | None = None
    """Time, size and number of the file of notes that was read last; None if there was none."""
    _lost: bool = False
    _reader: EventReader | None = None

    @property
    def run(self) -> str:
        """Id of the run."""
        return self.paths.run

    @property
    def status(self) -> Status:
        """Status in the log, or ``LOST`` if that is running and no process holds the lock, or SLURM says that the job
        has ended. An imported run that has not ended is lost too: it never waits or runs, so the end of its log is
        missing. A run that SLURM has interrupted, and starts again, is ``QUEUED``."""
        if self.slurm.interrupted:
            return Status.QUEUED
        return Status.LOST if self._lost else self.state.status

    @property
    def place(self) -> SlurmPlace | None:
        """Place in a submission to SLURM that starts the run; None if the runner on this machine starts it."""
        return self.state.queued.slurm if self.state.queued else None

    @property
    def active_on_slurm(self) -> bool:
        """Whether the run trains or waits on SLURM."""
        return self.place is not None and not self.problem and self.status.active

    @property
    def can_be_tested(self) -> bool:
        """Whether the run has finished without its tests, and has weights that can be tested."""
        finished = self.state.finished
        return (
            finished is not None
            and not finished.tested
            and finished.best_epoch is not None
            and self.info.origin == "trained"
        )

    @property
    def test_is_missing(self) -> bool:
        """Whether the run can be tested, and was last queued for that, in vain: the test failed or was stopped."""
        return self.can_be_tested and self.state.wants_test

    @property
    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self.paths.stop_requested

    def refresh(self) -> list[AnyEvent]:
        """Read the new events of the log, apply them, and return them; read the notes if they have changed. Errors go
        to ``problem`` and ``notes_problem``."""
        self._refresh_notes()
        if self._reader is None:
            self._reader = EventReader(self.paths.events)
        self.problem = None
        events: list[AnyEvent] = []
        try:
            events += self.state.read(self._reader)
            self._lost = self.info.origin == "imported" and self.state.status.active
            self._refresh_slurm()
            if self.state.status is Status.RUNNING and self._has_no_worker():
                events += self.state.read(self._reader)  # it may have finished after the first read
                self._lost = self.state.status is Status.RUNNING
                self._refresh_slurm()
            if self.status.active and os.path.lexists(self.paths.stop) and not self.stop_requested:
                self.problem = f"{self.paths.stop}: expected a file, found something else; remove it"
            if self.state.queued is None and self.state.status is Status.QUEUED:
                self.problem = f"{self.paths.events}: no event says that it was queued"
            elif (
                self.status is Status.QUEUED
                and self.state.queued
                and not self.state.queued.devices
                and self.info.origin == "trained"
            ):
                self.problem = f"{self.paths.events}: it was queued for no device"
        except FileNotFoundError:
            self.problem = f"{self.paths.events}: there is no such file"
        except OSError as error:
            self.problem = f"{error.filename or self.paths.folder}: {error.strerror}"
        except StoreError as error:
            self.problem = str(error)
        return events

    def _refresh_slurm(self) -> None:
        if self.cluster is not None:
            self.slurm = slurm_state(self.cluster, self.paths, self.state)

    def _has_no_worker(self) -> bool:
        return self.worker() is None if self.place is None else self.slurm.left

    def restore(self, folds: FoldCache) -> bool:
        """Take the state of the run from ``folds`` before the log is read, and return whether it is there."""
        self._reader = folds.restore(self.run, self.paths.events, self.state)
        return self._reader is not None

    def _refresh_notes(self) -> None:
        try:
            found = os.lstat(self.paths.notes)
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            version = None
        if version == self._notes_version:
            return
        self._notes_version = version
        self.notes, self.notes_problem = NO_NOTES, None
        try:
            self.notes = read_notes(self.paths)
        except StoreError as error:
            self.notes_problem = str(error)

    def worker(self) -> lock.Owner | None:
        """Return the process that holds the lock of the run: its worker, or briefly a process that repairs its log.
        None for a run that SLURM starts, maybe on a host whose locks cannot be seen here.

        Raises:
            StoreError: the lock file cannot be read.
        """
        return _owner(self.paths.lock) if self.place is None else None

    def request_stop(self) -> None:
        """Ask the run to stop. Raises StoreError if the store cannot be written."""
        try:
            os.close(open_file(self.paths.stop, os.O_WRONLY | os.O_CREAT, follow=False))
        except OSError as error:
            raise StoreError(f"{self.paths.stop}: cannot be written: {error.strerror}") from None

    def record_end(self, event: Failed | Stopped, *, after: int) -> bool:
        """Record the end of a run that has no worker, and return whether that was done.

        It is not if another process holds the run's lock, or has claimed the run, recorded an end or queued it again
        since the ``queued`` event number ``after``. Raises OSError if the log cannot be written.
        """
        with lock.held(self.paths.lock, 0.0, optional=self.place is not None) as held:
            if held is None:
                return False
            number, _ = last_claim(self.paths)
            state = RunState()
            state.read(EventReader(self.paths.events))
            by_signal = self.place is not None and state.stopped is not None and state.stopped.signal is not None
            may_fail = by_signal and isinstance(event, Failed)  # it does not get on, however often it starts again
            if not (state.status.active or may_fail) or state.queued_seq != after:
                return False
            if self.place is not None and make_claim(self.paths, number, queued_seq=after) is None:
                return False
            log = EventLog(self.paths.events)
            try:
                log.append(event, sync=True)
            finally:
                log.close()
        return True


class Store:
    """The runs in the folder ``root``. Each is read once and then followed; everything that is not a run is ignored."""

    def __init__(self, root: Path, *, recent: int | None = None, cached: bool = False) -> None:
        """Keep only the ``recent`` latest progress and telemetry events of each run in memory; all by default.

        ``cached``: take finished runs from this user's cache if the store is large. They then have the latest of these
        events only.
        """
        self.root = root.absolute()
        self._recent = recent
        self._cached = cached
        self.cluster = StatusReader(self.root)
        """Reader of the status of the runs in SLURM."""
        self._folds: FoldCache | None = None
        self._runs: dict[str, Run] = {}
        self.problems: dict[str, str] = {}
        """Reason for each run directory that cannot be read."""

    @property
    def queue_lock(self) -> Path:
        """Locked while runs are put into the queue."""
        return self.root / QUEUE_LOCK

    @property
    def runner_lock(self) -> Path:
        """Locked by the runner while it has work."""
        return self.root / RUNNER_LOCK

    @property
    def runner_log(self) -> Path:
        """Output of the runner."""
        return self.root / RUNNER_LOG

    def create(self) -> None:
        """Create the folder if it does not exist. Raises StoreError if it cannot be created or written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.root}: the run store cannot be created: {error.strerror}", hint=_ANOTHER_STORE
            ) from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreError(f"{self.root}: the run store cannot be written", hint=_ANOTHER_STORE)

    def names(self) -> set[str]:
        """Return the names of all folders that may be runs. Raises StoreError if the store cannot be read."""
        try:
            with os.scandir(self.root) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.root}: the run store cannot be read: {error.strerror}") from None

    def open(self, name: str) -> Run | None:
        """Return the run in the folder ``name`` with its log not yet read; None if the folder is not a run.

        Raises:
            StoreError: it cannot be read, or is a symbolic link, which could lead out of the store.
        """
        paths = RunPaths(self.root / name)
        try:
            info = read_info(paths.info)
        except FileNotFoundError:
            return None
        if os.path.islink(paths.folder):
            raise StoreError(f"{paths.folder}: expected a folder, found a symbolic link, which is not followed")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise StoreError(f"{paths.folder}: the name is not UTF-8", hint="Rename the folder.") from None
        return Run(paths, info, RunState(self._recent), cluster=self.cluster)

    def runs(self) -> list[Run]:
        """Return every run with its log read up to now, in the order of ``oldest_first``. Raises StoreError if the
        folder cannot be read."""
        names = self.names()
        for gone in self._runs.keys() - names:
            del self._runs[gone]
        self.problems = {}
        with without_garbage_collection(grows=not self._runs):
            if self._cached and self._folds is None and len(names) >= FEWEST_RUNS:
                self._folds = FoldCache(self.root)
            for name in names:
                self._refresh(name)
            if self._folds is not None:
                self._folds.update((run.run, run.paths.events, run.state) for run in self._runs.values())
        return oldest_first(self._runs.values(), lambda run: (run.run, run.info, run.state.queued))

    def _refresh(self, name: str) -> None:
        run = self._runs.get(name)
        if run is None:
            try:
                run = self.open(name)
            except StoreError as error:
                self.problems[name] = str(error)
                return
            if run is None:
                return
            if self._folds is not None:
                run.restore(self._folds)
            self._runs[name] = run
        run.refresh()
        if run.problem:
            self.problems[name] = run.problem

    def find(self, wanted: str) -> Run:
        """Return the run with this id or unique prefix of an id, or the latest run of the experiment with this number.

        A number never names a reproduction, and a prefix only if no other run has it.

        Raises:
            RunNotFoundError: no run matches, or several do.
            StoreError: the store cannot be read.
        """
        runs = self.runs()
        exact = [run for run in runs if run.run == wanted]
        if exact:
            return exact[0]
        if re.fullmatch(r"[0-9]{1,6}", wanted):
            latest = latest_by_experiment(runs).get(int(wanted))
            if latest is not None:
                return latest
            raise RunNotFoundError(f"{self.root}: experiment {wanted} has no run", hint=_known(runs))
        matches = [run for run in runs if wanted and run.run.startswith(wanted)]
        matches = [run for run in matches if run.info.reproduces is None] or matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = "\n".join(f"  {run.run}" for run in matches[:12])
            raise RunNotFoundError(f"{self.root}: {wanted!r} matches {len(matches)} runs:\n{names}")
        raise RunNotFoundError(f"{self.root}: no run is called {wanted!r}", hint=_known(runs))

    def runner(self) -> lock.Owner | None:
        """Return the process of the runner, if one is at work. Raises StoreError if its lock file cannot be read."""
        return _owner(self.runner_lock)

    def temporary(self, run: str) -> Path:
        """Return the folder in which a run directory is written before it is renamed."""
        return self.root / f"{TEMPORARY}{run}-{os.getpid()}"


@contextlib.contextmanager
def without_garbage_collection(*, grows: bool = False) -> Iterator[None]:
    """Keep Python from looking for cyclic garbage among the events of a large store, of which none is garbage.

    Args:
        grows: whether most of the objects in memory are created in the block. They then count as old afterwards, as
            if they had already survived collections.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if grows and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if enabled:
            gc.enable()


def _owner(path: Path) -> lock.Owner | None:
    try:
        return lock.owner(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None


def queue_order(info: RunInfo, queued: Queued | None) -> tuple[int, tuple[bool, str, str]]:
    """Return the sort key of a waiting run; the first is started next. ``queued`` is its last event of that kind, so
    that a run queued again takes its new place."""
    return queued.place if queued else 0, info.sort_key


def oldest_first(runs: Iterable[T], describe: Callable[[T], tuple[str, RunInfo, Queued | None]]) -> list[T]:
    """Return runs sorted from the one queued first to the one queued last.

    The order is that of their places in the queue, which do not depend on the clock. Runs without a place, of version
    0.1.0, come first, by their time; copies of one run are ordered by their names. Imported runs come before trained
    ones, so that the latest run of an experiment is an imported one only if there is no other.

    Args:
        describe: returns the name of a run, its run.json and its last ``queued`` event.
    """
    described = [(*describe(run), run) for run in runs]
    highest = highest_place(queued.place for _, _, queued, _ in described if queued)

    def key(item: tuple[str, RunInfo, Queued | None, T]) -> tuple[bool, int, str, str]:
        name, info, queued, _ = item
        place = queued.place if queued and queued.place <= highest else 0
        return info.origin == "trained", place, "" if place else info.queued_t, name

    return [run for *_, run in sorted(described, key=key)]


def highest_place(places: Iterable[int]) -> int:
    """Return the highest of these places that a queue can have given: see ``MAX_PLACE_GAP``. 0 if there is none."""
    highest = 0
    for place in sorted(places):
        if place > highest + MAX_PLACE_GAP:
            break
        highest = place
    return highest


def has_room(jobs: int, others: Iterable[int]) -> bool:
    """Return whether a device has room for a run with ``jobs``, next to runs with ``others`` as their ``jobs``.

    A run takes 1 / ``jobs`` of a device: all of it if it has to run alone, and half of it if it resumes with four
    threads on eight cores.
    """
    every = [jobs, *others]
    return 0 not in every and sum(Fraction(1, each) for each in every) <= 1


def latest_by_experiment(runs: Iterable[Run]) -> dict[int, Run]:
    """Return the latest run of each experiment by its number, from ``runs`` sorted oldest first. Reproductions are left
    out."""
    return {run.info.experiment.id: run for run in runs if run.info.reproduces is None}


def _known(runs: list[Run]) -> str:
    if not runs:
        return "The store is empty. Train an experiment with `lmconsole run ID`."
    return "List the runs with `lmconsole status`."
