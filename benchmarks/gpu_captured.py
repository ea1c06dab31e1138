"""Captured training steps in one process: whether each shape works, its speed, and several concurrently."""

import contextlib
import gc
import math
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gpu_process import Stage
from gpu_runs import Workload

from lmconsole.data.corpus import load_corpus
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.cuda_graph import Capture, capture_graph, capture_steps
from lmconsole.lm.device import apply_precision, synchronize
from lmconsole.lm.embedding import read_tables
from lmconsole.lm.fast_paths import enable_fast_paths, why_disabled
from lmconsole.lm.memory import empty_cache, reset_peak_memory
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision

SEED = 42
WARM_UP_STEPS = 5
PROFILED_STEPS = 3
TOP_KERNELS = 16
KERNEL_NAME_LENGTH = 110
GANGS = ((2, 1), (2, 6), (1, 2, 3, 4), (2, 6, 9, 12), (6, 5), (1, 2, 3, 4, 9, 10, 6, 12))
"""Experiments that are trained concurrently."""


class StepCapturer:
    """Captures steps of a workload's experiments, whose corpus and tables it reads once."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.device = workload, workload.device
        settings = workload.common
        began = time.perf_counter()
        self.corpus = load_corpus("tokens", workload.data, vocabulary=settings.vocabulary, max_tokens=None)
        self.corpus_s = time.perf_counter() - began
        began = time.perf_counter()
        self.tables = read_tables(
            workload.tables,
            vocabulary=self.corpus.vocabulary,
            channels=settings.channels,
            window_tokens=settings.window_tokens,
        )
        self.tables_s = time.perf_counter() - began

    def capture(self, experiment: int, precision: Precision, timings: dict[str, Any]) -> Steps:
        """Return captured steps of an experiment at the start of an epoch.

        ``timings`` receives the seconds of each phase and, as ``fast_paths_refused``, why the fast paths are not used.

        Raises:
            RuntimeError: The step cannot be captured.
        """
        settings, device = self.workload.settings[experiment], self.device
        apply_precision(precision)
        torch.manual_seed(SEED)
        with self._timed(timings, "build_s"):
            model = build_model(settings, vocabulary=self.corpus.vocabulary, tables=self.tables).to(device)
            optimizer = build_optimizer(settings, model.parameters())
            split = WindowedSplit(self.corpus.splits["train"], settings.window_tokens, device)
        with self._timed(timings, "fast_paths_s"):
            timings["fast_paths_refused"] = (
                why_disabled(settings) if device == "cpu" else enable_fast_paths(model, split, settings, precision)
            )
        empty_cache(device)
        reset_peak_memory(device)
        capture: Capture = (lambda work: work) if device == "cpu" else capture_graph
        with self._timed(timings, "capture_s"):
            steps = capture_steps(model, optimizer, split, settings, precision, device, capture)
        steps.start_epoch(torch.randperm(len(split), generator=torch.Generator().manual_seed(SEED)), 0, 0.0)
        model.train()
        return steps

    @contextlib.contextmanager
    def _timed(self, timings: dict[str, Any], name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        synchronize(self.device)
        timings[name] = time.perf_counter() - began


def smoke(workload: Workload, precision: Precision, stage: Stage) -> dict[str, Any]:
    """Capture and replay a step of every shape at the paper's sizes, and measure time, memory and kernels.

    ``ok`` is false if one fails or does not use the fast paths.
    """
    capturer = StepCapturer(workload)
    found: dict[str, Any] = {
        "precision": precision,
        "corpus_s": capturer.corpus_s,
        "tables_s": capturer.tables_s,
        "shapes": {},
    }
    for experiment in workload.shapes:
        entry: dict[str, Any] = {"label": workload.labels[experiment]}
        try:
            _measure_captured(capturer, experiment, precision, entry)
        except Exception:
            entry["trace"] = traceback.format_exc()
        gc.collect()
        empty_cache(workload.device)
        entry["ok"] = "trace" not in entry and entry["fast_paths_refused"] is None and entry["loss_is_finite"]
        found["shapes"][str(experiment)] = entry
        found["ok"] = all(each["ok"] for each in found["shapes"].values())
        stage.save_partial(found)
        stage.progress(f"{entry['label']}: {_summary(entry)}")
    return found


def _measure_captured(capturer: StepCapturer, experiment: int, precision: Precision, entry: dict[str, Any]) -> None:
    device, replays = capturer.device, capturer.workload.sizes.replays
    steps = capturer.capture(experiment, precision, entry)
    step_ms(steps, WARM_UP_STEPS, device)
    entry["step_ms"] = statistics.median(step_ms(steps, replays, device) for _ in range(3))
    entry["loss_is_finite"] = math.isfinite(steps.nll.item())
    if device == "cpu":
        return
    entry["allocated_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    entry["reserved_mib"] = torch.cuda.memory_reserved(device) / 2**20
    try:
        entry["profile"] = _profile(steps, device)
    except Exception as error:  # profiling needs permissions that the step does not
        entry["profile"] = {"reason": f"{type(error).__name__}: {error}"}


def _summary(entry: dict[str, Any]) -> str:
    if "trace" in entry:
        return str(entry["trace"]).strip().splitlines()[-1]
    if entry["fast_paths_refused"] is not None:
        return f"fast paths are not used: {entry['fast_paths_refused']}"
    return f"{entry['step_ms']:.2f} ms per step" + ("" if entry["loss_is_finite"] else ", but the loss is not finite")


def step_ms(steps: Steps, count: int, device: str) -> float:
    """Return the mean milliseconds of ``count`` steps, by the host's clock with a device sync on both sides."""
    return _mean_ms([steps], [nullcontext()], count, device)


