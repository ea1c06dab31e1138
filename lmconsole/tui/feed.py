"""Reading the store in a thread: the newest snapshot of its runs and of the machine.

The feed knows nothing of the screen. The app reads ``Feed.snapshot`` whenever it draws and compares by identity: a run
that has not changed since the last snapshot is the same object. A run whose files block is set aside and reported, and
the thread goes on with the others.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import LineTail
from lmconsole.plan.flops import share_of_peak
from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Failed,
    Finished,
    Progress,
    Queued,
    Resumed,
    Started,
    Stopped,
    Telemetry,
)
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.gpu import Gpus, GpuSample
from lmconsole.telemetry.host import HostMemory, host_memory
from lmconsole.tui.plot.series import Curve

POLL_S = 0.5
IDLE_POLL_S = 2.0
"""Seconds between two reads of a run that is not active, and between two samples of the machine."""
PATIENCE_S = 3.0
"""Seconds for which the files of one run may block the thread."""
RECENT = 64
"""Progress and telemetry events of a run that stay in memory; its curve is kept apart."""
MACHINE = "the GPU driver"
DRIVER_BLOCKED = f"{MACHINE} does not answer"
FILES_BLOCKED = "its files do not answer"

T = TypeVar("T")


class RunView(msgspec.Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """One run at one moment; only ``curve`` goes on growing. A struct without garbage collection, not a dataclass: a
    store may hold thousands of runs."""

    run: str
    folder: Path
    info: RunInfo
    status: Status
    stopping: bool
    problem: str | None
    damaged: int
    """Damaged lines in the event log."""
    attempt: int
    position: tuple[int, int]
    """Current epoch, from 1, and steps done in it."""
    epochs: tuple[Epoch, ...]
    best: Epoch | None
    progress: Progress | None
    telemetry: Telemetry | None
    queued: Queued | None
    started: Started | None
    finished: Finished | None
    stopped: Stopped | None
    failed: Failed | None
    elapsed_train_s: float | None
    seconds_left: float | None
    curve: Curve
    points: int
    """Length of ``curve`` at that moment."""
    last_t: str

    @property
    def share_of_peak(self) -> float | None:
        """Share of the device's measured peak matmul throughput that the run reached last; None if unknown."""
        tokens_per_s = self.progress and self.progress.tokens_per_s
        peak_gflops = self.started and self.started.peak_matmul_gflops
        if not tokens_per_s or not math.isfinite(tokens_per_s) or not peak_gflops:
            return None
        return share_of_peak(self.info.settings, self.info.corpus.vocabulary, tokens_per_s, peak_gflops)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSample:
    """The GPUs at one moment, or the host's memory where there is none."""

    gpus: tuple[GpuSample, ...] = ()
    gpu_reason: str | None = None
    """Reason why no GPU is shown."""
    host: HostMemory | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """The store and the machine at one moment."""

    number: int = 0
    """Count of snapshots so far; 0 before the store has been read."""
    runs: dict[str, RunView] = field(default_factory=dict)
    """Runs by name, oldest first."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reasons why run directories cannot be read, or take too long, by name."""
    error: str | None = None
    """Reason why the store as a whole cannot be read."""
    machine: MachineSample = MachineSample()
    messages: tuple[str, ...] = ()
    """Messages of the runner about exports since the console opened."""


@dataclass(slots=True)
class _Followed:
    run: Run
    curve: Curve
    view: RunView | None = None
    read_at: float = 0.0


