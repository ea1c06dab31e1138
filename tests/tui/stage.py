"""A store with runs in any state, written by the package's own code, and the console on it, driven by a pilot."""

import html
import os
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

# As the command sets them before Textual is imported.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")

from factories import (
    STEPS,
    append_events,
    epoch_events,
    finished,
    kill_and_wait,
    locked_by_another_process,
    progress,
    started,
    telemetry,
)
from textual.pilot import Pilot

from lmconsole.engine.probe import ResolvedRun
from lmconsole.engine.queue import enqueue
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import Plan
from lmconsole.runs.events import Event, Failed, Queued, SlurmPlace, Stopped
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store
from lmconsole.telemetry.gpu import Gpus
from lmconsole.tui.app import ConsoleApp
from lmconsole.tui.feed import Feed
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.snapshot import Snapshot

FALLING = (6.0, 5.5, 5.2, 5.0)
"""Validation losses of a run that learns, nats."""
CORPUS = CorpusInfo(
    name="demo",
    kind="demo",
    path=None,
    vocabulary=2_048,
    tokenizer="BPE of 2,048",
    tokens={"train": 103_000, "validation": 12_900, "test": 12_900},
    sha256="c0" * 32,
    max_tokens=None,
)


class Recorded:
    """A run whose log is written by a test."""

    def __init__(self, folder: Path, holder: "subprocess.Popen[str] | None" = None) -> None:
        self.paths = RunPaths(folder)
        self.holder = holder
        """The process that holds the lock of its worker."""

    @property
    def run(self) -> str:
        """The run's id."""
        return self.paths.run

    def append(self, *events: Event) -> None:
        """Append events to its log."""
        append_events(self.paths, *events)

    def end(self, *events: Event) -> None:
        """Append its last events, and end its worker."""
        self.append(*events)
        if self.holder is not None:
            kill_and_wait(self.holder)


