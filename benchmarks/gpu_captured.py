"""Captured training steps in one process: whether each shape works, how fast it is, and how several share a card."""

import contextlib
import functools
import gc
import math
import statistics
import time
import traceback
from typing import Any

import torch
from gpu_process import Stage
from gpu_runs import Bench

from lmconsole.data.corpus import load_corpus
from lmconsole.lm import device as devices
from lmconsole.lm import fast_paths as fast
from lmconsole.lm import memory
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.cuda_graph import Capture, capture_graph, capture_steps
from lmconsole.lm.embedding import read_tables
from lmconsole.lm.model import build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.lm.steps import Steps
from lmconsole.plan.experiment import Precision

SEED = 42
PROFILED_STEPS = 3
TOP_KERNELS = 16
TOGETHER = ((2, 1), (2, 6), (1, 2, 3, 4), (2, 6, 9, 12), (6, 5), (1, 2, 3, 4, 9, 10, 6, 12))
"""Experiments that are trained side by side on streams of one process."""


class Capturing:
    """Corpus and tables, read once, and captured steps of the experiments that train on them."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.where = bench, bench.where
        settings = bench.any
        began = time.perf_counter()
        self.corpus = load_corpus("tokens", bench.data, vocabulary=settings.vocabulary, max_tokens=None)
        self.corpus_s = time.perf_counter() - began
        began = time.perf_counter()
        self.tables = read_tables(
            bench.tables,
            vocabulary=self.corpus.vocabulary,
            channels=settings.channels,
            window_tokens=settings.window_tokens,
        )
        self.tables_s = time.perf_counter() - began

    def steps(self, number: int, precision: Precision, timings: dict[str, Any]) -> Steps:
        """Captured steps of experiment ``number`` at the start of an epoch; what each phase took goes into ``timings``,
        with why the fast paths are refused under ``fast_refused``. Raises RuntimeError if there is no capturing it."""
        settings, where = self.bench.settings[number], self.where
        devices.apply_precision(precision)
        torch.manual_seed(SEED)
        with self._timed(timings, "build_s"):
            model = build_model(settings, vocabulary=self.corpus.vocabulary, tables=self.tables).to(where)
            optimizer = build_optimizer(settings, model.parameters())
            split = WindowedSplit(self.corpus.splits["train"], settings.window_tokens, where)
        with self._timed(timings, "choose_s"):
            refused = (
                fast.why_disabled(settings)
                if where == "cpu"
                else fast.enable_fast_paths(model, split, settings, precision)
            )
            timings["fast_refused"] = refused
        memory.empty_cache(where)
        memory.reset_peak_memory(where)
        capture: Capture = (lambda work: work) if where == "cpu" else capture_graph
        with self._timed(timings, "capture_s"):
            steps = capture_steps(model, optimizer, split, settings, precision, where, capture)
        steps.start_epoch(torch.randperm(len(split), generator=torch.Generator().manual_seed(SEED)), 0, 0.0)
        model.train()
        return steps

    @contextlib.contextmanager
    def _timed(self, timings: dict[str, Any], name: str) -> Any:
        began = time.perf_counter()
        yield
        devices.synchronize(self.where)
        timings[name] = time.perf_counter() - began


def smoke(bench: Bench, precision: Precision, stage: Stage) -> dict[str, Any]:
    """Every shape captured and replayed at the paper's sizes: whether it works, how fast, how much memory, which
    kernels. ``ok`` unless one fails or has to leave the fast paths."""
    capturing = Capturing(bench)
    found: dict[str, Any] = {
        "precision": precision,
        "corpus_s": capturing.corpus_s,
        "tables_s": capturing.tables_s,
        "shapes": {},
    }
    for number in bench.shapes:
        entry: dict[str, Any] = {"label": bench.labels[number]}
        try:
            _time_captured(capturing, number, precision, entry)
        except Exception:
            entry["trace"] = traceback.format_exc()
        gc.collect()
        memory.empty_cache(bench.where)
        entry["ok"] = "trace" not in entry and entry["fast_refused"] is None and entry["loss_is_finite"]
        found["shapes"][str(number)] = entry
        found["ok"] = all(each["ok"] for each in found["shapes"].values())
        stage.report(found)
        stage.say(f"{entry['label']}: {_in_short(entry)}")
    return found


def _time_captured(capturing: Capturing, number: int, precision: Precision, entry: dict[str, Any]) -> None:
    where, times = capturing.where, capturing.bench.sizes.replays
    steps = capturing.steps(number, precision, entry)
    replays_ms(steps, 5, where)
    entry["step_ms"] = statistics.median(replays_ms(steps, times, where) for _ in range(3))
    entry["loss_is_finite"] = math.isfinite(steps.nll.item())
    if where == "cpu":
        return
    entry["allocated_peak_mib"] = torch.cuda.max_memory_allocated(where) / 2**20
    entry["reserved_mib"] = torch.cuda.memory_reserved(where) / 2**20
    try:
        entry["profile"] = _profile(steps, where)
    except Exception as error:  # a profiler may be forbidden here; the step works
        entry["profile"] = {"reason": f"{type(error).__name__}: {error}"}


def _in_short(entry: dict[str, Any]) -> str:
    if "trace" in entry:
        return str(entry["trace"]).strip().splitlines()[-1]
    if entry["fast_refused"] is not None:
        return f"the fast paths are refused: {entry['fast_refused']}"
    return f"{entry['step_ms']:.2f} ms a step" + ("" if entry["loss_is_finite"] else ", and the loss is not finite")


def replays_ms(steps: Steps, times: int, where: str) -> float:
    """Milliseconds a step over ``times`` of them, by the host's clock around a synchronised stretch."""
    devices.synchronize(where)
    began = time.perf_counter()
    for _ in range(times):
        steps.step(None)
    devices.synchronize(where)
    return 1000 * (time.perf_counter() - began) / times


