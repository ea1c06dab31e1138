"""Share of the training time that logging and telemetry cost, found in two ways.

**In pairs**: the real training loop runs many short epochs of equal work, in turn with the real log and the sampler,
and with a log that drops everything and no sampler. A pair of neighbours gives one ratio; their median, with its 95 %
interval, is the answer. It has everything in it, caches and the interpreter's lock included, and the noise of the
machine.

**Accounted**: in the epochs with a log, a clock runs whenever the training thread is inside the log or looks whether it
should stop, and the sampler thread reports its CPU time, as if every second of it were taken from training. That
resolves a hundredth of a percent, and leaves out what only pairs can see.

Epochs are about a second, and samples come four times a second as they do in the first seconds of a run, so both are on
the high side of what a long run pays. The goal is for the accounted share; the pairs must not contradict it.
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
from lmconsole.lm import device
from lmconsole.lm.loop import Job, train
from lmconsole.runs.events import E, EventLog, Phase
from lmconsole.runs.info import CorpusInfo, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState
from lmconsole.telemetry.host import cores

GOAL_SHARE = 0.01
"""Of the training time."""
WARM_UP = 2
"""Epochs before the pairs."""

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
        """The loop's ``stop_requested``, which costs a look at the disk."""
        if self.log.on:
            began = time.perf_counter()
            self.paths.stop.exists()
            self.log.training_s += time.perf_counter() - began
        return False

    def _begin(self, epoch: int) -> None:
        pair, second = divmod(epoch - 1 - WARM_UP, 2)
        block = Block(on=pair % 2 == second)  # on off, off on, on off, …
        self.blocks.append(block)
        self.log.on = block.on
        self.log.training_s = self.log.sampler_cpu_s = 0.0
        if block.on:
            self._sampler = Sampler(self.log, self.uuid, lambda: device.memory_mib(self.where))
            self._sampler.enter("train", epoch)
            self._sampler.start()
        self._marks = time.perf_counter(), time.process_time(), self.log.seq

    def _end(self) -> None:
        block, (wall, cpu, seq) = self.blocks[-1], self._marks
        block.wall_s, block.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        block.training_s, block.events = self.log.training_s, self.log.seq - seq
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
            block.sampler_cpu_s = self.log.sampler_cpu_s

    def _settle(self) -> None:
        """Everything that belongs to the last epoch has been written."""
        if self.blocks:
            self.blocks[-1].epoch_end_s = self.log.training_s - self.blocks[-1].training_s
        self.log.on = False


def measure(quick: bool) -> dict[str, Any]:
    """Both answers for each shape, with every block they come from."""
    pairs, block_s = (6, 0.4) if quick else (30, 0.9)
    gpus = [each for each in device.describe_devices() if each.uuid]
    chosen = gpus[0] if gpus else device.describe_devices()[0]
    device.set_threads(cores())
    return {
        "device": chosen.name,
        "threads": cores(),
        "pairs": pairs,
        "goal_share": GOAL_SHARE,
        "shapes": {
            name: _measure(number, overrides, chosen, pairs, block_s) for name, (number, overrides) in SHAPES.items()
        },
    }


def _measure(
    number: int, overrides: dict[str, object], chosen: device.Device, pairs: int, block_s: float
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        first = _train(Path(folder) / "first", number, overrides, chosen, steps=8, epochs=WARM_UP + 2)
        step_s = min(block.wall_s for block in first[WARM_UP:]) / 8
        steps = max(2, math.ceil(block_s / step_s))
        epochs = WARM_UP + 2 * pairs
        blocks = _train(Path(folder) / "second", number, overrides, chosen, steps=steps, epochs=epochs)[WARM_UP:]
    return {"steps": steps, **summary(blocks), "blocks": [vars(block) for block in blocks]}


def _train(
    folder: Path, number: int, overrides: dict[str, object], chosen: device.Device, *, steps: int, epochs: int
) -> list[Block]:
    """Run the real loop for ``epochs`` epochs of ``steps`` steps on random tokens."""
    draft = run_info(number, "demo", _corpus_info(_corpus(1, 1)), run="draft", epochs=epochs, **overrides).settings
    corpus = _corpus(draft.vocabulary, steps * draft.batch_size * draft.window_tokens)
    info: RunInfo = run_info(number, "demo", _corpus_info(corpus), run="run", epochs=epochs, **overrides)
    paths = RunPaths(folder)
    folder.mkdir()
    log = MeteredLog(paths.events)
    meter = Meter(paths, log, chosen.device, chosen.uuid)
    job = Job(
        info=info,
        paths=paths,
        log=log,
        history=RunState(),
        device=chosen.device,
        corpus=corpus,
        tables=None,
        began=time.monotonic(),
        stop_requested=meter.stop_requested,
        enter_phase=meter.enter,
    )
    train(job)
    log.close()
    return meter.blocks


def _corpus(vocabulary: int, targets: int) -> Corpus:
    """Random ids with so many targets to train on; the other splits are as short as they can be."""
    random = np.random.default_rng(0)
    sizes = {"train": targets + 1, "validation": 8, "test": 8}
    splits = {split: random.integers(0, vocabulary, sizes[split], dtype=np.int32) for split in SPLITS}
    return Corpus("random", "npz", None, vocabulary, "none", dict(splits), "0" * 64, None)


def _corpus_info(corpus: Corpus) -> CorpusInfo:
    return msgspec.convert(describe(corpus), CorpusInfo)


def summary(blocks: list[Block]) -> dict[str, Any]:
    """What pairs and account say; all shares are of the training time, 0.01 for 1 %."""
    pairs = [sorted(blocks[i : i + 2], key=lambda block: not block.on) for i in range(0, len(blocks), 2)]
    shares = sorted(on.wall_s / off.wall_s - 1 for on, off in pairs)
    low, high = median_interval(shares)
    quarters = statistics.quantiles(shares, n=4)
    with_log = [block for block in blocks if block.on]
    wall_s = sum(block.wall_s for block in with_log)
    parts = {
        "training_thread": sum(block.training_s for block in with_log) / wall_s,
        "sampler_cpu": sum(block.sampler_cpu_s for block in with_log) / wall_s,
        "epoch_end": sum(block.epoch_end_s for block in with_log) / wall_s,
    }
    return {
        "paired_share": statistics.median(shares),
        "paired_low": low,
        "paired_high": high,
        "paired_quartiles": [quarters[0], quarters[2]],
        "paired_cpu_share": statistics.median(on.cpu_s / off.cpu_s - 1 for on, off in pairs),
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
    """Lines of the table that ``run.py`` prints. Met: the account says so, and the pairs do not rule it out."""
    goal = result["goal_share"]
    return [
        {
            "what": f"log and telemetry, {name}",
            "measured": f"{found['accounted_share']:.2%} accounted; in pairs {found['paired_share']:+.1%} "
            f"({found['paired_low']:+.1%} … {found['paired_high']:+.1%})",
            "goal": f"< {goal:.0%}",
            "met": found["accounted_share"] < goal and found["paired_low"] < goal,
        }
        for name, found in result["shapes"].items()
    ]
