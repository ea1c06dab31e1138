"""From which size of a training step on a run should have all cores of a CPU to itself.

lmconsole's own loop trains made-up data in two ways that take turns: one run with all threads, and at the same moment
as many runs as there are cores, one thread each. Their tokens a second together, divided by those of the run alone, are
what `--jobs auto` gains for a size of step; the sizes go from the demo's to the paper's. The processes are the same
for all sizes, and those that are not measured wait for their standard input.

The ratio falls as steps grow, and `ONE_THREAD_FLOPS` in lmconsole/engine/probe.py is the size from which it no longer
pays: where it is 1, or else where it stays below `LEAST_GAIN`, since large runs one after the other need less memory
and the first results come sooner.
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

from lmconsole.engine.probe import ONE_THREAD_FLOPS
from lmconsole.engine.processes import training_environment
from lmconsole.plan.experiment import Settings
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.telemetry.host import cores

LEAST_GAIN = 1.1
"""Times the speed of one run with all threads that several at once must reach to be worth it."""
WATCH_S = 3.0
"""Seconds of training that count, per measurement."""
AT_MOST_S = 60.0
"""For one measurement; a size that takes longer is left out."""
BUDGET_S = 170.0
"""No size is begun after that."""
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
"""Preset, experiment and what differs from it, by name, smallest step first."""
QUICK = ("demo LSTM 1L", "GPT-1 4L, C 192, V 4,096", "LSTM 2L, C 384, V 8,192")


class Trainer:
    """A process that trains on so many threads what it is given, one size after the other."""

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**training_environment(), "OMP_NUM_THREADS": str(threads)},
        )
        self.settings = self.answer()
        """Settings of every size, with ``precision`` resolved."""

    def ask(self, question: dict[str, Any]) -> None:
        """Have it train."""
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """What it has found."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that trains has ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def trainers(count: int) -> Iterator[tuple[Trainer, list[Trainer]]]:
    """A process with ``count`` threads, and ``count`` processes with one."""
    with ExitStack() as stack:
        made = [Trainer(threads) for threads in (count, *[1] * count)]
        for each in made:
            stack.callback(each.close)
        yield made[0], made[1:]


def measure(quick: bool) -> dict[str, Any]:
    """Tokens per second of both ways, size by size."""
    count, began = cores(), time.monotonic()
    sizes: list[dict[str, Any]] = []
    result: dict[str, Any] = {"cores": count, "threshold_flops": ONE_THREAD_FLOPS, "sizes": sizes}
    if count == 1:
        return result | suggestion([])
    with trainers(count) as (alone, together):
        for name in QUICK if quick else SIZES:
            if time.monotonic() - began > BUDGET_S:
                break
            settings = msgspec.convert(alone.settings[name], Settings)
            flops = step_flops(settings, settings.vocabulary)
            # of the largest steps, which take seconds, a second look would take minutes
            rounds = 1 if quick or flops > 300e9 else 2
            question = {"size": name, "for_s": WATCH_S / 2 if quick else WATCH_S, "at_most_s": AT_MOST_S}
            found = [measure_once(question, alone, together) for _ in range(rounds)]
            if any(each is None for each in found):
                continue
            pairs = [each for each in found if each is not None]
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
    return result | suggestion([(size["flops"], size["ratio"]) for size in sizes])


def measure_once(question: dict[str, Any], alone: Trainer, together: Sequence[Trainer]) -> tuple[float, float] | None:
    """Tokens per second of one run with all threads, then of several with one thread each in all; None if a step takes
    too long."""
    totals: list[float] = []
    for group in ([alone], together):
        for trainer in group:
            trainer.ask(question)
        paces = [trainer.answer() for trainer in group]
        if any(pace is None for pace in paces):
            return None
        totals.append(sum(paces))
    return totals[0], totals[1]


def suggestion(points: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Sizes at which the ratio falls to 1 and to ``LEAST_GAIN`` for good, in floating-point operations a step, from
    pairs of size and ratio in the order of sizes; None where it does not."""
    return {"falls_to_1_flops": crossing(points, 1.0), "small_gain_flops": crossing(points, LEAST_GAIN)}


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """The last size at which the ratio falls below ``level``, read off a straight line over the logarithm of sizes; the
    smallest where it is nowhere above, None where the largest still is."""
    if not points or points[-1][1] >= level:
        return None
    for (small, before), (large, after) in reversed(list(pairwise(points))):
        if before >= level:
            share = (before - level) / (before - after)
            return math.exp(math.log(small) + share * math.log(large / small))
    return points[0][0]


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each size, and one for the threshold."""
    sizes, count = result["sizes"], result["cores"]
    if not sizes:
        words = "one core: nothing to compare" if count == 1 else "every size took too long"
        return [{"what": "several runs at once", "measured": words, "goal": None, "met": None}]
    lines = []
    for size in sizes:
        small = size["flops"] < result["threshold_flops"]
        lines.append(
            {
                "what": f"{count} runs at once, {size['name']} ({size['precision']})",
                "measured": f"{_gflop(size['flops'])} a step: {size['ratio']:.2f} × one run with {count} threads "
                f"({statistics.median(size['together_tokens_per_s']):,.0f} tokens/s)",
                "goal": "≥ 1 ×" if small else None,
                "met": size["ratio"] >= 1 if small else None,
            }
        )
    one, gain = (_gflop(result[key]) for key in ("falls_to_1_flops", "small_gain_flops"))
    lines.append(
        {
            "what": "--jobs auto: one thread a run below",
            "measured": f"falls to 1 × at {one}, to {LEAST_GAIN:g} × at {gain}; "
            f"set: {_gflop(result['threshold_flops'])}",
            "goal": None,
            "met": None,
        }
    )
    return lines


def _gflop(flops: float | None) -> str:
    return "none of these sizes" if flops is None else f"{flops / 1e9:,.3g} GFLOP"


def train(threads: int) -> None:
    """Answer questions from standard input: tokens per second of a size, null if a step takes too long."""
    from lmconsole.lm import device
    from lmconsole.lm.memory import keep_freed_memory
    from lmconsole.lm.throughput import measure_throughput

    device.set_threads(threads)
    keep_freed_memory("cpu")
    plan = load_plan(builtin_file())
    sizes = {}
    for name, (preset, number, changes) in SIZES.items():
        settings = plan.resolve(plan.experiment(number), preset, changes).settings
        precision = device.resolve_precision(settings.precision, "cpu")
        sizes[name] = msgspec.structs.replace(settings, precision=precision)
    print(json.dumps(msgspec.to_builtins(sizes)), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        settings = sizes[asked["size"]]
        pace = measure_throughput(
            settings, settings.vocabulary, "cpu", for_s=asked["for_s"], at_most_s=asked["at_most_s"]
        )
        print(json.dumps(pace and pace.tokens_per_s), flush=True)


if __name__ == "__main__":
    train(int(sys.argv[1]))
