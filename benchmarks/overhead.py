"""Share of the training time that logging and telemetry cost, found in two ways.

**In pairs**: the real training loop runs many short epochs of equal work, in turn with the real log and the sampler,
and with a log that drops everything and no sampler. A pair of neighbours gives one ratio; their median, with its 95 %
interval, is the answer. It has everything in it, caches and the interpreter's lock included. On a CPU the loop has one
thread, and what is compared is the CPU time of the whole process, which other people's work disturbs far less than the
wall clock, above all that of several threads that wait for each other. On a GPU it is the wall clock.

**Accounted**: in the epochs with a log, a clock runs whenever the training thread is inside the log or looks whether it
should stop, and the sampler thread reports its CPU time, as if every second of it held up all of training. That
resolves a hundredth of a percent, and leaves out what only pairs can see.

Epochs are about half a second, each of them ends with an event, and samples come four times a second as in the first
seconds of a run, so both are on the high side of what a long run pays. What a real epoch pays at its end, a log synced
to the disk, lies outside the timed part: its share is that of an epoch as long as the demo's, the shortest there is.
The goal is for the accounted share; the pairs must not contradict it.
"""

import math
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from store import run_info

from lmconsole.data.corpus import SPLITS, Corpus, describe
from lmconsole.engine.sampler import Sampler
from lmconsole.lm import device, memory
from lmconsole.lm.loop import TrainingContext, train
from lmconsole.plan.experiment import Settings
from lmconsole.runs.events import E, EventLog, Phase
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState
from lmconsole.telemetry.host import cores

GOAL_SHARE = 0.01
"""Of the training time."""
TELLING = 4
"""Times the goal that the interval of the pairs may be wide to be heeded."""
WARM_UP = 2
"""Epochs before the pairs."""
DEMO_EPOCH_TOKENS = 103_000
"""Targets in an epoch of the demo corpus, about."""
LEAST_PAIRS = 3
"""Fewer are not worth a median, however slow the machine."""

SHAPES: dict[str, tuple[int, dict[str, object]]] = {
    "LSTM 1L, demo": (1, {}),
    "GPT-1 2L, C 192, T 128, V 4,096": (
        11,
        {"channels": 192, "heads": 6, "mlp_channels": 768, "window_tokens": 128, "vocabulary": 4_096},
    ),
}
"""Experiment, and what differs from the demo preset."""


