"""Compare lmconsole's training step with the baseline's at the paper's sizes: speed, memory and throughput.

    python benchmarks/step.py [--quick] [--json FILE]

The baseline is plain PyTorch (``baseline.py``): a DataLoader over windows, full logits, log_softmax, NLL, AdamW with
default options, and ``.item()`` at the end. lmconsole's step is that of the training loop, in the environment of a
worker. Both start from the same weights and see the same windows. Each has a process of its own, whose peak memory is
its own, and the processes take turns step by step, so that other load on the machine affects all of them alike. Matrix
products are timed between the turns; the highest throughput among them is the measured peak.
"""

# torch is only partly annotated.
# mypy: allow-untyped-calls

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from baseline import baseline_steps
from torch import Tensor

from lmconsole.engine.processes import training_environment
from lmconsole.lm import device as devices
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.embedding import Tables
from lmconsole.lm.memory import keep_freed_memory, peak_rss_since_reset_mib
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.plan.experiment import Precision, Settings
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import builtin_file, load_plan

EXPERIMENTS = {"lstm": 2, "gpt1": 6}
"""Experiments with one layer and AdamW."""
V = 40_479
MIB = 2**20
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class Variant(NamedTuple):
    """An implementation of the step, ``baseline`` or ``lmconsole``, in a precision."""

    implementation: str
    precision: Precision


VARIANTS = [Variant(each, precision) for precision in PRECISIONS for each in ("baseline", "lmconsole")]


def settings_of(model: str, quick: bool) -> Settings:
    """Return the settings of the paper preset; with ``quick``, a quarter of its batch."""
    plan = load_plan(builtin_file())
    overrides = {"batch_size": 4} if quick else {}
    return plan.resolve(plan.experiment(EXPERIMENTS[model]), "paper", overrides).settings