class Feed:
    """Reads the store at ``root`` in a thread of its own.

    ``on_first`` is called in that thread once the first snapshot is complete.
    """

    def __init__(
        self, root: Path, *, gpus: Callable[[], Gpus] = Gpus.open, on_first: Callable[[], object] | None = None
    ):
        self._store = Store(root, recent=RECENT)
        self.snapshot = Snapshot()
        self.poll_s = POLL_S
        self._open_gpus = gpus
        self._on_first = on_first
        self._closed = threading.Event()
        self._refresh = threading.Event()
        self._refreshing = False
        self._generation = 0
        """Number of the thread that may publish; a thread that was blocked for too long finds a higher one."""
        self._busy: tuple[str, float] | None = None
        self._blocked: dict[str, str] = {}
        self._followed: dict[str, _Followed] = {}
        self._gpus: Gpus | None = None
        self._runner_log = LineTail(self._store.runner_log, last_bytes=0, restart=False)

    def start(self) -> None:
        """Start the thread."""
        self._generation += 1
        threading.Thread(target=self._read, args=(self._generation,), name="feed", daemon=True).start()

    def close(self) -> None:
        """Let the thread end soon."""
        self._closed.set()
        self._refresh.set()

    def refresh(self) -> None:
        """Read every run at once, because something has just been changed."""
        self._refresh.set()

    def check(self) -> None:
        """Replace the thread if a run has blocked it for too long. Called now and then by another thread."""
        busy = self._busy
        if busy and time.monotonic() - busy[1] > PATIENCE_S:
            self._blocked[busy[0]] = DRIVER_BLOCKED if busy[0] == MACHINE else FILES_BLOCKED
            self._followed.pop(busy[0], None)
            self._busy = None
            self.start()

    def _read(self, generation: int) -> None:
        machine = MachineSample()
        sampled_at = -math.inf
        while not self._closed.is_set() and generation == self._generation:
            now = time.monotonic()
            if now - sampled_at >= IDLE_POLL_S and MACHINE not in self._blocked:
                sampled_at = now
                machine = self._guard(generation, MACHINE, self._sample_machine)
                if generation != self._generation:
                    return
            blocked = self._blocked.get(MACHINE)
            self._publish(generation, MachineSample(gpu_reason=blocked) if blocked else machine)
            if self._on_first is not None and generation == self._generation:
                on_first, self._on_first = self._on_first, None
                on_first()
            self._refreshing = self._refresh.wait(self.poll_s)
            self._refresh.clear()

    def _guard(self, generation: int, name: str, call: Callable[[], T]) -> T:
        """Return the result of a call that may never return, which ``check`` notices."""
        self._busy = (name, time.monotonic())
        try:
            return call()
        finally:
            if generation == self._generation:
                self._busy = None
            else:
                self._blocked.pop(name, None)

    def _publish(self, generation: int, machine: MachineSample) -> None:
        """Read what is new and replace the snapshot if anything in it has changed."""
        problems, error, views = dict(self._blocked), None, dict[str, RunView]()
        problems.pop(MACHINE, None)
        try:
            names = self._store.names()
        except StoreError as problem:
            error, names = str(problem), set(self._followed)
        for deleted in self._followed.keys() - names:
            del self._followed[deleted]
        old = self.snapshot
        views |= {name: old.runs[name] for name in names & self._blocked.keys() & old.runs.keys()}
        for name in names - self._blocked.keys():
            run_problem = self._guard(generation, name, partial(self._read_run, name))
            if generation != self._generation:
                return
            if run_problem:
                problems[name] = run_problem
            followed = self._followed.get(name)
            if followed and followed.view:
                views[name] = followed.view
        runs = dict(sorted(views.items(), key=lambda item: item[1].info.sort_key))
        messages = old.messages + self._read_messages()
        same_runs = list(old.runs.values()) == list(runs.values()) and (old.problems, old.error) == (problems, error)
        if not (same_runs and old.number and (old.machine, old.messages) == (machine, messages)):
            self.snapshot = Snapshot(
                number=old.number + 1, runs=runs, problems=problems, error=error, machine=machine, messages=messages
            )

    def _read_run(self, name: str) -> str | None:
        """Read the new events of one run. Return the reason why it cannot be read, if it cannot."""
        followed = self._followed.get(name)
        now = time.monotonic()
        if followed is None:
            try:
                run = self._store.open(name)
            except StoreError as error:
                return str(error)
            if run is None:
                return None
            followed = self._followed[name] = _Followed(run, Curve())
        elif not followed.run.status.active and now - followed.read_at < IDLE_POLL_S and not self._refreshing:
            return followed.run.problem
        followed.read_at = now
        events = followed.run.refresh()
        if followed.view is not None and any(isinstance(event, Resumed) for event in events):
            del self._followed[name]  # the curve loses the points after the checkpoint: start from an empty one
            return self._read_run(name)
        _extend(followed.curve, events)
        stopping = followed.run.stop_requested and followed.run.status.active
        old = followed.view
        known = (old.status, old.stopping, old.problem, old.damaged) if old else None
        if events or known != (followed.run.status, stopping, followed.run.problem, followed.run.state.damaged):
            followed.view = _view(followed.run, followed.curve, stopping)
        return followed.run.problem

    def _sample_machine(self) -> MachineSample:
        if self._gpus is None:
            self._gpus = self._open_gpus()
        if self._gpus.available:
            return MachineSample(gpus=tuple(self._gpus.devices()))
        return MachineSample(gpu_reason=self._gpus.reason, host=host_memory())

    def _read_messages(self) -> tuple[str, ...]:
        """Return the new lines of the runner's log that are about exports."""
        with contextlib.suppress(OSError):
            return tuple(line for line in self._runner_log.read_lines() if line.startswith("exports: "))
        return ()


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


def _view(run: Run, curve: Curve, stopping: bool) -> RunView:
    state = run.state
    return RunView(
        run=run.run,
        folder=run.paths.folder,
        info=run.info,
        status=run.status,
        stopping=stopping,
        problem=run.problem,
        damaged=state.damaged,
        attempt=state.attempt,
        position=state.position,
        epochs=tuple(state.epochs),
        best=state.best_epoch,
        progress=state.progress[-1] if state.progress else None,
        telemetry=state.telemetry[-1] if state.telemetry else None,
        queued=state.queued,
        started=state.started,
        finished=state.finished,
        stopped=state.stopped,
        failed=state.failed,
        elapsed_train_s=state.elapsed_train_s,
        seconds_left=state.seconds_left(run.info.settings.epochs),
        curve=curve,
        points=len(curve),
        last_t=state.last_t,
    )