def _profile(steps: Steps, where: str) -> dict[str, Any]:
    """The costliest kernels of a step: microseconds and calls a step, and name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED_STEPS):
            steps.step(None)
        devices.synchronize(where)
    rows = [
        {"us": each.self_device_time_total / PROFILED_STEPS, "calls": each.count / PROFILED_STEPS, "name": each.key}
        for each in found.key_averages()
    ]
    rows.sort(key=lambda row: -row["us"])
    return {
        "calls": sum(row["calls"] for row in rows),
        "busy_us": sum(row["us"] for row in rows),
        "top": [row | {"name": row["name"][:110]} for row in rows[:TOP_KERNELS]],
    }


def gang(bench: Bench, stage: Stage) -> dict[str, Any]:
    """Runs side by side on streams of one process, which needs no Multi-Process Service: milliseconds of a step of each
    of them together, and how many times as fast as one after the other. Persistent kernels of several streams may hang;
    what was found before that is kept."""
    capturing, times = Capturing(bench), bench.sizes.replays
    numbers = sorted({number for each in TOGETHER for number in each} & set(bench.settings))
    steps = {number: capturing.steps(number, "bf16", {}) for number in numbers}
    alone = {}
    for number, each in steps.items():
        replays_ms(each, 3, bench.where)
        alone[number] = replays_ms(each, times, bench.where)
    found: dict[str, Any] = {"alone_ms": alone, "together": []}
    stage.report(found)
    for together in TOGETHER:
        if not set(together) <= set(numbers) or stage.left_s <= 0:
            continue
        ms = _together_ms([steps[number] for number in together], times, bench.where)
        gain = sum(alone[number] for number in together) / ms
        found["together"].append({"experiments": together, "ms": ms, "gain": gain})
        stage.report(found)
    return found


def _together_ms(each: list[Steps], times: int, where: str) -> float:
    on = [contextlib.nullcontext if where == "cpu" else functools.partial(_stream, torch.cuda.Stream()) for _ in each]
    devices.synchronize(where)
    began = time.perf_counter()
    for _ in range(times):
        for steps, stream in zip(each, on, strict=True):
            with stream():
                steps.step(None)
    devices.synchronize(where)
    return 1000 * (time.perf_counter() - began) / times


def _stream(stream: "torch.cuda.Stream") -> Any:
    return torch.cuda.stream(stream)
