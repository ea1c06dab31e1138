"""Measure the size of a training step from which one run on all cores of a CPU is faster than parallel runs.

lmconsole's training loop trains on synthetic data in two ways that take turns: one run with all threads, and as many
parallel runs as there are cores, with one thread each. The total throughput of the parallel runs divided by that of the
single run is the gain of ``--jobs auto`` for a size of step. Sizes range from the demo's to the paper's. The same
processes measure all sizes; while idle they wait for standard input.

The gain falls as steps grow. ``ONE_THREAD_FLOPS`` in lmconsole/engine/probe.py is the size from which parallel runs no
longer pay: where the gain is 1, or stays below ``MIN_GAIN``, since large runs one after the other need less memory and
give the first results sooner.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import msgspec
from result_rows import Row

from lmconsole.engine.probe import ONE_THREAD_FLOPS
from lmconsole.engine.processes import training_environment
from lmconsole.plan.experiment import Settings
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.telemetry.host import cores

MIN_GAIN = 1.1
"""Gain of parallel runs below which they are not worthwhile."""
WATCH_S = 3.0
"""Time of training per measurement."""
AT_MOST_S = 60.0
"""Upper limit for one measurement; a size that takes longer is left out."""
BUDGET_S = 170.0
"""Time after which no further size is measured."""
_MIDDLE = {"window_tokens": 128, "channels": 192, "vocabulary": 4_096}
_LARGE = {"window_tokens": 128, "channels": 384, "vocabulary": 8_192}

SIZES: dict[str, tuple[str, int, dict[str, object]]] = {
    "demo LSTM 1L": ("demo", 1, {}),
    "demo GPT-1 4L": ("demo", 12, {}),
    "LSTM 2L, C 192, V 4,096": ("demo", 9, {**_MIDDLE, "hidden": 128}),
    "GPT-1 4L, C 192, V 4,096": ("demo", 12, {**_MIDDLE, "heads": 6, "mlp_channels": 768}),
    "LSTM 2L, C 384, V 8,192": ("demo", 9, {**_LARGE, "hidden": 256}),
    "GPT-1 4L, C 384, V 8,192": ("demo", 12, {**_LARGE, "heads": 6, "mlp_channels": 1_536}),
    "paper LSTM 1L, batch 4": ("paper", 1, {"batch_size": 4}),
    "paper LSTM 1L": ("paper", 1, {}),
}
"""Preset, experiment and overridden settings, by name, smallest step first."""
QUICK = ("demo LSTM 1L", "GPT-1 4L, C 192, V 4,096", "LSTM 2L, C 384, V 8,192")


class Trainer:
    """A process that measures the throughput of training with a number of threads, on request."""

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**training_environment(), "OMP_NUM_THREADS": str(threads)},
        )
        self.settings = self.receive()
        """Settings of every size by its name, with ``precision`` resolved."""

    def request(self, request: dict[str, Any]) -> None:
        """Start a measurement."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Return the next result, decoded from JSON. Raises RuntimeError if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a training process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def trainers(count: int) -> Iterator[tuple[Trainer, list[Trainer]]]:
    """Start a process with ``count`` threads, and ``count`` processes with one thread each."""
    with ExitStack() as stack:
        started = [Trainer(threads) for threads in (count, *[1] * count)]
        for trainer in started:
            stack.callback(trainer.close)
        yield started[0], started[1:]


def measure(quick: bool) -> dict[str, Any]:
    """Return the throughput of a single run and of parallel runs for each size."""
    count, started_s = cores(), time.monotonic()
    sizes: list[dict[str, Any]] = []
    result: dict[str, Any] = {"cores": count, "threshold_flops": ONE_THREAD_FLOPS, "sizes": sizes}
    if count == 1:
        return result | thresholds([])
    with trainers(count) as (single, parallel):
        for name in QUICK if quick else SIZES:
            if time.monotonic() - started_s > BUDGET_S:
                break
            settings = msgspec.convert(single.settings[name], Settings)
            flops = step_flops(settings, settings.vocabulary)
            # The largest steps take seconds, so that a second round would take minutes.
            rounds = 1 if quick or flops > 300e9 else 2
            request = {"size": name, "for_s": WATCH_S / 2 if quick else WATCH_S, "at_most_s": AT_MOST_S}
            measured = [measure_once(request, single, parallel) for _ in range(rounds)]
            pairs = [pair for pair in measured if pair is not None]
            if len(pairs) < rounds:
                continue
            sizes.append(
                {
                    "name": name,
                    "precision": settings.precision,
                    "flops": flops,
                    "alone_tokens_per_s": [pair[0] for pair in pairs],
                    "together_tokens_per_s": [pair[1] for pair in pairs],
                    "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
                }
            )
    sizes.sort(key=lambda size: size["flops"])
    return result | thresholds([(size["flops"], size["ratio"]) for size in sizes])


