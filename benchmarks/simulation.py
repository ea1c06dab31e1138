"""Simulate live runs: one process that holds the locks of the runs and appends the events that workers would append.

    python benchmarks/simulation.py STORE --runs 1 5 --interval 0.5 --pace 20 --steps 36 [--doubling 8]

It prints a line when all runs have started, and ends when its standard input is closed. The package's own code writes
the directories, run.json, locks and logs; only the measurements are invented.
"""

import argparse
import math
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from store import STEPS, WIKITEXT2, run_info

from lmconsole import __version__
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Epoch, Progress, Queued, Started, Telemetry, perplexity
from lmconsole.runs.info import write_info
from lmconsole.runs.lock import Lock, acquire
from lmconsole.runs.paths import RunPaths

PRESET = "scratch"
PROGRESS_S = 0.5
"""Time between two ``progress`` events of a real run. Every second one is followed by a ``telemetry`` event."""
EPOCH_S = 8.0
"""Duration of an epoch, less than that of a real one."""
MIN_WAIT_S = 0.05
"""Time between two checks of standard input. At a shorter interval, events are written in batches."""


@dataclass(kw_only=True)
class LiveRun:
    """A simulated run and its state. ``seed`` and ``number`` determine all of its events."""

    paths: RunPaths
    log: EventLog
    lock: Lock
    epochs: int
    number: int
    seed: int
    doubling_s: float | None
    pace: float
    steps_per_event: float
    ticks: int = 0
    epoch: int = 1
    step: float = 0.0
    elapsed_s: float = 0.0
    epoch_started_s: float = 0.0
    _noise: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._noise = random.Random(self.seed * 1_000 + self.number)

    @property
    def complete(self) -> bool:
        """Whether the last epoch is recorded. The run then remains running without further events."""
        return self.epoch > self.epochs

    def tick(self) -> None:
        """Append the events of half a second: progress, telemetry every second time, and the epoch if it ends."""
        slower = 1.0 if self.doubling_s is None else 2.0 ** (self.ticks * PROGRESS_S / self.doubling_s)
        steps = self.steps_per_event * self._noise.uniform(0.95, 1.05)
        taken_s = PROGRESS_S * self.pace * slower
        self.ticks += 1
        self.step = min(self.step + steps, float(STEPS))
        self.elapsed_s += taken_s
        self.log.append(
            Progress(
                epoch=self.epoch,
                step=max(int(self.step), 1),
                steps=STEPS,
                train_loss_nats=self._loss() + self._noise.gauss(0.0, 0.04),
                tokens_per_s=steps * 16 * 256 / taken_s,
                elapsed_train_s=self.elapsed_s,
            )
        )
        if self.ticks % 2 == 0:
            self.log.append(
                Telemetry(
                    phase="train",
                    epoch=self.epoch,
                    utilization_percent=float(self._noise.randint(85, 100)),
                    rss_mib=1_400.0 + 40.0 * self.number + self._noise.uniform(0.0, 12.0),
                )
            )
        if self.step >= STEPS:
            self._end_epoch()

    def _loss(self) -> float:
        """Return a loss in nats that decays exponentially to a limit that depends on the run."""
        epochs_done = self.epoch - 1 + self.step / STEPS
        limit = 4.4 + 0.15 * self.number
        return limit + (9.8 - limit) * math.exp(-epochs_done / 2.5)

    def _end_epoch(self) -> None:
        train = self._loss() + 0.2
        valid = self._loss() + 0.3 + self._noise.gauss(0.0, 0.01)
        self.log.append(
            Epoch(
                epoch=self.epoch,
                train_loss_nats=train,
                train_ppl=perplexity(train),
                valid_loss_nats=valid,
                valid_ppl=perplexity(valid),
                train_s=self.elapsed_s - self.epoch_started_s,
                valid_s=0.03 * (self.elapsed_s - self.epoch_started_s),
                elapsed_train_s=self.elapsed_s,
            ),
            sync=True,
        )
        self.epoch, self.step, self.epoch_started_s = self.epoch + 1, 0.0, self.elapsed_s