def random_tables(settings: Settings, device: str) -> Tables:
    """Return random tables with the shapes and standard deviations of GPT-1's."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.empty(V, settings.channels).normal_(std=0.14, generator=g)
    tokens[0] = 0
    position = torch.empty(settings.window_tokens, settings.channels).normal_(std=0.05, generator=g)
    return Tables(tokens=tokens.to(device), position=position.to(device), sha256="0" * 64, path=Path("random"))


def random_tokens(settings: Settings) -> Tensor:
    """Return a stream of 64 batches in which a few ids are common and most are rare, as in text."""
    count = 64 * settings.batch_size * settings.window_tokens + 1
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(2))
    return (1 + (V - 2) * uniform**4).long()


def lmconsole_steps(
    settings: Settings, tables: Tables, tokens: Tensor, state: dict[str, Tensor], precision: Precision, device: str
) -> Iterator[Tensor]:
    """Take a training step at each iteration and yield its mean loss in nats, on the device."""
    model = build_model(settings, vocabulary=V, tables=tables).to(device)
    model.load_state_dict(state)
    optimizer = build_optimizer(settings, model.parameters())
    split = WindowedSplit(tokens.numpy(), settings.window_tokens, device)
    while True:
        for windows in torch.arange(len(split), device=device).split(settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss_sum(*split.batch(windows), precision) / windows.numel() / settings.window_tokens
            loss.backward()
            optimizer.step()
            yield loss.detach()


def training_steps(settings: Settings, tables: Tables, variant: Variant, device: str) -> Iterator[Tensor | float]:
    """Return the steps of a variant. All variants have the same initial weights and the same windows."""
    torch.manual_seed(0)
    state = build_model(settings, vocabulary=V, tables=tables).state_dict()
    steps = lmconsole_steps if variant.implementation == "lmconsole" else baseline_steps
    return steps(settings, tables, random_tokens(settings), state, variant.precision, device)


def matrix_products(
    settings: Settings, dtype: torch.dtype, device: str
) -> dict[str, tuple[float, Callable[[], object]]]:
    """Return the matrix products that dominate a training step, by name, each with its floating-point operations."""
    N, C = settings.batch_size * settings.window_tokens, settings.channels
    g = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g).to(device, dtype)

    products: dict[str, tuple[float, Callable[[], object]]] = {}
    for rows, width in ((1024, 2048), (min(N, 512), V)):
        x, w, p = draw(rows, C), draw(width, C), draw(rows, width)
        flops = 2.0 * rows * C * width
        products[f"logits ({rows}, {C}) x ({C}, {width})"] = flops, functools.partial(torch.matmul, x, w.T)
        products[f"gradient ({rows}, {width}) x ({width}, {C})"] = flops, functools.partial(torch.matmul, p, w)
    x, w = draw(N, C), draw(4 * C, C)
    products[f"layer ({N}, {C}) x ({C}, {4 * C})"] = 2.0 * N * C * 4 * C, functools.partial(torch.matmul, x, w.T)
    return products


def gflops(work: Callable[[], object], flops: float, device: str, at_least_s: float = 0.15) -> float:
    """Return the GFLOP/s of ``work``, called repeatedly for ``at_least_s`` seconds."""
    devices.synchronize(device)
    started_s, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        if device != "cpu" and calls % 16:
            continue
        devices.synchronize(device)
        if (elapsed_s := time.perf_counter() - started_s) >= at_least_s:
            return flops * calls / elapsed_s / 1e9


def serve_steps(model: str, variant: Variant, quick: bool, device: str) -> None:
    """Take a step for each line of standard input and print a line of JSON about it.

    ``step_mib`` is the peak memory beyond that of imports and tables.
    """
    if variant.implementation == "lmconsole":
        keep_freed_memory(device)
    devices.apply_precision(variant.precision)
    settings = settings_of(model, quick)
    tables = random_tables(settings, device)
    before_mib = peak_rss_since_reset_mib() if device == "cpu" else torch.cuda.memory_allocated() / MIB
    steps = training_steps(settings, tables, variant, device)
    for _ in sys.stdin:
        devices.synchronize(device)
        started_s = time.perf_counter()
        loss = next(steps)
        devices.synchronize(device)
        seconds = time.perf_counter() - started_s
        peak_mib = peak_rss_since_reset_mib() if device == "cpu" else torch.cuda.max_memory_allocated() / MIB
        step = {"seconds": seconds, "loss": float(loss), "peak_mib": peak_mib, "step_mib": peak_mib - before_mib}
        print(json.dumps(step), flush=True)


class StepProcess:
    """A process that takes the steps of one variant on request."""

    def __init__(self, model: str, variant: Variant, quick: bool) -> None:
        command = [sys.executable, __file__, "--serve", ",".join((model, *variant)), *(["--quick"] if quick else [])]
        environment = training_environment() if variant.implementation == "lmconsole" else None  # that of a worker
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> dict[str, float]:
        """Take a step and return its seconds, its mean loss and the peak memory so far.

        Raises RuntimeError if the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args!r}: ended with exit code {self.process.wait()}")
        step: dict[str, float] = json.loads(line)
        return step

    def close(self) -> None:
        """Close standard input, at which the process ends, and wait for it."""
        self.process.communicate()