class Stage:
    """A store under ``root``, in which runs are queued and recorded, and the processes that hold their locks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "runs")
        self.plan: Plan = load_plan(None)
        self._locks = ExitStack()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def hold(self, path: Path) -> "subprocess.Popen[str]":
        """Start a process that holds the lock on ``path``, and return it."""
        return self._locks.enter_context(locked_by_another_process(path))

    def link_store(self) -> None:
        """Make the store, which does not exist yet, a symbolic link to a folder."""
        (self.root / "linked").mkdir()
        self.store.root.symlink_to(self.root / "linked")

    @contextmanager
    def unreadable_store(self) -> Iterator[None]:
        """Replace the linked store with a file until the end of the ``with`` block, with no moment without a store."""
        (self.root / "file").write_text("no folder")
        link = self.root / "link"
        link.symlink_to(self.root / "file")
        os.replace(link, self.store.root)
        yield
        link.symlink_to(self.root / "linked")
        os.replace(link, self.store.root)

    def no_runner(self) -> None:
        """Hold the runner's lock, so that queued runs stay queued."""
        self.hold(self.store.runner_lock)

    def queue(
        self,
        number: int = 1,
        *,
        seed: int = 42,
        preset: str = "demo",
        corpus: CorpusInfo = CORPUS,
        slurm: SlurmPlace | None = None,
        **settings: object,
    ) -> Recorded:
        """Queue a run, in a submission to SLURM if one is given."""
        experiment = self.plan.experiment(number)
        resolved = self.plan.resolve(experiment, preset, {"precision": "fp32", **settings})
        wanted = ResolvedRun(
            experiment=experiment,
            preset=preset,
            settings=resolved.settings,
            seed=seed,
            origins=resolved.origins,
            corpus=corpus,
            embeddings=None,
            threads=1,
        )
        queued = Queued(devices=("cpu",), jobs=1, slurm=slurm)
        (made,) = enqueue(self.store, [wanted], queued, fresh=True, refuse_active=False, threads=1)
        return Recorded(self.store.root / str(made.run))

    def record(
        self, number: int = 1, status: str = "finished", *, valid: Sequence[float] = FALLING, **more: Any
    ) -> Recorded:
        """Record a run with an epoch for each of the losses in ``valid``, which ends with ``status``."""
        whole = status in ("finished", "diverged")
        more.setdefault("epochs", len(valid) if whole else len(valid) + 2)
        run = self.queue(number, **more)
        if status == "queued":
            return run
        run.append(started())
        for n, loss in enumerate(valid, 1):
            run.append(*epoch_events(n, loss))
        if not whole:
            n = len(valid) + 1
            run.append(progress(n, STEPS // 2, (valid[-1] if valid else 7.0) - 0.4), telemetry())
        if status == "running":
            run.holder = self.hold(run.paths.lock)
        elif status == "stopped":
            run.append(Stopped(epoch=len(valid) + 1, step=STEPS // 2))
        elif status == "failed":
            run.append(Failed(error="out-of-memory", message="the GPU is full", hint="Try --precision bf16."))
        elif whole:
            run.append(finished(valid))
        else:
            assert status == "lost", status
        return run

    def options(self, **more: Any) -> ConsoleOptions:
        """Return options of the console, changed by ``more``."""
        given: dict[str, Any] = {"plan": self.plan, "store": self.store.root, "exports": self.root / "exports"}
        return ConsoleOptions(**{**given, **more})

    @asynccontextmanager
    async def console(
        self, *, size: tuple[int, int] = (120, 40), gpus: Callable[[], Gpus] | None = None, **more: Any
    ) -> AsyncIterator[Pilot[str]]:
        """Open the console on this store, and yield it once it has shown the store."""
        feed = None if gpus is None else Feed(self.store.root, open_gpus=gpus)
        app = ConsoleApp(self.options(**more), feed=feed)
        app.feed.poll_s = 0.1
        async with app.run_test(size=size, notifications=True) as pilot:
            await eventually(pilot, lambda: app.feed.snapshot.number > 0)
            await pilot.pause()
            yield pilot


def console_of(pilot: Pilot[str]) -> ConsoleApp:
    """Return the app that ``pilot`` plays."""
    assert isinstance(pilot.app, ConsoleApp)
    return pilot.app


@contextmanager
def blocking(path: Path) -> Iterator[None]:
    """Let every attempt to open ``path`` wait until the end of the ``with`` block, as on a file system that hangs."""
    real_open, answer = os.open, threading.Event()

    def slow_open(name: Any, *arguments: Any, **options: Any) -> int:
        if str(name) == str(path):
            answer.wait(60.0)
        return real_open(name, *arguments, **options)

    with patch.object(os, "open", slow_open):
        try:
            yield
        finally:
            answer.set()


class NvmlError(Exception):
    """The error of the GPU driver."""


def driver(*used_gib: float, total_gib: float = 24.0, watts: float | None = 250.0) -> Callable[[], Gpus]:
    """Return a fake driver of GPUs with ``used_gib`` in use. ``watts`` is None if power is not supported."""
    gib = 1024**3

    def power(_handle: int) -> int:
        if watts is None:
            raise NvmlError
        return round(watts * 1000)

    nvml: Any = SimpleNamespace(
        NVMLError=NvmlError,
        NVML_TEMPERATURE_GPU=0,
        nvmlMemory_v2=2,
        nvmlDeviceGetCount=lambda: len(used_gib),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: f"GPU-{index:08d}",
        nvmlDeviceGetName=lambda index: "NVIDIA Fake 24G",
        nvmlDeviceGetMemoryInfo=lambda index, version: SimpleNamespace(
            used=round(used_gib[index] * gib), total=round(total_gib * gib)
        ),
        nvmlDeviceGetUtilizationRates=lambda index: SimpleNamespace(gpu=87),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetTemperature=lambda index, sensor: 61,
    )
    return lambda: Gpus(nvml, None)


def no_driver() -> Gpus:
    """Return the driver of a machine without a GPU."""
    return Gpus(None, "no NVIDIA driver: its library libnvidia-ml.so.1 is missing or cannot be loaded")


@contextmanager
def following(root: Path, gpus: Callable[[], Gpus] = no_driver) -> Iterator[Feed]:
    """Start a feed that polls often."""
    feed = Feed(root, open_gpus=gpus)
    feed.poll_s = 0.02
    feed.start()
    try:
        yield feed
    finally:
        feed.close()


def wait_for_snapshot(feed: Feed, wanted: Callable[[Snapshot], object], seconds: float = 10.0) -> Snapshot:
    """Return the first snapshot that is ``wanted``."""
    deadline = time.monotonic() + seconds
    while not (feed.snapshot.number and wanted(feed.snapshot)):
        assert time.monotonic() < deadline, f"timed out with {feed.snapshot}"
        feed.restart_if_blocked()
        time.sleep(0.01)
    return feed.snapshot


_CELLS = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', re.DOTALL)
_CELL_WIDTH, _LINE_HEIGHT, _BASELINE = 12.2, 24.4, 20.0


def lines_of(svg: str) -> list[str]:
    """Return the lines of a screenshot."""
    rows: dict[int, str] = {}
    for x, y, words in _CELLS.findall(svg):
        column, row = round(float(x) / _CELL_WIDTH), round((float(y) - _BASELINE) / _LINE_HEIGHT)
        text = html.unescape(words).replace("\xa0", " ").rstrip("\n")
        rows[row] = rows.get(row, "").ljust(column) + text
    return [rows.get(row, "").rstrip() for row in range(max(rows, default=-1) + 1)]


def screen(pilot: Pilot[Any]) -> str:
    """Return the text on the screen."""
    return "\n".join(lines_of(pilot.app.export_screenshot()))


def line_with(pilot: Pilot[Any], words: str) -> str:
    """Return the first line of the screen that contains ``words``."""
    shown = screen(pilot)
    found = [line for line in shown.splitlines() if words in line]
    assert found, f"no {words!r} in\n{shown}"
    return found[0]


def experiment(pilot: Pilot[Any], number: int) -> str:
    """Return the table row of an experiment."""
    found = re.search(rf"^ ?[■□x.][▸▾>v]? +{number} +(LSTM|GPT-1).*$", screen(pilot), re.MULTILINE)
    assert found, f"no experiment {number} in\n{screen(pilot)}"
    return found[0].strip()


_ROW = re.compile(r"^ ?([■□x.])[▸▾>v]? +(\d+) +(?:LSTM|GPT-1)", re.MULTILINE)


def listed(pilot: Pilot[Any]) -> list[int]:
    """Return the ids of the experiments in the table."""
    return [int(number) for _, number in _ROW.findall(screen(pilot))]


def selected(pilot: Pilot[Any]) -> list[int]:
    """Return the ids of the experiments whose box is checked."""
    return [int(number) for box, number in _ROW.findall(screen(pilot)) if box in "■x"]


async def eventually(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out; the screen shows\n{screen(pilot)}"
        await pilot.pause(0.02)


async def sees(pilot: Pilot[Any], look: Callable[[Pilot[Any]], object], wanted: object) -> None:
    """Wait until ``look`` returns ``wanted``."""
    deadline = time.monotonic() + 10.0
    while (seen := look(pilot)) != wanted and time.monotonic() < deadline:
        await pilot.pause(0.02)
    assert seen == wanted


async def shows(pilot: Pilot[Any], *words: str, seconds: float = 10.0) -> str:
    """Wait until all of ``words`` are on the screen, and return it."""
    return await _screen_when(pilot, lambda shown: all(each in shown for each in words), seconds)


async def shows_no_more(pilot: Pilot[Any], words: str, seconds: float = 10.0) -> str:
    """Wait until ``words`` are gone from the screen, and return it."""
    return await _screen_when(pilot, lambda shown: words not in shown, seconds)


async def _screen_when(pilot: Pilot[Any], condition: Callable[[str], bool], seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while not condition(shown := screen(pilot)):
        assert time.monotonic() < deadline, f"timed out; the screen shows\n{shown}"
        await pilot.pause(0.02)
    return shown
