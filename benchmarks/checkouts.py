"""Compare the training speed of this checkout with that of another one, with and without evaluations within epochs.

    python benchmarks/checkouts.py FOLDER [--pairs N] [--every STEPS]

FOLDER is a checkout of lmconsole, such as a `git worktree` of the commit before a change. For each pair, one process
for each variant is forked from one that has imported torch, and the variants take turns, epoch by epoch, at the same
random tokens: the other checkout, the same again as a control, this one, and this one with ``evaluate_every_steps``.
Each has one thread, and its CPU time in training is compared, since other load on the machine affects it far less than
wall-clock time. Time in evaluations is not counted, as in a run. The result is the median of the pairs' ratios with a
95% interval; new processes for each pair average out the differences between processes.

What the loop itself adds to a step is far below that noise, so its CPU time is measured with steps that do nothing,
too.
"""

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec  # noqa: F401  # before the processes are forked, as everything that they need and is not lmconsole
import numpy as np  # noqa: F401
import torch
import torch._dynamo  # the first optimizer of a process imports it

HERE = Path(__file__).resolve().parents[1]
OTHER = "other"
EXPERIMENTS = {"LSTM 1L, demo": 1, "GPT-1 1L, demo": 5}
STEPS = 5
"""Steps of an epoch: other load changes less within a twentieth of a second than within one."""
LOOP_STEPS = 20_000
"""Steps of an epoch that do nothing."""
TURNS = 21
"""Epochs of each variant in a pair. The first is a warm-up."""


Context = Any
"""A ``TrainingContext`` of the checkout."""


def new_context(checkout: Path, number: int, every: int, folder: Path, enter_phase: Callable[..., None]) -> Context:
    """Return the context of a run of an experiment with the lmconsole of ``checkout``, which is imported here."""
    sys.path.insert(0, str(checkout))
    import overhead
    from store import run_info

    import lmconsole
    from lmconsole.lm import device
    from lmconsole.lm.loop import TrainingContext
    from lmconsole.runs.event_log import EventLog
    from lmconsole.runs.paths import RunPaths
    from lmconsole.runs.state import RunState

    assert Path(lmconsole.__file__).is_relative_to(checkout)
    device.set_threads(1)
    more = {"evaluate_every_steps": every} if every else {}
    shape = overhead.Shape(number, {}, device.describe_devices()[0], 0.0)
    corpus = overhead._corpus(shape.settings.vocabulary, STEPS * shape.batch_tokens)
    paths = RunPaths(folder)
    return TrainingContext(
        info=run_info(number, "demo", overhead._corpus_info(corpus), run="run", epochs=TURNS, **more),
        paths=paths,
        log=EventLog(paths.events),
        history=RunState(),
        device="cpu",
        corpus=corpus,
        tables=None,
        stop_requested=lambda: False,
        enter_phase=enter_phase,
        end_telemetry=lambda: None,
    )


def train_in_turns(turns: Connection, checkout: Path, number: int, every: int) -> None:
    """Train epochs of an experiment. Each waits for a message, and sends the seconds of CPU time that its training
    took."""
    current, trained_s, since_s = 0, 0.0, 0.0

    def enter_phase(phase: str, epoch: int | None) -> None:
        nonlocal current, trained_s, since_s
        if current and phase != "train":
            trained_s += time.process_time() - since_s
        if epoch != current:
            if current:
                turns.send(trained_s)
            current, trained_s = epoch or 0, 0.0
            if current:
                turns.recv()
        since_s = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        context = new_context(checkout, number, every, Path(folder), enter_phase)
        from lmconsole.lm.loop import train

        train(context)


def loop_in_turns(turns: Connection, checkout: Path, number: int, every: int) -> None:
    """Run epochs of the training loop whose steps do nothing. Each waits for a message, and sends the seconds of CPU
    time of a step."""
    with tempfile.TemporaryDirectory() as folder:
        context = new_context(checkout, number, every, Path(folder), lambda phase, epoch: None)
        from lmconsole.lm.loop import Training

        training = Training(context)
        training.prepare_on_device()
        training.steps.step = lambda learning_rate: 1  # type: ignore[method-assign]
        training.steps_per_epoch = LOOP_STEPS
        for _ in range(TURNS):
            turns.recv()
            training.state.step, training._next_tick_s = 0, math.inf
            start_s = time.process_time()
            training._train_epoch()
            turns.send((time.process_time() - start_s) / LOOP_STEPS)


Measured = Callable[[Connection, Path, int, int], None]


def measure_pair(measured: Measured, variants: dict[str, tuple[Path, int]], number: int, first: int) -> dict[str, Any]:
    """Return the CPU times of each variant in its epochs after the first. The order in which they are started and take
    turns rotates, from the variant number ``first``."""
    names = [*list(variants)[first % len(variants) :], *list(variants)[: first % len(variants)]]
    fork = multiprocessing.get_context("fork")
    connections: dict[str, Connection] = {}
    processes = []
    for name in names:
        checkout, every = variants[name]
        connections[name], theirs = fork.Pipe()
        processes.append(fork.Process(target=measured, args=(theirs, checkout, number, every)))
        processes[-1].start()
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(TURNS):
        start = turn % len(names)
        for name in [*names[start:], *names[:start]]:
            connections[name].send(None)
            spent[name].append(connections[name].recv())
    for process in processes:
        process.join()
    return {name: seconds[1:] for name, seconds in spent.items()}


def median_interval(values: list[float]) -> tuple[float, float]:
    """Return the ends of a 95% confidence interval of the median, by a two-sided sign test."""
    values, n, below, k = sorted(values), len(values), 0.0, 0
    while below + math.comb(n, k) / 2**n <= 0.025:
        below += math.comb(n, k) / 2**n
        k += 1
    outer = max(k - 1, 0)
    return values[outer], values[n - 1 - outer]


def describe(ratios: list[float]) -> str:
    """Return median, interval and quartiles of ratios as changes in percent."""
    low, high = median_interval(ratios)
    quartiles = statistics.quantiles(ratios, n=4)
    median = statistics.median(ratios)
    return (
        f"{median - 1:+.2%} (95% interval {low - 1:+.2%} … {high - 1:+.2%}; "
        f"quartiles {quartiles[0] - 1:+.2%}, {quartiles[2] - 1:+.2%}; {len(ratios)} pairs)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    arguments: Any = parser.parse_args()
    torch.set_num_threads(1)
    variants = {
        OTHER: (arguments.folder.resolve(), 0),
        "other again": (arguments.folder.resolve(), 0),
        "off": (HERE, 0),
        f"every {arguments.every} steps": (HERE, arguments.every),
    }
    alone = {OTHER: variants[OTHER], "off": variants["off"]}
    loops = [measure_pair(loop_in_turns, alone, 1, pair) for pair in range(arguments.pairs)]
    added = sorted(1e9 * (statistics.median(pair["off"]) - statistics.median(pair[OTHER])) for pair in loops)
    print(
        f"loop without the work of a step: {statistics.median(added):+.0f} ns per step "
        f"({added[0]:+.0f} … {added[-1]:+.0f}; {len(added)} pairs)",
        flush=True,
    )
    for label, number in EXPERIMENTS.items():
        pairs = [measure_pair(train_in_turns, variants, number, pair) for pair in range(arguments.pairs)]
        for name in list(variants)[1:]:
            ratios = [
                statistics.median(one / other for one, other in zip(pair[name], pair[OTHER], strict=True))
                for pair in pairs
            ]
            print(f"{label}, {name}: {describe(ratios)}", flush=True)


if __name__ == "__main__":
    main()
