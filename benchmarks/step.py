"""Our training step beside the textbook's, at the paper's sizes.

The textbook's step is plain PyTorch: a DataLoader over windows, the whole logits, log_softmax, NLL, AdamW as it comes,
and `.item()` at the end. Ours is what the training loop does, in a process set up as a worker is. Both start from the
same weights and see the same windows. Each lives in a process of its own, which tells its peak memory, and they take
turns step by step, so that whatever else the machine does meets both. Between the turns plain matrix products are
timed: their best rate is the ceiling that a step's share refers to.

    python benchmarks/step.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from textbook import textbook_steps
from torch import Tensor

from lmconsole.engine.processes import training_environment
from lmconsole.lm import device as devices
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.embedding import Tables
from lmconsole.lm.memory import keep_freed_memory
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import builtin_file, load_plan

EXPERIMENTS = {"lstm": 2, "gpt1": 6}
"""Experiments of one layer with AdamW."""
WAYS: tuple[tuple[str, Precision], ...] = (
    ("textbook", "fp32"),
    ("ours", "fp32"),
    ("textbook", "bf16"),
    ("ours", "bf16"),
)
V = 40_479
MIB = 2**20


def settings_of(model: str, quick: bool) -> Settings:
    """The paper's, or a quarter of its batch."""
    plan = load_plan(builtin_file())
    overrides = {"batch_size": 4} if quick else {}
    return plan.resolve(plan.experiment(EXPERIMENTS[model]), "paper", overrides).settings


def random_tables(settings: Settings, where: str) -> Tables:
    """Stand-ins of the shape and spread of GPT-1's tables."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.empty(V, settings.channels).normal_(std=0.14, generator=g)
    tokens[0] = 0
    position = torch.empty(settings.window_tokens, settings.channels).normal_(std=0.05, generator=g)
    return Tables(tokens=tokens.to(where), position=position.to(where), sha256="0" * 64, path=Path("random"))


def random_tokens(settings: Settings) -> Tensor:
    """A stream of 64 batches in which a few ids are common and most are rare, as in text."""
    count = 64 * settings.batch_size * settings.window_tokens + 1
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(2))
    return (1 + (V - 2) * uniform**4).long()


def our_steps(
    settings: Settings, tables: Tables, tokens: Tensor, weights: dict[str, Tensor], precision: Precision, where: str
) -> Iterator[Tensor]:
    """One training step a turn, the mean loss left on the device."""
    model = build_model(settings, vocabulary=V, tables=tables).to(where)
    model.load_state_dict(weights)
    optimizer = build_optimizer(settings, model.parameters())
    split = WindowedSplit(tokens.numpy(), settings.window_tokens, where)
    while True:
        for windows in torch.arange(len(split), device=where).split(settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss_sum(*split.batch(windows), precision) / windows.numel() / settings.window_tokens
            loss.backward()
            optimizer.step()
            yield loss.detach()


def begin(settings: Settings, tables: Tables, way: str, precision: Precision, where: str) -> Iterator[Tensor | float]:
    """The steps of one way, from weights and through windows that all ways have in common."""
    torch.manual_seed(0)
    weights = build_model(settings, vocabulary=V, tables=tables).state_dict()
    steps = our_steps if way == "ours" else textbook_steps
    return steps(settings, tables, random_tokens(settings), weights, precision, where)


def products(settings: Settings, dtype: torch.dtype, where: str) -> dict[str, tuple[float, Callable[[], object]]]:
    """The products that a step is mostly made of, each with its floating-point operations."""
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    g = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g).to(where, dtype)

    found: dict[str, tuple[float, Callable[[], object]]] = {}
    for rows, width in ((1024, 2048), (min(N, 512), V)):
        x, w, p = draw(rows, C), draw(width, C), draw(rows, width)
        found[f"logits ({rows}, {C}) x ({C}, {width})"] = 2.0 * rows * C * width, lambda x=x, w=w: x @ w.T
        found[f"gradient ({rows}, {width}) x ({width}, {C})"] = 2.0 * rows * C * width, lambda p=p, w=w: p @ w
    x, w = draw(N, C), draw(4 * C, C)
    found[f"layer ({N}, {C}) x ({C}, {4 * C})"] = 2.0 * N * C * 4 * C, lambda x=x, w=w: x @ w.T
    return found


def rate(work: Callable[[], object], operations: float, where: str, least_s: float = 0.15) -> float:
    """GFLOP/s, over at least ``least_s``."""
    devices.synchronize(where)
    start, times = time.perf_counter(), 0
    while True:
        work()
        times += 1
        if where != "cpu" and times % 16:
            continue
        devices.synchronize(where)
        if (took := time.perf_counter() - start) >= least_s:
            return operations * times / took / 1e9


def peak_mib() -> float:
    """The largest resident memory of this process so far. Linux hands getrusage's figure down to children."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def take_turns(model: str, way: str, precision: Precision, quick: bool, where: str) -> None:
    """One way's side of the turns: a step for every line read, and a line of JSON about it. Memory counts from imports
    and tables on."""
    if way == "ours":
        keep_freed_memory(where)
    devices.apply_precision(precision)
    settings = settings_of(model, quick)
    tables = random_tables(settings, where)
    before = peak_mib() if where == "cpu" else torch.cuda.memory_allocated() / MIB
    steps = begin(settings, tables, way, precision, where)
    for _ in sys.stdin:
        devices.synchronize(where)
        start = time.perf_counter()
        loss = next(steps)
        devices.synchronize(where)
        seconds = time.perf_counter() - start
        peak = peak_mib() if where == "cpu" else torch.cuda.max_memory_allocated() / MIB
        print(json.dumps({"seconds": seconds, "loss": float(loss), "peak": peak, "step": peak - before}), flush=True)