def _mean_ms(
    together: Sequence[Steps], streams: Sequence[AbstractContextManager[Any]], count: int, device: str
) -> float:
    """Return the mean milliseconds of ``count`` rounds, in each of which every one of ``together`` makes a step on its
    stream."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        for steps, stream in zip(together, streams, strict=True):
            with stream:
                steps.step(None)
    synchronize(device)
    return 1000 * (time.perf_counter() - began) / count


def _profile(steps: Steps, device: str) -> dict[str, Any]:
    """Return the kernels of a step that take the most time: microseconds and calls per step, and name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED_STEPS):
            steps.step(None)
        synchronize(device)
    rows = [
        {"us": each.self_device_time_total / PROFILED_STEPS, "calls": each.count / PROFILED_STEPS, "name": each.key}
        for each in found.key_averages()
    ]
    rows.sort(key=lambda row: -row["us"])
    return {
        "calls": sum(row["calls"] for row in rows),
        "busy_us": sum(row["us"] for row in rows),
        "top": [row | {"name": row["name"][:KERNEL_NAME_LENGTH]} for row in rows[:TOP_KERNELS]],
    }


def gang(workload: Workload, stage: Stage) -> dict[str, Any]:
    """Train several experiments concurrently on CUDA streams of one process, which needs no Multi-Process Service.

    Returns the milliseconds of a step of each of them together, and the gain over one after the other. Persistent
    kernels on several streams may hang; the measurements before that are kept.
    """
    capturer, replays, device = StepCapturer(workload), workload.sizes.replays, workload.device
    experiments = sorted({experiment for each in GANGS for experiment in each} & set(workload.settings))
    steps = {experiment: capturer.capture(experiment, "bf16", {}) for experiment in experiments}
    alone_ms = {}
    for experiment, each in steps.items():
        step_ms(each, 3, device)
        alone_ms[experiment] = step_ms(each, replays, device)
    found: dict[str, Any] = {"alone_ms": alone_ms, "together": []}
    stage.save_partial(found)
    for members in GANGS:
        if not set(members) <= set(experiments) or stage.left_s <= 0:
            continue
        streams = [_new_stream(device) for _ in members]
        ms = _mean_ms([steps[experiment] for experiment in members], streams, replays, device)
        gain = sum(alone_ms[experiment] for experiment in members) / ms
        found["together"].append({"experiments": members, "ms": ms, "gain": gain})
        stage.save_partial(found)
    return found


def _new_stream(device: str) -> AbstractContextManager[Any]:
    """Return a context that launches kernels on a new stream; one that does nothing on a CPU."""
    return nullcontext() if device == "cpu" else torch.cuda.stream(torch.cuda.Stream())
