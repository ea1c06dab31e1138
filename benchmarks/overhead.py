"""Measure the overhead of logging and telemetry, as a share of the training time, in two ways.

**Paired**: the real training loop runs many short epochs of equal work, alternately with the real log and the sampler,
and with a log that drops everything and no sampler. Each pair of adjacent epochs gives one ratio; the result is their
median with a 95% interval. It includes every effect, such as those on caches and of the interpreter lock. On a CPU,
the loop has one thread and the CPU time of the whole process is compared, since other load affects it far less than
wall-clock time, especially that of threads that wait for each other. On a GPU, wall-clock time is compared.

**Accounted**: in the epochs with a log, the time that the training thread spends in the log and on checking for a stop
is added up, and so is the CPU time of the sampler thread, as if training paused for all of it. The sum resolves a
hundredth of a percent, but lacks the effects that only pairs include.

Epochs take about half a second, each ends with an event, and samples are taken four times a second as in the first
seconds of a run, so both shares are higher than in a long run. Syncing the log to the disk at the end of an epoch is
outside the timed part; its share is computed for an epoch as long as the demo's, the shortest preset. The goal applies
to the accounted share, and the paired one must not contradict it.
"""

import math
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from result_rows import Row
from store import run_info

from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus, describe
from lmconsole.engine.sampler import Sampler
from lmconsole.lm import device as devices
from lmconsole.lm import memory
from lmconsole.lm.loop import TrainingContext, train
from lmconsole.plan.experiment import Settings
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import E, Phase
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState
from lmconsole.telemetry.host import cores

GOAL_SHARE = 0.01
"""Upper limit of the overhead, as a share of the training time."""
MAX_INTERVAL = 4 * GOAL_SHARE
"""Width of the paired interval above which it is too noisy to contradict the accounted share."""
WARM_UP_EPOCHS = 2
DEMO_EPOCH_TOKENS = 103_000
"""Approximate number of targets in an epoch of the demo corpus."""
MIN_PAIRS = 3
"""Pairs that are measured on any machine, however slow."""

SHAPES: dict[str, tuple[int, dict[str, object]]] = {
    "LSTM 1L, demo": (1, {}),
    "GPT-1 2L, C 192, T 128, V 4,096": (
        11,
        {"channels": 192, "heads": 6, "mlp_channels": 768, "window_tokens": 128, "vocabulary": 4_096},
    ),
}
"""Experiment number, and settings that differ from the demo preset."""


class MeteredLog(EventLog):
    """An event log that can be switched off and measures the time spent in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.on = False
        self.training_s = 0.0
        """Wall-clock time of the training thread in the log."""
        self.sampler_cpu_s = 0.0
        """CPU time of the sampler thread since its start, as of the last event it wrote."""

    def append(self, event: E, *, sync: bool = False) -> E:
        """Append ``event``, or do nothing if switched off."""
        if not self.on:
            return event
        started_s = time.perf_counter()
        event = super().append(event, sync=sync)
        if threading.current_thread() is threading.main_thread():
            self.training_s += time.perf_counter() - started_s
        else:
            self.sampler_cpu_s = time.thread_time()
        return event

    def sync(self) -> None:
        """Force the log to the disk, or do nothing if switched off."""
        if self.on:
            started_s = time.perf_counter()
            super().sync()
            self.training_s += time.perf_counter() - started_s


@dataclass(kw_only=True, slots=True)
class Block:
    """Measurements of one epoch of training."""

    on: bool
    """Whether log and sampler were on."""
    wall_s: float = 0.0
    """Time from the first step to the last, including the log in between."""
    cpu_s: float = 0.0
    """CPU time of all threads in ``wall_s``."""
    training_s: float = 0.0
    """Time of the training thread in the log and on checking for a stop, in ``wall_s``."""
    sampler_cpu_s: float = 0.0
    """CPU time of the sampler thread."""
    epoch_end_s: float = 0.0
    """Time of the training thread in the log after the last step: the ``epoch`` event, synced to the disk."""
    events: int = 0


@dataclass(kw_only=True)
class Meter:
    """Turns log and sampler on and off as the loop enters its phases, and measures each epoch."""

    paths: RunPaths
    log: MeteredLog
    device: str
    uuid: str | None
    deadline_s: float
    """Value of ``time.perf_counter()`` after which no further pair starts."""
    blocks: list[Block] = field(default_factory=list)
    _sampler: Sampler | None = None
    _start: tuple[float, float, int] = (0.0, 0.0, 0)
    """Wall-clock time, CPU time and number of events at the start of the epoch."""

    def enter_phase(self, phase: Phase, epoch: int | None) -> None:
        """Start or end the measurement of an epoch; the loop calls this."""
        if phase == "train":
            self._finish_epoch()
            self._start_block(epoch or 0)
        elif phase == "valid":
            self._end_block()
        else:
            self._finish_epoch()

    def stop_requested(self) -> bool:
        """Check for a stop file, as a worker does, and return whether the deadline has passed."""
        if self.log.on:
            started_s = time.perf_counter()
            self.paths.stop.exists()
            self.log.training_s += time.perf_counter() - started_s
        return len(self.blocks) > WARM_UP_EPOCHS + 2 * MIN_PAIRS and time.perf_counter() > self.deadline_s

    def _start_block(self, epoch: int) -> None:
        pair, second = divmod(epoch - 1 - WARM_UP_EPOCHS, 2)
        block = Block(on=pair % 2 == second)  # on off, off on, on off, …
        self.blocks.append(block)
        self.log.on = block.on
        self.log.training_s = self.log.sampler_cpu_s = 0.0
        if block.on:
            self._sampler = Sampler(self.log, self.uuid, lambda: memory.allocator_mib(self.device))
            self._sampler.enter("train", epoch)
            self._sampler.start()
        self._start = time.perf_counter(), time.process_time(), self.log.seq

    def _end_block(self) -> None:
        block, (wall_s, cpu_s, seq) = self.blocks[-1], self._start
        block.wall_s, block.cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        block.training_s, block.events = self.log.training_s, self.log.seq - seq
        self.close()
        block.sampler_cpu_s = self.log.sampler_cpu_s

    def close(self) -> None:
        """Stop the sampler, if it is running."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _finish_epoch(self) -> None:
        """Record the end of the last epoch, whose events have all been written."""
        if self.blocks:
            self.blocks[-1].epoch_end_s = self.log.training_s - self.blocks[-1].training_s
        self.log.on = False