class Taker:
    """A process that takes its steps when it is told to. Raises RuntimeError if it is no more."""

    def __init__(self, model: str, way: tuple[str, Precision], quick: bool) -> None:
        command = [sys.executable, __file__, "--way", ",".join((model, *way)), *(["--quick"] if quick else [])]
        environment = training_environment() if way[0] == "ours" else None  # as a worker has it
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> dict[str, float]:
        """Seconds and mean loss of one step, and the most memory in MiB so far, in all and for steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args}: ended with exit code {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def time_model(model: str, quick: bool, where: str) -> dict[str, Any]:
    """All ways of one model in turns: one round to warm up and compare the losses, the others to time."""
    settings = settings_of(model, quick)
    takers = {way: Taker(model, way, quick) for way in WAYS}
    shapes = {p: products(settings, devices.compute_dtype(p), where) for p in ("fp32", "bf16")}
    rounds = (1 if quick else 4) if where == "cpu" else 20
    firsts, lasts = {}, {}
    seconds: dict[tuple[str, Precision], list[float]] = {way: [] for way in WAYS}
    rates: dict[str, dict[str, list[float]]] = {p: {name: [] for name in shapes[p]} for p in shapes}
    for turn in range(1 + rounds):
        for way, taker in takers.items():
            found = taker.step()
            if turn == 0:
                firsts[way] = found["loss"]
            else:
                seconds[way].append(found["seconds"])
                lasts[way] = found
        for precision, named in shapes.items():
            devices.apply_precision(cast(Precision, precision))
            for name, (operations, work) in named.items():
                rates[precision][name].append(rate(work, operations, where))
    for taker in takers.values():
        taker.close()
    return summary(settings, seconds, firsts, lasts, {p: medians(each) for p, each in rates.items()})


def medians(named: dict[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in named.items()}


def summary(
    settings: Settings,
    seconds: dict[tuple[str, Precision], list[float]],
    firsts: dict[tuple[str, Precision], float],
    lasts: dict[tuple[str, Precision], dict[str, float]],
    rates: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """One model's figures: ratios are medians of the ratios within a round."""
    operations = step_flops(settings, V)
    ways = []
    for way, precision in WAYS:
        mine, median_s = seconds[way, precision], statistics.median(seconds[way, precision])

        def ratio(to: tuple[str, Precision], mine: list[float] = mine) -> float:
            return statistics.median(theirs / own for theirs, own in zip(seconds[to], mine, strict=True))

        ceiling = max(rates[precision].values())
        ways.append(
            {
                "way": way,
                "precision": precision,
                "median_s": median_s,
                "seconds": mine,
                "speedup_over_textbook_fp32": ratio(("textbook", "fp32")),
                "speedup_over_textbook_same_precision": ratio(("textbook", precision)),
                "first_loss_nats": firsts[way, precision],
                "first_loss_off_by": abs(firsts[way, precision] / firsts["textbook", "fp32"] - 1),
                "peak_mib": round(lasts[way, precision]["peak"], 1),
                "step_mib": round(lasts[way, precision]["step"], 1),
                "step_memory_of_textbook": lasts[way, precision]["step"] / lasts["textbook", "fp32"]["step"],
                "gflops": operations / median_s / 1e9,
                "share_of_ceiling": operations / median_s / 1e9 / ceiling,
            }
        )
    return {"flops": operations, "ceiling_gflops": rates, "ways": ways}


