"""Reading the store in a thread: the newest snapshot of its runs and of the machine.

The feed knows nothing of the screen. The app reads ``Feed.snapshot`` whenever it draws and compares by identity: a run
that has not changed since the last snapshot is the same object. A run whose file reads hang is set aside and reported,
and a new thread goes on with the others; so are the store itself and the GPU driver.
"""

import contextlib
import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lmconsole.errors import StoreError
from lmconsole.files import LineTail
from lmconsole.runs.events import AnyEvent, Progress, Resumed
from lmconsole.runs.fold_cache import FEWEST_RUNS, FoldCache
from lmconsole.runs.permissions import Permissions, pending
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store, oldest_first, without_garbage_collection
from lmconsole.telemetry.gpu import Gpus
from lmconsole.telemetry.host import host_memory
from lmconsole.tui.plot.curve import Curve
from lmconsole.tui.snapshot import FILES_BLOCKED, MachineSample, RunView, Snapshot, view_of

POLL_S = 0.5
IDLE_POLL_S = 2.0
"""Seconds between two reads of a run that is not active, and between two samples of the machine."""
PAUSE_RATIO = 20.0
"""Wait this many times the CPU time of the last poll, at most ``IDLE_POLL_S``: thousands of runs are read less
often."""
WAITING_RATIO = 5.0
"""Wait this many times the last pause until a run is read again that waits, and whose log has not changed."""
PATIENCE_S = 3.0
"""Seconds for which one read may block the thread."""
RECENT = 64
"""Progress and telemetry events of a run that stay in memory; its curve is kept apart."""

_STORE, _RUNNER_LOG, _GPU_DRIVER = ".store", ".runner-log", ".gpu-driver"
"""Names of reads that may block, next to the names of runs, which do not begin with a dot."""
_BLOCKED = {
    _STORE: "the run store does not answer",
    _RUNNER_LOG: "the log of the runner does not answer",
    _GPU_DRIVER: "the GPU driver does not answer",
}
"""Reasons why what is not a run is set aside."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A read that is under way."""

    name: str
    """Name of a run, or a key of ``_BLOCKED``."""
    began_s: float


class _SetAside(Exception):
    """Raised in a thread that blocked for so long that another one has replaced it."""


@dataclass(kw_only=True, slots=True)
class _FollowedRun:
    """A run whose log has been read up to some point, and what was published of it last."""

    run: Run
    curve: Curve = field(default_factory=Curve)
    view: RunView | None = None
    """None until the log has been read once."""
    from_cache: bool = False
    """Whether the state comes from a cache, without the points of the curve."""
    read_at_s: float = 0.0
    status: Status | None = None
    """Status of the run when it was read last; None before."""
    log: str = ""
    log_bytes: int = -1
    """Size of the log at ``log``, before it was read last."""

    def is_unchanged_in_queue(self, seconds: float) -> bool:
        """Return whether the run waits, was read at most ``seconds`` ago, and its log has not changed since.

        Each run of a long queue then costs one file status in most polls, instead of all that is read of a run.
        """
        recent = time.monotonic() - self.read_at_s < seconds
        return recent and self.status is Status.QUEUED and _size(self.log) == self.log_bytes

    @property
    def due(self) -> bool:
        """Whether the log should be read in every poll, or has not been read for a while."""
        if self.status is None or self.status.active:
            return True
        return time.monotonic() - self.read_at_s >= IDLE_POLL_S

    def update_view(self, events: Sequence[AnyEvent], *, unattended: bool) -> None:
        """Replace the view if there are new ``events``, or if something has changed that is not in the log."""
        run, old = self.run, self.view
        stopping = run.status.active and run.stop_requested
        new = (
            run.status,
            run.slurm,
            stopping,
            unattended,
            run.problem,
            run.state.damage,
            run.notes,
            run.notes_problem,
        )
        changed = old is None or new != (
            old.status,
            old.slurm,
            old.stopping,
            old.unattended,
            old.problem,
            old.damage,
            old.notes,
            old.notes_problem,
        )
        if events or changed:
            self.view = view_of(
                run, self.curve, stopping=stopping, unattended=unattended, has_whole_curve=not self.from_cache
            )