def measure(quick: bool) -> dict[str, Any]:
    """Return both shares for each shape, with the blocks they are computed from."""
    pairs, block_s, budget_s, trial_steps = (3, 0.3, 3.0, 2) if quick else (45, 0.45, 50.0, 8)
    found = devices.describe_devices()
    name = devices.resolve_devices("auto", found)[0]
    device = next(each for each in found if each.device == name)
    threads = 1 if name == "cpu" else cores()
    devices.set_threads(threads)
    return {
        "device": device.name,
        "threads": threads,
        "clock": "cpu_s" if name == "cpu" else "wall_s",
        "goal_share": GOAL_SHARE,
        "shapes": {
            label: _measure(Shape(number, overrides, device, budget_s), pairs, block_s, trial_steps)
            for label, (number, overrides) in SHAPES.items()
        },
    }


@dataclass(frozen=True, slots=True)
class Shape:
    """An experiment at certain sizes, its device and the time for measuring it."""

    number: int
    overrides: dict[str, object]
    device: devices.Device
    budget_s: float

    @property
    def settings(self) -> Settings:
        """Settings of the runs, except for the number of epochs."""
        return run_info(self.number, "demo", _corpus_info(_corpus(1, 1)), run="draft", **self.overrides).settings

    @property
    def batch_tokens(self) -> int:
        """Number of targets in a step."""
        return self.settings.batch_size * self.settings.window_tokens