def start_run(root: Path, number: int, pace: float, doubling_s: float | None, steps_per_event: float) -> LiveRun:
    """Queue a run of experiment ``number`` in the store ``root``, take its lock and start it."""
    root.mkdir(parents=True, exist_ok=True)
    paths = RunPaths(root / f"{number:02d}-simulated-{PRESET}-s42-20260101T0000{number:02d}Z")
    temporary = root / f".tmp-{paths.run}"
    temporary.mkdir()
    info = run_info(number, PRESET, WIKITEXT2, run=paths.run)
    write_info(RunPaths(temporary).info, info)
    log = EventLog(RunPaths(temporary).events)
    log.append(Queued(devices=("cpu",), jobs=12))
    temporary.rename(paths.folder)
    lock = acquire(paths.lock)
    assert lock is not None, paths.lock
    log.append(
        Started(
            attempt=1,
            pid=os.getpid(),
            host="box",
            device="cpu",
            device_name="CPU",
            device_uuid=None,
            versions={"lmconsole": __version__},
            threads=1,
            precision="fp32",
            parameters_total=38_304_000,
            parameters_trainable=7_087_872,
        )
    )
    return LiveRun(
        paths=paths,
        log=log,
        lock=lock,
        epochs=info.settings.epochs,
        number=number,
        seed=info.seed,
        doubling_s=doubling_s,
        pace=pace,
        steps_per_event=steps_per_event,
    )


def run_until_stdin_closes(runs: Sequence[LiveRun], interval_s: float) -> None:
    """Let every run tick once per ``interval_s``, evenly spread, until standard input is closed. Late ticks are caught
    up on."""
    started_s = time.monotonic()
    due_s = [started_s + interval_s * i / len(runs) for i in range(len(runs))]
    while True:
        now_s = time.monotonic()
        for i, run in enumerate(runs):
            while due_s[i] <= now_s and not run.complete:
                run.tick()
                due_s[i] += interval_s
        pending_s = [at_s for at_s, run in zip(due_s, runs, strict=True) if not run.complete]
        rest_s = min(pending_s, default=now_s + 1.0) - time.monotonic()
        if select.select([sys.stdin], [], [], max(rest_s, MIN_WAIT_S))[0]:
            return


@contextmanager
def live_runs(
    root: Path,
    numbers: Sequence[int],
    *,
    interval_s: float = PROGRESS_S,
    pace: float = 20.0,
    doubling_s: float | None = 8.0,
    steps_per_event: float = STEPS * PROGRESS_S / EPOCH_S,
) -> Iterator[None]:
    """Simulate runs of these experiments in the store ``root``, in a process of its own.

    Args:
        interval_s: time between two progress events of a run.
        pace: training time that passes in one second.
        doubling_s: time in which the training time of a step doubles, so that the expected time of the whole run grows
            and the time axis is rescaled; None for a constant speed.
        steps_per_event: steps from one progress event to the next.
    """
    arguments = [str(root), "--runs", *map(str, numbers), "--interval", str(interval_s), "--pace", str(pace)]
    arguments += ["--steps", str(steps_per_event)]
    arguments += [] if doubling_s is None else ["--doubling", str(doubling_s)]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise RuntimeError(f"the simulated runs did not start; exit code {process.wait()}")
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--runs", type=int, nargs="+", required=True, help="numbers of experiments")
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--pace", type=float, required=True)
    parser.add_argument("--steps", type=float, required=True)
    parser.add_argument("--doubling", type=float)
    arguments = parser.parse_args()
    runs = [
        start_run(arguments.store, number, arguments.pace, arguments.doubling, arguments.steps)
        for number in arguments.runs
    ]
    print("started", flush=True)
    run_until_stdin_closes(runs, arguments.interval)
    for run in runs:
        run.log.close()
        run.lock.release()


if __name__ == "__main__":
    main()
