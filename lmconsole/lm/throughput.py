"""Training throughput of this machine: of matrix products, and of the training loop on synthetic data."""

import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmconsole import __version__
from lmconsole.data.cache import SPLITS
from lmconsole.data.corpus import Corpus
from lmconsole.lm.device import apply_precision, compute_dtype, synchronize
from lmconsole.lm.embedding import Tables
from lmconsole.lm.loop import TrainingContext, train
from lmconsole.lm.memory import (
    empty_cache,
    peak_allocated_mib,
    peak_rss_since_reset_mib,
    reset_peak_memory,
    reset_peak_rss,
)
from lmconsole.plan.experiment import Experiment, Precision, Settings
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Progress
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState

STEPS = 1024
"""Steps in an epoch of the synthetic corpus."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Throughput and memory of training one model."""

    tokens_per_s: float
    peak_mib: float
    """Peak memory in tensors on a GPU, and of the process on a CPU."""


def peak_matmul_gflops(settings: Settings, vocabulary: int, device: str, *, for_s: float = 0.2) -> float:
    """Return the highest throughput, in GFLOP/s, among the matrix products that dominate a training step, each run for
    ``for_s`` seconds."""
    precision = cast(Precision, settings.precision)
    apply_precision(precision)
    products = _products(settings, vocabulary, compute_dtype(precision), device)
    return max(_gflops(work, flops, device, for_s) for flops, work in products)


def _products(
    settings: Settings, vocabulary: int, dtype: torch.dtype, device: str
) -> list[tuple[float, Callable[[], object]]]:
    """Return the matrix products of the head, in full and by the tile, of its gradient, and of a layer, each with its
    floating-point operations."""
    N, C, V = settings.batch_size * settings.window_tokens, settings.channels, vocabulary
    g = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g).to(device, dtype)

    found: list[tuple[float, Callable[[], object]]] = []
    for rows, width in ((min(N, 1024), min(V, 2048)), (min(N, 512), V)):
        x, w, p = draw(rows, C), draw(width, C), draw(rows, width)
        found.append((2.0 * rows * C * width, functools.partial(torch.mm, x, w.T)))
        found.append((2.0 * rows * C * width, functools.partial(torch.mm, p, w)))
    x, w = draw(N, C), draw(4 * C, C)
    found.append((2.0 * N * C * 4 * C, functools.partial(torch.mm, x, w.T)))
    return found


def _gflops(work: Callable[[], object], flops: float, device: str, for_s: float) -> float:
    """Return the GFLOP/s of ``work``, called for at least ``for_s`` seconds after one call to warm up."""
    work()
    synchronize(device)
    start_s, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        if device != "cpu" and calls % 16:
            continue
        synchronize(device)
        if (elapsed_s := time.perf_counter() - start_s) >= for_s:
            return flops * calls / elapsed_s / 1e9


class _Measured(Exception):
    """The loop has been measured for long enough."""


def measure_throughput(
    settings: Settings, vocabulary: int, device: str, *, for_s: float, at_most_s: float
) -> Throughput | None:
    """Measure the training loop on synthetic data through the progress in its log.

    The first report includes the warm-up and does not count. From there on the loop is measured for ``for_s`` seconds
    and at least two more reports. Returns None if there was no second report within ``at_most_s`` seconds.
    """
    started_s = time.monotonic()
    _reset_peaks(device)
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="lmconsole-bench-") as folder:
        paths = RunPaths(Path(folder))
        log, reader = EventLog(paths.events), EventReader(paths.events)
        first_report_s = started_s

        def check() -> bool:
            nonlocal first_report_s
            rates.extend(event.tokens_per_s or 0.0 for event in reader.read_new() if isinstance(event, Progress))
            now_s = time.monotonic()
            if len(rates) <= 1:
                first_report_s = now_s
            if (len(rates) >= 3 and now_s - first_report_s >= for_s) or now_s - started_s >= at_most_s:
                raise _Measured
            return False

        try:
            train(_context(settings, vocabulary, device, paths, log, check), started_s)
        except _Measured:
            pass
        finally:
            log.close()
    synchronize(device)
    if len(rates) < 2:
        return None
    peak = peak_allocated_mib(device)
    return Throughput(
        tokens_per_s=statistics.median(rates[1:]), peak_mib=peak_rss_since_reset_mib() if peak is None else peak
    )


def _reset_peaks(device: str) -> None:
    """Free the memory of earlier measurements and reset the memory peaks.

    Outside Linux, the peak of resident memory is that of all models so far, which are measured smallest first.
    """
    gc.collect()
    empty_cache(device)
    reset_peak_memory(device)
    reset_peak_rss()


def _context(
    settings: Settings, vocabulary: int, device: str, paths: RunPaths, log: EventLog, stop_requested: Callable[[], bool]
) -> TrainingContext:
    """Return the context of a run on synthetic data whose files are all in ``paths``."""
    settings = msgspec.structs.replace(settings, epochs=1_000, early_stopping_epochs=0, evaluate_every_steps=0)
    corpus = _synthetic_corpus(settings, vocabulary)
    info = RunInfo(
        schema=SCHEMA,
        run=paths.run,
        queued_t="",
        experiment=Experiment(id=1, model=settings.model, layers=settings.layers, optimizer=settings.optimizer),
        preset="",
        settings=settings,
        origins={},
        seed=0,
        config_hash="",
        corpus=CorpusInfo(
            name="synthetic",
            kind="demo",
            path=None,
            vocabulary=vocabulary,
            tokenizer="",
            tokens=corpus.counts(),
            sha256="",
            max_tokens=None,
        ),
        embeddings=None,
        threads=torch.get_num_threads(),
        command=(),
        cwd="",
        version=__version__,
    )
    frozen = settings.embeddings == "frozen"
    return TrainingContext(
        info=info,
        paths=paths,
        log=log,
        history=RunState(),
        device=device,
        corpus=corpus,
        tables=_tables(vocabulary, settings.channels, settings.window_tokens) if frozen else None,
        stop_requested=stop_requested,
        enter_phase=lambda phase, epoch: None,
        end_telemetry=lambda: None,
    )


def _synthetic_corpus(settings: Settings, vocabulary: int) -> Corpus:
    """Return a token stream in which a few ids are common and most are rare, as in text."""
    steps = {"train": STEPS, "validation": 1, "test": 1}
    g = np.random.default_rng(0)
    splits: dict[str, NDArray[np.integer[Any]]] = {}
    for split in SPLITS:
        count = steps[split] * settings.batch_size * settings.window_tokens + 1
        ids = 1 + (vocabulary - 1) * g.random(count, dtype=np.float32) ** 4
        splits[split] = ids.clip(1, vocabulary - 1).astype(np.int32)
    return Corpus(
        name="synthetic",
        kind="demo",
        path=None,
        vocabulary=vocabulary,
        tokenizer="",
        splits=splits,
        sha256="",
        max_tokens=None,
    )


@functools.cache
def _tables(vocabulary: int, channels: int, window_tokens: int) -> Tables:
    """Return random tables with the shapes and standard deviations of GPT-1's."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.empty(vocabulary, channels).normal_(std=0.14, generator=g)
    tokens[0] = 0
    position = torch.empty(window_tokens, channels).normal_(std=0.05, generator=g)
    return Tables(tokens=tokens, position=position, sha256="", path=Path())
