"""What the console knows: a thread that reads the store and keeps the newest picture of it at hand.

It knows nothing of the screen. Whoever draws takes ``Feed.picture`` when it suits, and compares by identity: what has
not changed since the last picture is the same object. A run whose files do not answer is put aside, named as slow, and
the others are read on without it.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from lmconsole.errors import StoreError
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
"""Between two looks at runs that are over, and at the machine."""
PATIENCE_S = 3.0
"""How long one run's files may keep the thread waiting."""
RECENT = 64
"""Progress and telemetry events of a run that stay in memory; its curve is kept apart."""
MACHINE = "the GPU driver"
SILENT = f"{MACHINE} does not answer"
STUCK = "its files do not answer"

T = TypeVar("T")
_Machine: TypeAlias = tuple[tuple[GpuSample, ...], str | None, HostMemory | None]


class RunView(msgspec.Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """A run as it stood at one moment. ``curve`` alone goes on growing."""

    run: str
    folder: Path
    info: RunInfo
    status: Status
    stopping: bool
    problem: str | None
    damaged: int
    attempt: int
    position: tuple[int, int]
    """Epoch under way, from 1, and steps done in it."""
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
    def share_of_ceiling(self) -> float | None:
        """Of the device's measured rate of matrix products, what the run used at last; None if either is unknown."""
        pace = self.progress and self.progress.tokens_per_s
        ceiling = self.started and self.started.peak_matmul_gflops
        if not pace or not math.isfinite(pace) or not ceiling:
            return None
        return share_of_peak(self.info.settings, self.info.corpus.vocabulary, pace, ceiling)


@dataclass(frozen=True)
class Picture:
    """The store and the machine at one moment."""

    number: int
    runs: dict[str, RunView] = field(default_factory=dict)
    """Oldest first."""
    problems: dict[str, str] = field(default_factory=dict)
    """Run directories that cannot be read, or take too long, and why."""
    error: str | None = None
    """Why the store as a whole cannot be read."""
    gpus: tuple[GpuSample, ...] = ()
    gpu_reason: str | None = None
    """Why there is no GPU to see."""
    host: HostMemory | None = None
    said: tuple[str, ...] = ()
    """What the runner has said about exports since the console opened."""


@dataclass
class _Followed:
    run: Run
    curve: Curve
    view: RunView | None = None
    looked: float = 0.0


class Feed:
    """Reads the store at ``root`` in a thread of its own. ``on_first`` is called there when the first picture is
    complete."""

    def __init__(self, root: Path, *, gpus: Callable[[], Gpus] = Gpus.open, on_first: Callable[[], None] | None = None):
        self._store = Store(root, recent=RECENT)
        self.picture = Picture(0)
        self.poll_s = POLL_S
        self._open_gpus = gpus
        self._on_first = on_first
        self._closed = threading.Event()
        self._look_now = threading.Event()
        self._hurry = False
        self._generation = 0
        self._busy: tuple[str, float] | None = None
        self._slow: dict[str, str] = {}
        self._followed: dict[str, _Followed] = {}
        self._gpus: Gpus | None = None
        self._log_end = _size(self._store.runner_log)

    def start(self) -> None:
        """Begin to read."""
        self._generation += 1
        threading.Thread(target=self._read, args=(self._generation,), name="feed", daemon=True).start()

    def close(self) -> None:
        """End the thread, soon."""
        self._closed.set()
        self._look_now.set()

    def look_now(self) -> None:
        """Read at once, because something has just been changed."""
        self._look_now.set()

    def check(self) -> None:
        """To be called now and then by another thread: frees the feed from a run that does not answer."""
        busy = self._busy
        if busy and time.monotonic() - busy[1] > PATIENCE_S:
            self._slow[busy[0]] = SILENT if busy[0] == MACHINE else STUCK
            self._followed.pop(busy[0], None)
            self._busy = None
            self.start()

    def _read(self, generation: int) -> None:
        machine: _Machine = ((), None, None)
        looked_at_machine = -math.inf
        while not self._closed.is_set() and generation == self._generation:
            now = time.monotonic()
            if now - looked_at_machine >= IDLE_POLL_S and MACHINE not in self._slow:
                looked_at_machine = now
                machine = self._ask(generation, MACHINE, self._machine)
                if generation != self._generation:
                    return
            self._publish(generation, machine if MACHINE not in self._slow else ((), self._slow[MACHINE], None))
            if self._on_first is not None and generation == self._generation:
                done, self._on_first = self._on_first, None
                done()
            self._hurry = self._look_now.wait(self.poll_s)
            self._look_now.clear()

    def _ask(self, generation: int, name: str, question: Callable[[], T]) -> T:
        """The answer of something that may never answer; ``check`` looks after that."""
        self._busy = (name, time.monotonic())
        try:
            return question()
        finally:
            if generation == self._generation:
                self._busy = None
            else:
                self._slow.pop(name, None)

    def _publish(self, generation: int, machine: _Machine) -> None:
        problems, error, views = dict(self._slow), None, dict[str, RunView]()
        problems.pop(MACHINE, None)
        try:
            names = self._store.names()
        except StoreError as problem:
            error, names = str(problem), set(self._followed)
        for gone in self._followed.keys() - names:
            del self._followed[gone]
        views |= {name: self.picture.runs[name] for name in names & self._slow.keys() & self.picture.runs.keys()}
        for name in names - self._slow.keys():
            wrong = self._ask(generation, name, partial(self._look, name))
            if generation != self._generation:
                return
            if wrong:
                problems[name] = wrong
            followed = self._followed.get(name)
            if followed and followed.view:
                views[name] = followed.view
        ordered = dict(sorted(views.items(), key=lambda item: item[1].info.sort_key))
        old = self.picture
        said = old.said + self._said()
        new = Picture(old.number + 1, ordered, problems, error, *machine, said)
        same = list(old.runs.values()) == list(ordered.values()) and (old.problems, old.error) == (problems, error)
        if not (same and old.number and (old.gpus, old.gpu_reason, old.host, old.said) == (*machine, said)):
            self.picture = new

    def _look(self, name: str) -> str | None:
        """Read what is new of one run; what is wrong with it."""
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
        elif not followed.run.status.active and now - followed.looked < IDLE_POLL_S and not self._hurry:
            return followed.run.problem
        followed.looked = now
        events = followed.run.refresh()
        if followed.view is not None and any(isinstance(event, Resumed) for event in events):
            del self._followed[name]  # points beyond the resumption never happened: read the log anew
            return self._look(name)
        _extend(followed.curve, events)
        stopping = followed.run.stop_requested and followed.run.status.active
        old = followed.view
        known = (old.status, old.stopping, old.problem, old.damaged) if old else None
        if events or known != (followed.run.status, stopping, followed.run.problem, followed.run.state.damaged):
            followed.view = _view(followed.run, followed.curve, stopping)
        return followed.run.problem

    def _machine(self) -> _Machine:
        if self._gpus is None:
            self._gpus = self._open_gpus()
        if self._gpus.available:
            return tuple(self._gpus.devices()), None, None
        return (), self._gpus.reason, host_memory()

    def _said(self) -> tuple[str, ...]:
        log = self._store.runner_log
        if _size(log) <= self._log_end:
            return ()
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(self._log_end)
            data = file.read()
            complete = data.rfind(b"\n") + 1
            self._log_end += complete
            lines = data[:complete].decode(errors="replace").splitlines()
            return tuple(line for line in lines if line.startswith("exports: "))
        return ()


def _extend(curve: Curve, events: Iterable[AnyEvent]) -> None:
    """Add what counts: a ``resumed`` event in the middle takes back the points beyond it."""
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