def time_model(model: str, quick: bool, device: str) -> dict[str, Any]:
    """Time all variants of a model in turns. The first round is the warm-up, and gives the losses to compare."""
    settings = settings_of(model, quick)
    processes = {variant: StepProcess(model, variant, quick) for variant in VARIANTS}
    products = {p: matrix_products(settings, devices.compute_dtype(p), device) for p in PRECISIONS}
    rounds = (1 if quick else 4) if device == "cpu" else 20
    steps: dict[Variant, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    rates: dict[Precision, dict[str, list[float]]] = {p: {name: [] for name in products[p]} for p in PRECISIONS}
    for _ in range(1 + rounds):
        for variant, process in processes.items():
            steps[variant].append(process.step())
        for precision, named in products.items():
            devices.apply_precision(precision)
            for name, (flops, work) in named.items():
                rates[precision][name].append(gflops(work, flops, device))
    for process in processes.values():
        process.close()
    matmul_gflops = {
        precision: {name: statistics.median(values) for name, values in named.items()}
        for precision, named in rates.items()
    }
    return summary(step_flops(settings, V), steps, matmul_gflops)


def summary(
    flops: float,
    steps: Mapping[Variant, Sequence[Mapping[str, float]]],
    matmul_gflops: Mapping[Precision, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the result of one model. Speedups are medians of the ratios within a round."""
    seconds = {variant: [step["seconds"] for step in taken[1:]] for variant, taken in steps.items()}
    first_loss = {variant: taken[0]["loss"] for variant, taken in steps.items()}
    baseline_fp32 = Variant("baseline", "fp32")

    def speedup(variant: Variant, over: Variant) -> float:
        pairs = zip(seconds[over], seconds[variant], strict=True)
        return statistics.median(other_s / own_s for other_s, own_s in pairs)

    results = []
    for variant in VARIANTS:
        precision, last = variant.precision, steps[variant][-1]
        median_s = statistics.median(seconds[variant])
        rate = flops / median_s / 1e9
        results.append(
            {
                "implementation": variant.implementation,
                "precision": precision,
                "median_s": median_s,
                "seconds": seconds[variant],
                "speedup_over_baseline_fp32": speedup(variant, baseline_fp32),
                "speedup_over_baseline_same_precision": speedup(variant, Variant("baseline", precision)),
                "first_loss_nats": first_loss[variant],
                "first_loss_relative_error": abs(first_loss[variant] / first_loss[baseline_fp32] - 1),
                "peak_mib": round(last["peak_mib"], 1),
                "step_mib": round(last["step_mib"], 1),
                "memory_relative_to_baseline": last["step_mib"] / steps[baseline_fp32][-1]["step_mib"],
                "gflops": rate,
                "share_of_measured_peak": rate / max(matmul_gflops[precision].values()),
            }
        )
    return {"flops": flops, "matmul_gflops": matmul_gflops, "steps": results}


def measure(quick: bool) -> dict[str, Any]:
    """Return the steps of all models as plain values for JSON. ``quick`` takes a quarter of the batch."""
    found = devices.describe_devices()
    device = devices.resolve_devices("auto", found)[0]
    keep_freed_memory(device)  # page faults would lower the measured peak
    models = {model: time_model(model, quick, device) for model in EXPERIMENTS}
    settings = settings_of("lstm", quick)
    return {
        "device": next(each.name for each in found if each.device == device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        **devices.versions(),
        "batch_size": settings.batch_size,
        "window_tokens": settings.window_tokens,
        "vocabulary": V,
        "models": models,
    }


def show(result: dict[str, Any]) -> None:
    """Print every step and the throughput of every matrix product."""
    print(
        f"One training step: {result['batch_size']} x {result['window_tokens']} tokens, vocabulary {V:,}, "
        f"frozen tables; {result['device']}, {result['threads']} threads, torch {result['torch']}\n"
    )
    header = "model|step||seconds|vs fp32|vs same|step MiB|of fp32|GFLOP/s|of peak|loss error"
    line = "{:6} {:9} {:5} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>12}"
    print(line.format(*header.split("|")))
    for model, measured in result["models"].items():
        for step in measured["steps"]:
            print(
                line.format(
                    model,
                    step["implementation"],
                    step["precision"],
                    f"{step['median_s']:.3f}",
                    f"{step['speedup_over_baseline_fp32']:.2f}x",
                    f"{step['speedup_over_baseline_same_precision']:.2f}x",
                    f"{step['step_mib']:,.0f}",
                    f"{step['memory_relative_to_baseline']:.0%}",
                    f"{step['gflops']:,.0f}",
                    f"{step['share_of_measured_peak']:.0%}",
                    f"{step['first_loss_relative_error']:.1e}",
                )
            )
    print("\nvs fp32, vs same: speed relative to the baseline in fp32, and in the same precision.")
    print("step MiB, of fp32: peak memory beyond imports and tables, and relative to the baseline in fp32.")
    print("of peak: throughput relative to the highest of these matrix products (median GFLOP/s).")
    print("loss error: relative difference of the first step's loss from the baseline in fp32.")
    rates = [measured["matmul_gflops"] for measured in result["models"].values()]
    for precision in PRECISIONS:
        for name in rates[0][precision]:
            print(f"  {precision} {name:42} {max(each[precision][name] for each in rates):8,.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare lmconsole's training step with plain PyTorch's.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        model, implementation, precision = arguments.serve.split(",")
        device = devices.resolve_devices("auto", devices.describe_devices())[0]
        serve_steps(model, Variant(implementation, cast(Precision, precision)), arguments.quick, device)
        return
    result = measure(arguments.quick)
    show(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