def measure_once(request: dict[str, Any], single: Trainer, parallel: Sequence[Trainer]) -> tuple[float, float] | None:
    """Return the tokens per second of a single run with all threads, and the total of parallel runs with one thread
    each; None if a step takes too long."""
    totals: list[float] = []
    for group in ([single], parallel):
        for trainer in group:
            trainer.request(request)
        rates: list[float | None] = [trainer.receive() for trainer in group]
        known = [rate for rate in rates if rate is not None]
        if len(known) < len(rates):
            return None
        totals.append(sum(known))
    return totals[0], totals[1]


def thresholds(points: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Return the sizes, in floating-point operations per step, from which the gain stays below 1 and ``MIN_GAIN``.

    ``points`` are pairs of size and gain, ordered by size. A size is None where the gain is still higher at the end.
    """
    return {"falls_to_1_flops": crossing(points, 1.0), "small_gain_flops": crossing(points, MIN_GAIN)}


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return the last size at which the gain falls below ``level``, interpolated over the logarithm of sizes.

    It is the smallest size if the gain is never above ``level``, and None if it is at the largest size.
    """
    if not points or points[-1][1] >= level:
        return None
    for (small, before), (large, after) in reversed(list(pairwise(points))):
        if before >= level:
            share = (before - level) / (before - after)
            return math.exp(math.log(small) + share * math.log(large / small))
    return points[0][0]


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for each size, and one for the threshold."""
    sizes, count = result["sizes"], result["cores"]
    if not sizes:
        reason = "one core: nothing to compare" if count == 1 else "every size took too long"
        return [Row(what="parallel runs", measured=reason)]
    result_rows = []
    for size in sizes:
        small = size["flops"] < result["threshold_flops"]
        result_rows.append(
            Row(
                what=f"{count} parallel runs, {size['name']} ({size['precision']})",
                measured=f"{_gflop(size['flops'])} per step: {size['ratio']:.2f}× the throughput of one run with "
                f"{count} threads ({statistics.median(size['together_tokens_per_s']):,.0f} tokens/s)",
                goal="≥ 1×" if small else None,
                met=size["ratio"] >= 1 if small else None,
            )
        )
    one, small_gain = (_gflop(result[key]) for key in ("falls_to_1_flops", "small_gain_flops"))
    result_rows.append(
        Row(
            what="--jobs auto: threshold of parallel runs",
            measured=f"gain falls to 1× at {one}, to {MIN_GAIN:g}× at {small_gain}; "
            f"threshold in use: {_gflop(result['threshold_flops'])}",
        )
    )
    return result_rows


def _gflop(flops: float | None) -> str:
    return "none of the sizes" if flops is None else f"{flops / 1e9:,.3g} GFLOP"


def serve(threads: int) -> None:
    """Print the settings of all sizes, then for each request on standard input the tokens per second, or null if a step
    takes too long."""
    from lmconsole.lm import device
    from lmconsole.lm.memory import keep_freed_memory
    from lmconsole.lm.throughput import measure_throughput

    device.set_threads(threads)
    keep_freed_memory("cpu")
    plan = load_plan(builtin_file())
    sizes = {}
    for name, (preset, number, overrides) in SIZES.items():
        settings = plan.resolve(plan.experiment(number), preset, overrides).settings
        precision = device.resolve_precision(settings.precision, "cpu")
        sizes[name] = msgspec.structs.replace(settings, precision=precision)
    print(json.dumps(msgspec.to_builtins(sizes)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        settings = sizes[request["size"]]
        throughput = measure_throughput(
            settings, settings.vocabulary, "cpu", for_s=request["for_s"], at_most_s=request["at_most_s"]
        )
        print(json.dumps(throughput and throughput.tokens_per_s), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