def _measure(shape: Shape, pairs: int, block_s: float, trial_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        first = _train(shape, Path(folder) / "first", steps=trial_steps, epochs=WARM_UP_EPOCHS + 4)
        step_s = statistics.median(block.wall_s for block in first[WARM_UP_EPOCHS:]) / trial_steps
        steps = max(2, math.ceil(block_s / step_s))
        blocks = _train(shape, Path(folder) / "second", steps=steps, epochs=WARM_UP_EPOCHS + 2 * pairs)
        blocks = blocks[WARM_UP_EPOCHS:]
    tokens_per_s = shape.batch_tokens * steps / statistics.median(block.wall_s for block in blocks)
    clock = "cpu_s" if shape.device.device == "cpu" else "wall_s"
    shares = summary(blocks, DEMO_EPOCH_TOKENS / tokens_per_s, clock)
    return {"steps": steps, "tokens_per_s": tokens_per_s, **shares, "blocks": [asdict(block) for block in blocks]}


def _train(shape: Shape, folder: Path, *, steps: int, epochs: int) -> list[Block]:
    """Run the training loop for ``epochs`` epochs of ``steps`` steps on random tokens, and return the complete epochs
    before the deadline."""
    device, corpus = shape.device, _corpus(shape.settings.vocabulary, steps * shape.batch_tokens)
    info = run_info(shape.number, "demo", _corpus_info(corpus), run="run", epochs=epochs, **shape.overrides)
    paths = RunPaths(folder)
    folder.mkdir()
    log = MeteredLog(paths.events)
    meter = Meter(
        paths=paths,
        log=log,
        device=device.device,
        uuid=device.uuid,
        deadline_s=time.perf_counter() + shape.budget_s,
    )
    context = TrainingContext(
        info=info,
        paths=paths,
        log=log,
        history=RunState(),
        device=device.device,
        corpus=corpus,
        tables=None,
        stop_requested=meter.stop_requested,
        enter_phase=meter.enter_phase,
        end_telemetry=meter.close,
    )
    train(context)
    log.close()
    return [block for block in meter.blocks if block.wall_s]


def _corpus(vocabulary: int, targets: int) -> Corpus:
    """Return random ids with the given number of targets in the train split; the other splits are minimal."""
    random = np.random.default_rng(0)
    sizes = {"train": targets + 1, "validation": 8, "test": 8}
    splits = {split: random.integers(0, vocabulary, sizes[split], dtype=np.int32) for split in SPLITS}
    return Corpus(
        name="random",
        kind="npz",
        path=None,
        vocabulary=vocabulary,
        tokenizer="none",
        splits=dict(splits),
        sha256="0" * 64,
        max_tokens=None,
    )


def _corpus_info(corpus: Corpus) -> CorpusInfo:
    return msgspec.convert(describe(corpus), CorpusInfo)


def summary(blocks: list[Block], epoch_s: float, clock: str) -> dict[str, Any]:
    """Return the paired shares, by ``clock``, and the accounted ones; 0.01 is 1% of the training time.

    ``epoch_s`` is the time of a real epoch, over which the cost of its end is spread.
    """
    pairs = [sorted(blocks[i : i + 2], key=lambda block: not block.on) for i in range(0, len(blocks) - 1, 2)]
    shares = sorted(getattr(on, clock) / getattr(off, clock) - 1 for on, off in pairs)
    low, high = median_interval(shares)
    quarters = statistics.quantiles(shares, n=4)
    with_log = [block for block in blocks if block.on]
    wall_s = sum(block.wall_s for block in with_log)
    parts = {
        "training_thread": sum(block.training_s for block in with_log) / wall_s,
        "sampler_cpu": sum(block.sampler_cpu_s for block in with_log) / wall_s,
        "epoch_end": statistics.median(block.epoch_end_s for block in with_log) / epoch_s,
    }
    return {
        "pairs": len(pairs),
        "paired_share": statistics.median(shares),
        "paired_low": low,
        "paired_high": high,
        "paired_quartiles": [quarters[0], quarters[2]],
        "paired_wall_share": statistics.median(on.wall_s / off.wall_s - 1 for on, off in pairs),
        "accounted_share": sum(parts.values()),
        "accounted_parts": parts,
        "events_per_s": sum(block.events for block in with_log) / wall_s,
        "epoch_end_s": statistics.median(block.epoch_end_s for block in with_log),
        "block_s": statistics.median(block.wall_s for block in blocks),
    }


def median_interval(values: list[float]) -> tuple[float, float]:
    """Return a 95% confidence interval of the median from the sorted ``values``, for any distribution.

    Its ends are the order statistics that a two-sided sign test does not reject, or the extremes where there are too
    few values.
    """
    n, below, k = len(values), 0.0, 0
    while below + math.comb(n, k) / 2**n <= 0.025:
        below += math.comb(n, k) / 2**n
        k += 1
    outer = max(k - 1, 0)
    return values[outer], values[n - 1 - outer]


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each shape. The goal is met if the accounted share meets it and the paired one, unless it is too
    noisy, does not contradict it."""
    goal, result_rows = result["goal_share"], []
    for name, shape in result["shapes"].items():
        low, high = shape["paired_low"], shape["paired_high"]
        too_noisy = high - low >= MAX_INTERVAL
        result_rows.append(
            Row(
                what=f"overhead of log and telemetry, {name}",
                measured=f"{shape['accounted_share']:.2%} accounted; {shape['paired_share']:+.1%} paired "
                f"({low:+.1%} … {high:+.1%}{', too noisy' if too_noisy else ''})",
                goal=f"< {goal:.0%}",
                met=shape["accounted_share"] < goal and (too_noisy or low < goal),
            )
        )
    return result_rows