class Feed:
    """Reads the store at ``root`` in a thread of its own.

    ``on_first`` is called in that thread once the first snapshot is complete.
    """

    def __init__(
        self, root: Path, *, open_gpus: Callable[[], Gpus] = Gpus.open, on_first: Callable[[], object] | None = None
    ):
        self._store = Store(root, recent=RECENT)
        self._permissions = Permissions(root)
        self.snapshot = Snapshot()
        self.poll_s = POLL_S
        self._open_gpus = open_gpus
        self._on_first = on_first
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._read_all = False
        """Whether the next poll reads runs that are not due, too."""
        self._waiting_s = IDLE_POLL_S
        """Time after which runs that wait are read again, even if their logs have not changed."""
        self._lock = threading.Lock()
        """Held to change ``_under_way`` and ``_blocked``."""
        self._under_way: _Read | None = None
        self._blocked: dict[str, str] = {}
        """Reasons why reads are set aside, by their names. The thread that is blocked removes its own."""
        self._followed: dict[str, _FollowedRun] = {}
        self._folds: FoldCache | None = None
        """Cached states of finished runs; None before the first poll, and in a small store."""
        self._folds_updated = False
        self._drawn: frozenset[str] = frozenset()
        """Runs whose curves are drawn, so that their whole logs are read."""
        self._gpus: Gpus | None = None
        self._machine = MachineSample()
        self._sampled_at_s = -math.inf
        self._runner_log = LineTail(self._store.runner_log, last_bytes=0, restart=False)
        self._messages: tuple[str, ...] = ()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._poll_loop, name="feed", daemon=True).start()

    def close(self) -> None:
        """Ask the thread to end; does not wait."""
        self._closed.set()
        self._wake.set()

    def request_refresh(self) -> None:
        """Ask the thread to read every run at once, because something has just been changed."""
        self._wake.set()

    def request_curves(self, runs: Iterable[str]) -> None:
        """Ask the thread to read the whole logs of these runs, for their curves."""
        self._drawn |= frozenset(runs)
        self._wake.set()

    def restart_if_blocked(self) -> None:
        """Replace the thread if a read has blocked it for too long. Called from the app's timer."""
        with self._lock:
            read = self._under_way
            if read is None or time.monotonic() - read.began_s <= PATIENCE_S:
                return
            self._blocked[read.name] = _BLOCKED.get(read.name, FILES_BLOCKED)
            self._under_way = None
        self._followed.pop(read.name, None)
        gc.enable()  # the blocked thread may have disabled it
        self.start()

    def _poll_loop(self) -> None:
        while not self._closed.is_set():
            began_s = time.thread_time()
            try:
                self._poll()
            except _SetAside:
                return
            except Exception as error:  # the console would show old values without saying so if the thread ended
                self._publish(replace(self.snapshot, error=f"the run store cannot be read: {error!r}"))
            pause_s = min(PAUSE_RATIO * (time.thread_time() - began_s), IDLE_POLL_S)
            self._waiting_s = max(WAITING_RATIO * pause_s, IDLE_POLL_S)
            self._read_all = self._wake.wait(max(self.poll_s, pause_s))
            self._wake.clear()

    def _poll(self) -> None:
        """Read what is new, and publish it."""
        if _GPU_DRIVER not in self._blocked and time.monotonic() - self._sampled_at_s >= IDLE_POLL_S:
            self._sampled_at_s = time.monotonic()
            self._guard(_GPU_DRIVER, self._sample_machine)
        if _RUNNER_LOG not in self._blocked:
            self._guard(_RUNNER_LOG, self._read_messages)
        first = not self._followed
        with without_garbage_collection(grows=True) if first else contextlib.nullcontext():
            snapshot = self._read_runs()
        self._publish(snapshot)
        if self._folds is not None and not self._folds_updated:
            self._folds_updated = True
            runs = [followed.run for followed in self._followed.values()]
            threading.Thread(target=self._update_folds, args=(self._folds, runs), name="folds", daemon=True).start()
        if self._on_first is not None:
            on_first, self._on_first = self._on_first, None
            on_first()

    def _update_folds(self, folds: FoldCache, runs: Sequence[Run]) -> None:
        """Fold the logs of finished runs for the next time, a few hundred a second."""

        def slowly() -> Iterator[tuple[str, Path, RunState]]:
            for run in runs:
                if self._closed.wait(0.002):
                    raise _SetAside
                yield run.run, run.paths.events, run.state

        with contextlib.suppress(_SetAside):
            folds.update(slowly())

    def _guard(self, name: str, read: Callable[[], T]) -> T:
        """Return the result of a read that may never return, which ``restart_if_blocked`` notices.

        Raises:
            _SetAside: the read took so long that another thread goes on without it.
        """
        under_way = _Read(name=name, began_s=time.monotonic())
        with self._lock:
            self._under_way = under_way
        try:
            return read()
        finally:
            with self._lock:
                if self._under_way is not under_way:
                    self._blocked.pop(name, None)
                    raise _SetAside
                self._under_way = None

    def _read_runs(self) -> Snapshot:
        """Return a snapshot with what is new in the runs. A run keeps its last view while it cannot be read."""
        old, blocked = self.snapshot, dict(self._blocked)
        if _STORE in blocked:
            return replace(old, error=blocked[_STORE])
        error = None
        try:
            names = self._guard(_STORE, self._store.names)
        except StoreError as store_error:
            error, names = str(store_error), set(old.runs)
        if self._folds is None and len(names) >= FEWEST_RUNS:
            self._folds = self._guard(_STORE, partial(FoldCache, self._store.root))
        for deleted in set(self._followed) - names:
            self._followed.pop(deleted, None)
        self._guard(_STORE, self._store.cluster.refresh)
        problems = {name: reason for name, reason in blocked.items() if name not in _BLOCKED}
        views: dict[str, RunView] = {}
        for name in names:
            if name not in blocked:
                problem = self._read_run(name)
                if problem:
                    problems[name] = problem
            followed = self._followed.get(name)
            view = followed.view if followed and followed.view else old.runs.get(name)
            if view is not None:
                views[name] = view
        runs = oldest_first(views.values(), lambda view: (view.run, view.info, view.queued))
        return replace(
            old,
            runs={view.run: view for view in runs},
            problems=problems,
            error=error,
            cluster=self._store.cluster.status,
        )

    def _publish(self, new: Snapshot) -> None:
        """Replace the snapshot if anything in it has changed."""
        reason = self._blocked.get(_GPU_DRIVER)
        machine = MachineSample(gpu_reason=reason) if reason else self._machine
        old = self.snapshot
        new = replace(new, number=old.number + 1, machine=machine, messages=self._messages)
        # Views are compared by identity, because they have no __eq__.
        same_runs = list(old.runs.values()) == list(new.runs.values())
        if same_runs:
            new = replace(new, runs=old.runs)
        if not (
            old.number
            and same_runs
            and (old.problems, old.error, old.machine, old.cluster, old.messages)
            == (new.problems, new.error, new.machine, new.cluster, new.messages)
        ):
            self.snapshot = new

    def _read_run(self, name: str) -> str | None:
        """Read the new events of one run if it is due. Return the reason why it cannot be read, if it cannot."""
        followed = self._followed.get(name)
        if followed is not None and not (followed.due or self._read_all or self._lacks_curve(followed)):
            return followed.run.problem
        try:
            return self._guard(name, partial(self._read_events, name))
        except _SetAside:
            raise
        except Exception as error:  # whatever is wrong with one run, the others are still shown
            return f"{self._store.root / name}: cannot be read: {error!r}"

    def _read_events(self, name: str) -> str | None:
        followed = self._followed.get(name)
        if followed is None or self._lacks_curve(followed):
            try:
                run = self._store.open(name)
            except StoreError as error:
                return str(error)
            if run is None:
                return None
            cached = self._folds is not None and name not in self._drawn and run.restore(self._folds)
            followed = self._followed[name] = _FollowedRun(run=run, log=str(run.paths.events), from_cache=cached)
        elif not self._read_all and followed.is_unchanged_in_queue(self._waiting_s):
            return followed.run.problem
        followed.read_at_s = time.monotonic()
        followed.log_bytes = _size(followed.log)
        events = followed.run.refresh()
        followed.status = followed.run.status
        if followed.from_cache and events:  # it goes on
            self._drawn |= {name}
            return self._read_events(name)
        if followed.view is not None and any(isinstance(event, Resumed) for event in events):
            # The curve loses the points after the checkpoint, but earlier views share it: read the run from its start
            # into an empty curve, to which _extend does not add those points.
            self._followed.pop(name, None)
            return self._read_events(name)
        _extend(followed.curve, events)
        followed.update_view(events, unattended=self._is_unattended(followed.run))
        return followed.run.problem

    def _lacks_curve(self, followed: _FollowedRun) -> bool:
        return followed.from_cache and followed.run.run in self._drawn

    def _is_unattended(self, run: Run) -> bool:
        if run.status is not Status.QUEUED or run.problem or run.info.origin == "imported":
            return False
        if self._permissions.allows(run):  # reads no file once it has been found
            return False
        with contextlib.suppress(StoreError):
            return not pending(self._store, [run])
        return True

    def _sample_machine(self) -> None:
        """Sample the GPUs, or the host's memory where there is none."""
        if self._gpus is None:
            self._gpus = self._open_gpus()
        if self._gpus.available:
            self._machine = MachineSample(gpus=tuple(self._gpus.devices()))
        else:
            self._machine = MachineSample(gpu_reason=self._gpus.reason, host=host_memory())

    def _read_messages(self) -> None:
        """Add the new lines of the runner's log that are about exports."""
        with contextlib.suppress(OSError):
            lines = self._runner_log.read_lines()
            self._messages += tuple(line for line in lines if line.startswith("exports: "))


def _size(path: str) -> int:
    """Return the size of a file, -1 if it cannot be read."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def _extend(curve: Curve, events: Iterable[AnyEvent]) -> None:
    """Add the progress events to ``curve``, without those that a later ``resumed`` event has undone."""
    kept: list[Progress] = []
    for event in events:
        if isinstance(event, Progress):
            kept.append(event)
        elif isinstance(event, Resumed):
            while kept and (kept[-1].epoch, kept[-1].step) > (event.epoch, event.step):
                kept.pop()
    for progress in kept:
        curve.add(progress)
