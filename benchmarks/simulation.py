"""Live runs without training: a process that holds the runs' locks and appends what workers would.

    python benchmarks/simulation.py STORE --runs 1 5 --interval 0.5 --pace 20 --steps 36 [--doubling 8]

It prints a line when every run is under way, and ends when its standard input does. The directories, run.json, locks
and logs are made by the package's own code; only the numbers are invented.
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
from lmconsole.runs import lock
from lmconsole.runs.events import Epoch, EventLog, Progress, Queued, Started, Telemetry, perplexity
from lmconsole.runs.info import write_info
from lmconsole.runs.paths import RunPaths

PRESET = "scratch"
PROGRESS_S = 0.5
"""Seconds between two ``progress`` events of a real run; every second one is followed by one of telemetry."""
EPOCH_S = 8.0
"""Seconds that an epoch lasts. Real ones are longer."""
MOST_SLEEP_S = 0.05
"""Between two looks at whether to end; at a high pace events come in batches of so long."""


@dataclass
class LiveRun:
    """One run and where it stands. The whole life follows from ``seed``."""

    paths: RunPaths
    log: EventLog
    held: lock.Lock
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
    epoch_began_s: float = 0.0
    _noise: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._noise = random.Random(self.seed * 1_000 + self.number)

    @property
    def over(self) -> bool:
        """Whether the last epoch is recorded. The run then stays as it is: running, and silent."""
        return self.epoch > self.epochs

    def tick(self) -> None:
        """What happens in half a second: progress, now and then telemetry, and an epoch where one is complete."""
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
        """Nats: a fall that slows down, to a floor of the run's own."""
        done = self.epoch - 1 + self.step / STEPS
        floor = 4.4 + 0.15 * self.number
        return floor + (9.8 - floor) * math.exp(-done / 2.5)

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
                train_s=self.elapsed_s - self.epoch_began_s,
                valid_s=0.03 * (self.elapsed_s - self.epoch_began_s),
                elapsed_train_s=self.elapsed_s,
            ),
            sync=True,
        )
        self.epoch, self.step, self.epoch_began_s = self.epoch + 1, 0.0, self.elapsed_s


def begin(root: Path, number: int, pace: float, doubling_s: float | None, steps_per_event: float) -> LiveRun:
    """Queue a run of experiment ``number`` in the store ``root``, take its lock, and start it."""
    root.mkdir(parents=True, exist_ok=True)
    paths = RunPaths(root / f"{number:02d}-simulated-{PRESET}-s42-20260101T0000{number:02d}Z")
    made = root / f".tmp-{paths.run}"
    made.mkdir()
    info = run_info(number, PRESET, WIKITEXT2, run=paths.run)
    write_info(RunPaths(made).info, info)
    log = EventLog(RunPaths(made).events)
    log.append(Queued(devices=("cpu",), jobs=12))
    made.rename(paths.folder)
    held = lock.acquire(paths.lock)
    assert held is not None, paths.lock
    log.append(
        Started(
            attempt=1,
            pid=os.getpid(),
            host="box",
            device="cpu",
            device_name="a processor",
            device_uuid=None,
            versions={"lmconsole": __version__},
            threads=1,
            precision="fp32",
            parameters_total=38_304_000,
            parameters_trainable=7_087_872,
        )
    )
    return LiveRun(paths, log, held, info.settings.epochs, number, info.seed, doubling_s, pace, steps_per_event)


def run_until_told(runs: Sequence[LiveRun], interval_s: float) -> None:
    """Let every run tick each ``interval_s``, one after the other, until standard input ends. A tick that is late is
    made up for."""
    began = time.monotonic()
    due = [began + interval_s * i / len(runs) for i in range(len(runs))]
    while True:
        now = time.monotonic()
        for i, run in enumerate(runs):
            while due[i] <= now and not run.over:
                run.tick()
                due[i] += interval_s
        pending = [at for at, run in zip(due, runs, strict=True) if not run.over]
        rest = min(pending, default=now + 1.0) - time.monotonic()
        if select.select([sys.stdin], [], [], max(rest, MOST_SLEEP_S))[0]:
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
    """Runs of these experiments are under way in the store ``root``, written by a process of their own.

    ``interval_s``: seconds between two progress events of a run. ``pace``: seconds of training that pass in one.
    ``doubling_s``: after so long, and again and again, a step takes twice the training time, so that the time that the
    whole run is expected to take grows and the time axis moves; None keeps the speed. ``steps_per_event``: steps from
    one progress event to the next.
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
            raise RuntimeError(f"the simulated runs did not start: exit code {process.wait()}")
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=30)


def main() -> None:
    """Start the runs, say so, and let them live."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--runs", type=int, nargs="+", required=True, help="numbers of experiments")
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--pace", type=float, required=True)
    parser.add_argument("--steps", type=float, required=True)
    parser.add_argument("--doubling", type=float)
    asked = parser.parse_args()
    runs = [begin(asked.store, number, asked.pace, asked.doubling, asked.steps) for number in asked.runs]
    print("under way", flush=True)
    run_until_told(runs, asked.interval)
    for run in runs:
        run.log.close()
        run.held.release()


if __name__ == "__main__":
    main()
