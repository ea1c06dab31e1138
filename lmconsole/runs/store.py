"""The store: a folder of run directories, read by everybody, without locking anything."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from lmconsole.errors import RunNotFoundError, StoreError
from lmconsole.runs import lock
from lmconsole.runs.events import AnyEvent, EventReader, Queued
from lmconsole.runs.info import RunInfo, read_info
from lmconsole.runs.paths import QUEUE_LOCK, RUNNER_LOCK, RUNNER_LOG, TEMPORARY, RunPaths
from lmconsole.runs.state import RunState, Status


@dataclass
class Run:
    """One run as last read. ``problem`` says what is wrong with its files, if anything is."""

    paths: RunPaths
    info: RunInfo
    state: RunState = field(default_factory=RunState)
    problem: str | None = None
    _lost: bool = False
    _reader: EventReader | None = None

    @property
    def run(self) -> str:
        """The run's id."""
        return self.paths.run

    @property
    def status(self) -> Status:
        """Where the run stands; ``LOST`` if the log says running and nobody holds the lock."""
        return Status.LOST if self._lost else self.state.status

    @property
    def stop_requested(self) -> bool:
        """Whether somebody has asked the run to stop."""
        return self.paths.stop.exists()

    def refresh(self) -> list[AnyEvent]:
        """Read what is new in the log and return it. Problems end up in ``problem``."""
        if self._reader is None:
            self._reader = EventReader(self.paths.events)
        self.problem = None
        events: list[AnyEvent] = []
        try:
            events += self._read(self._reader)
            self._lost = False
            if self.state.status is Status.RUNNING and self.worker() is None:
                events += self._read(self._reader)  # it may have ended between the two looks
                self._lost = self.state.status is Status.RUNNING
            if self.state.queued is None:
                self.problem = f"{self.paths.events}: no event says that it was queued"
        except (OSError, StoreError) as error:
            self.problem = str(error)
        return events

    def _read(self, reader: EventReader) -> Sequence[AnyEvent]:
        events = reader.read_new()
        self.state.apply(events)
        self.state.damaged = reader.damaged
        return events

    def worker(self) -> lock.Owner | None:
        """The process that holds the run's lock: its worker, but for moments in which its log is mended. Raises
        StoreError if the lock cannot be asked about."""
        return _owner(self.paths.lock)

    def request_stop(self) -> None:
        """Ask the run to stop. Raises StoreError if the store cannot be written."""
        try:
            self.paths.stop.touch()
        except OSError as error:
            raise StoreError(f"{self.paths.stop}: cannot be written: {error.strerror}") from None


class Store:
    """The runs under ``root``, each read once and then followed. What is not a run is left alone and not shown."""

    def __init__(self, root: Path, *, recent: int | None = None) -> None:
        """``recent``: how many progress and telemetry events of each run to keep in memory, the newest; None keeps
        all."""
        self.root = root.absolute()
        self._recent = recent
        self._runs: dict[str, Run] = {}
        self.problems: dict[str, str] = {}
        """Run directories that cannot be read, and why."""

    @property
    def queue_lock(self) -> Path:
        """Held while runs are put into the queue."""
        return self.root / QUEUE_LOCK

    @property
    def runner_lock(self) -> Path:
        """Held by the runner while it has work."""
        return self.root / RUNNER_LOCK

    @property
    def runner_log(self) -> Path:
        """What the runner printed."""
        return self.root / RUNNER_LOG

    def create(self) -> None:
        """Make the folder if it is not there. Raises StoreError if it cannot be made or written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.root}: the run store cannot be made: {error.strerror}", hint="--runs names another folder."
            ) from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreError(f"{self.root}: the run store cannot be written", hint="--runs names another folder.")

    def names(self) -> set[str]:
        """The folders that may be runs. Raises StoreError if the store cannot be read."""
        try:
            with os.scandir(self.root) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.root}: the run store cannot be read: {error.strerror}") from None

    def open(self, name: str) -> Run | None:
        """The run in the folder ``name``, its log not yet read; None if that is not a run. Raises StoreError if it
        cannot be read."""
        paths = RunPaths(self.root / name)
        try:
            return Run(paths, read_info(paths.info), RunState(self._recent)) if paths.info.exists() else None
        except OSError as error:
            raise StoreError(f"{paths.info}: cannot be read: {error.strerror}") from None

    def runs(self) -> list[Run]:
        """Every run, imported ones first, then oldest first, with its log read up to now. Raises StoreError if the
        folder cannot be read."""
        names = self.names()
        for gone in self._runs.keys() - names:
            del self._runs[gone]
        self.problems = {}
        for name in names:
            self._refresh(name)
        return sorted(self._runs.values(), key=lambda run: run.info.sort_key)

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
            self._runs[name] = run
        run.refresh()
        if run.problem:
            self.problems[name] = run.problem

    def find(self, wanted: str) -> Run:
        """The run with that id, unique beginning of an id, or experiment number (its latest run).

        Raises RunNotFoundError naming what there is.
        """
        runs = self.runs()
        exact = [run for run in runs if run.run == wanted]
        if exact:
            return exact[0]
        if re.fullmatch(r"[0-9]{1,6}", wanted):
            of_experiment = [run for run in runs if run.info.experiment.id == int(wanted)]
            if of_experiment:
                return of_experiment[-1]
            raise RunNotFoundError(f"{self.root}: experiment {wanted} has no run", hint=_known(runs))
        matches = [run for run in runs if wanted and run.run.startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = "\n".join(f"  {run.run}" for run in matches[:12])
            raise RunNotFoundError(f"{self.root}: {wanted!r} begins the names of {len(matches)} runs:\n{names}")
        raise RunNotFoundError(f"{self.root}: no run is called {wanted!r}", hint=_known(runs))

    def runner(self) -> lock.Owner | None:
        """The process that holds the runner's lock. Raises StoreError if the lock cannot be asked about."""
        return _owner(self.runner_lock)

    def temporary(self, run: str) -> Path:
        """Where a run directory is made before it is renamed."""
        return self.root / f"{TEMPORARY}{run}-{os.getpid()}"


def _owner(path: Path) -> lock.Owner | None:
    try:
        return lock.owner(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None


def queue_order(info: RunInfo, queued: Queued | None) -> tuple[int, tuple[bool, str, str]]:
    """Sort key of waiting runs: the first is started next. ``queued`` is the run's last ``queued`` event, so that a run
    that is queued again takes its new place."""
    return queued.place if queued else 0, info.sort_key


def has_room(jobs: int, others: Iterable[int]) -> bool:
    """Whether a device on which runs with ``others`` as their ``jobs`` train has room for one with ``jobs``.

    A run takes one part in ``jobs`` of a device: one that is to run alone takes all of it, and one that resumes with
    four threads on eight cores half.
    """
    every = [jobs, *others]
    return 0 not in every and sum(Fraction(1, each) for each in every) <= 1


def latest_by_experiment(runs: Iterable[Run]) -> dict[int, Run]:
    """The newest run of each experiment, by id; ``runs`` oldest first."""
    return {run.info.experiment.id: run for run in runs}


def _known(runs: list[Run]) -> str:
    if not runs:
        return "The store is empty: `lmconsole run ID` trains an experiment."
    return "`lmconsole status` lists the runs there are."