class MeteredLog(EventLog):
    """The real log with a switch, and an account of the seconds it took."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.on = False
        self.training_s = 0.0
        """Wall-clock time of the training thread in here."""
        self.sampler_cpu_s = 0.0
        """CPU time of the sampler thread in all, up to the last event it wrote."""

    def append(self, event: E, *, sync: bool = False) -> E:
        """As the real one; does nothing while switched off."""
        if not self.on:
            return event
        began = time.perf_counter()
        event = super().append(event, sync=sync)
        if threading.current_thread() is threading.main_thread():
            self.training_s += time.perf_counter() - began
        else:
            self.sampler_cpu_s = time.thread_time()
        return event

    def sync(self) -> None:
        """As the real one; does nothing while switched off."""
        if self.on:
            began = time.perf_counter()
            super().sync()
            self.training_s += time.perf_counter() - began


@dataclass
class Block:
    """One epoch of training; all in seconds."""

    on: bool
    wall_s: float = 0.0
    """From the first step to the last, whatever is written in between included."""
    cpu_s: float = 0.0
    """Of all threads, in the same time."""
    training_s: float = 0.0
    """Of ``wall_s``, what the training thread spent in the log and looking for a stop."""
    sampler_cpu_s: float = 0.0
    epoch_end_s: float = 0.0
    """What the training thread spent in the log after the last step: the ``epoch`` event, synced to the disk."""
    events: int = 0


@dataclass
class Meter:
    """Told by the loop which phase begins, it turns log and sampler on or off and takes the time."""

    paths: RunPaths
    log: MeteredLog
    where: str
    uuid: str | None
    deadline: float
    """``time.perf_counter()`` after which no further pair begins."""
    blocks: list[Block] = field(default_factory=list)
    _sampler: Sampler | None = None
    _marks: tuple[float, float, int] = (0.0, 0.0, 0)

    def enter(self, phase: Phase, epoch: int | None) -> None:
        """The loop's ``enter_phase``."""
        if phase == "train":
            self._settle()
            self._begin(epoch or 0)
        elif phase == "valid":
            self._end()
        else:
            self._settle()

    def stop_requested(self) -> bool:
        """The loop's ``stop_requested``, which costs a look at the disk; true once time is up."""
        if self.log.on:
            began = time.perf_counter()
            self.paths.stop.exists()
            self.log.training_s += time.perf_counter() - began
        return len(self.blocks) > WARM_UP + 2 * LEAST_PAIRS and time.perf_counter() > self.deadline

    def _begin(self, epoch: int) -> None:
        pair, second = divmod(epoch - 1 - WARM_UP, 2)
        block = Block(on=pair % 2 == second)  # on off, off on, on off, …
        self.blocks.append(block)
        self.log.on = block.on
        self.log.training_s = self.log.sampler_cpu_s = 0.0
        if block.on:
            self._sampler = Sampler(self.log, self.uuid, lambda: memory.allocator_mib(self.where))
            self._sampler.enter("train", epoch)
            self._sampler.start()
        self._marks = time.perf_counter(), time.process_time(), self.log.seq

    def _end(self) -> None:
        block, (wall, cpu, seq) = self.blocks[-1], self._marks
        block.wall_s, block.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        block.training_s, block.events = self.log.training_s, self.log.seq - seq
        self.close()
        block.sampler_cpu_s = self.log.sampler_cpu_s

    def close(self) -> None:
        """End the sampler, if there is one."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _settle(self) -> None:
        """Everything that belongs to the last epoch has been written."""
        if self.blocks:
            self.blocks[-1].epoch_end_s = self.log.training_s - self.blocks[-1].training_s
        self.log.on = False


def measure(quick: bool) -> dict[str, Any]:
    """Both answers for each shape, with every block they come from."""
    pairs, block_s, budget_s = (6, 0.3, 5.0) if quick else (45, 0.45, 50.0)
    devices = device.describe_devices()
    where = device.resolve_devices("auto", devices)[0]
    chosen = next(each for each in devices if each.device == where)
    threads = 1 if where == "cpu" else cores()
    device.set_threads(threads)
    return {
        "device": chosen.name,
        "threads": threads,
        "clock": "cpu_s" if where == "cpu" else "wall_s",
        "goal_share": GOAL_SHARE,
        "shapes": {name: _measure(Shape(*shape, chosen, budget_s), pairs, block_s) for name, shape in SHAPES.items()},
    }


@dataclass(frozen=True)
class Shape:
    """What is trained, where, and for how many seconds at most."""

    number: int
    overrides: dict[str, object]
    device: device.Device
    budget_s: float

    @property
    def settings(self) -> Settings:
        """What its runs train with, but for the number of epochs."""
        return run_info(self.number, "demo", _corpus_info(_corpus(1, 1)), run="draft", **self.overrides).settings

    @property
    def batch_tokens(self) -> int:
        """Targets in a step."""
        return self.settings.batch_size * self.settings.window_tokens


def _measure(shape: Shape, pairs: int, block_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        first = _train(shape, Path(folder) / "first", steps=8, epochs=WARM_UP + 4)
        step_s = statistics.median(block.wall_s for block in first[WARM_UP:]) / 8
        steps = max(2, math.ceil(block_s / step_s))
        blocks = _train(shape, Path(folder) / "second", steps=steps, epochs=WARM_UP + 2 * pairs)[WARM_UP:]
    tokens_per_s = shape.batch_tokens * steps / statistics.median(block.wall_s for block in blocks)
    clock = "cpu_s" if shape.device.device == "cpu" else "wall_s"
    found = summary(blocks, DEMO_EPOCH_TOKENS / tokens_per_s, clock)
    return {"steps": steps, "tokens_per_s": tokens_per_s, **found, "blocks": [vars(block) for block in blocks]}


def _train(shape: Shape, folder: Path, *, steps: int, epochs: int) -> list[Block]:
    """Run the real loop for ``epochs`` epochs of ``steps`` steps on random tokens; an epoch that was cut short by the
    clock is left out."""
    chosen, corpus = shape.device, _corpus(shape.settings.vocabulary, steps * shape.batch_tokens)
    info = run_info(shape.number, "demo", _corpus_info(corpus), run="run", epochs=epochs, **shape.overrides)
    paths = RunPaths(folder)
    folder.mkdir()
    log = MeteredLog(paths.events)
    meter = Meter(paths, log, chosen.device, chosen.uuid, time.perf_counter() + shape.budget_s)
    context = TrainingContext(
        info=info,
        paths=paths,
        log=log,
        history=RunState(),
        device=chosen.device,
        corpus=corpus,
        tables=None,
        stop_requested=meter.stop_requested,
        enter_phase=meter.enter,
        end_telemetry=meter.close,
    )
    train(context)
    log.close()
    return [block for block in meter.blocks if block.wall_s]


def _corpus(vocabulary: int, targets: int) -> Corpus:
    """Random ids with so many targets to train on; the other splits are as short as they can be."""
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
    """What pairs and account say, by ``clock``, where a real epoch takes ``epoch_s``; 0.01 is 1 % of training time."""
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
    """The order statistics of the sorted ``values`` that hold the true median between them with probability 0.95 or
    more, whatever the distribution (the sign test turned round); all of them where there are too few."""
    n, below, k = len(values), 0.0, 0
    while below + math.comb(n, k) / 2**n <= 0.025:
        below += math.comb(n, k) / 2**n
        k += 1
    outer = max(k - 1, 0)
    return values[outer], values[n - 1 - outer]


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table that ``run.py`` prints. Met: the account says so, and pairs that can tell do not deny it."""
    goal, lines = result["goal_share"], []
    for name, found in result["shapes"].items():
        low, high = found["paired_low"], found["paired_high"]
        tells = high - low < TELLING * goal
        lines.append(
            {
                "what": f"log and telemetry, {name}",
                "measured": f"{found['accounted_share']:.2%} accounted; in pairs {found['paired_share']:+.1%} "
                f"({low:+.1%} … {high:+.1%}{'' if tells else ', too noisy'})",
                "goal": f"< {goal:.0%}",
                "met": found["accounted_share"] < goal and not (tells and low >= goal),
            }
        )
    return lines