def measure(quick: bool) -> dict[str, Any]:
    """Everything, as one value for a JSON file. ``quick`` takes a quarter of the batch."""
    found = devices.describe_devices()
    where = devices.resolve_devices("auto", found)[0]
    keep_freed_memory(where)  # a ceiling is no ceiling while pages are fetched
    models = {model: time_model(model, quick, where) for model in EXPERIMENTS}
    return {
        "device": next(each.name for each in found if each.device == where),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        **devices.versions(),
        "batch_size": settings_of("lstm", quick).batch_size,
        "window_tokens": settings_of("lstm", quick).window_tokens,
        "vocabulary": V,
        "models": models,
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    print(
        f"One training step: {result['batch_size']} x {result['window_tokens']} tokens, vocabulary {V:,}, "
        f"frozen tables; {result['device']}, {result['threads']} threads, torch {result['torch']}\n"
    )
    head = "model|step||seconds|vs fp32|vs same|step MiB|of fp32|GFLOP/s|ceiling|loss off by"
    line = "{:6} {:9} {:5} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>12}"
    print(line.format(*head.split("|")))
    for model, figures in result["models"].items():
        for row in figures["ways"]:
            print(
                line.format(
                    model,
                    row["way"],
                    row["precision"],
                    f"{row['median_s']:.3f}",
                    f"{row['speedup_over_textbook_fp32']:.2f}x",
                    f"{row['speedup_over_textbook_same_precision']:.2f}x",
                    f"{row['step_mib']:,.0f}",
                    f"{row['step_memory_of_textbook']:.0%}",
                    f"{row['gflops']:,.0f}",
                    f"{row['share_of_ceiling']:.0%}",
                    f"{row['first_loss_off_by']:.1e}",
                )
            )
    print("\nvs fp32, vs same: how many times as fast as the textbook's step in fp32, and in the same precision.")
    print("step MiB: peak memory on top of imports and tables. ceiling: share of the best rate among these products:")
    rates = [figures["ceiling_gflops"] for figures in result["models"].values()]
    for precision in ("fp32", "bf16"):
        for name in rates[0][precision]:
            print(f"  {precision} {name:42} {max(each[precision][name] for each in rates):8,.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training step beside the textbook's.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        model, way, precision = arguments.way.split(",")
        where = devices.resolve_devices("auto", devices.describe_devices())[0]
        take_turns(model, way, precision, arguments.quick, where)
        return
    result = measure(arguments.quick)
    show(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
