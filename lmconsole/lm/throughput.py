"""How fast this machine trains: the rate of plain matrix products, and of our own training loop on made-up data."""

import contextlib
import functools
import gc
import re
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
from lmconsole.data.corpus import SPLITS, Corpus
from lmconsole.lm import device
from lmconsole.lm.embedding import Tables
from lmconsole.lm.loop import Job, peak_allocated_mib, peak_rss_mib, train
from lmconsole.plan.experiment import Experiment, Precision, Settings
from lmconsole.runs.events import EventLog, EventReader, Progress
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState

STEPS = 1024
"""Steps that the made-up corpus is long enough for."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What training one shape came to."""

    tokens_per_s: float
    peak_mib: float
    """On a GPU what tensors held at most, on a CPU what the process held."""


def ceiling_gflops(settings: Settings, vocabulary: int, where: str, *, for_s: float = 0.2) -> float:
    """The best rate, in GFLOP/s, among the matrix products that a step with ``settings`` is mostly made of, each run
    for ``for_s``."""
    precision = cast(Precision, settings.precision)
    device.apply_precision(precision)
    made = _products(settings, vocabulary, device.compute_dtype(precision), where)
    return max(_rate(work, operations, where, for_s) for operations, work in made)


def _products(
    settings: Settings, vocabulary: int, dtype: torch.dtype, where: str
) -> list[tuple[float, Callable[[], object]]]:
    """Products of the head, whole and by the tile, of its gradient, and of a layer; each with its operations."""
    N, C, V = settings.batch_size * settings.window_tokens, settings.channels, vocabulary
    g = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g).to(where, dtype)

    found: list[tuple[float, Callable[[], object]]] = []
    for rows, width in ((min(N, 1024), min(V, 2048)), (min(N, 512), V)):
        x, w, p = draw(rows, C), draw(width, C), draw(rows, width)
        found.append((2.0 * rows * C * width, functools.partial(torch.mm, x, w.T)))
        found.append((2.0 * rows * C * width, functools.partial(torch.mm, p, w)))
    x, w = draw(N, C), draw(4 * C, C)
    found.append((2.0 * N * C * 4 * C, functools.partial(torch.mm, x, w.T)))
    return found


def _rate(work: Callable[[], object], operations: float, where: str, for_s: float) -> float:
    """GFLOP/s over at least ``for_s``, after one call to warm up."""
    work()
    device.synchronize(where)
    start, times = time.perf_counter(), 0
    while True:
        work()
        times += 1
        if where != "cpu" and times % 16:
            continue
        device.synchronize(where)
        if (took := time.perf_counter() - start) >= for_s:
            return operations * times / took / 1e9


class _Enough(Exception):
    """The loop has been watched for long enough."""


def measure_pace(settings: Settings, vocabulary: int, where: str, *, for_s: float, at_most_s: float) -> Pace | None:
    """Train on made-up data with the loop that trains runs, watching its log as anybody would.

    What it reports first has the warm-up in it and does not count. Watched for ``for_s`` beyond that, and for two more
    reports; None if there was not one within ``at_most_s``.
    """
    began = time.monotonic()
    _forget_peaks(where)
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="lmconsole-bench-") as folder:
        paths = RunPaths(Path(folder))
        log, reader = EventLog(paths.events), EventReader(paths.events)
        first_report = began

        def look() -> bool:
            nonlocal first_report
            rates.extend(event.tokens_per_s or 0.0 for event in reader.read_new() if isinstance(event, Progress))
            now = time.monotonic()
            if len(rates) <= 1:
                first_report = now
            if (len(rates) >= 3 and now - first_report >= for_s) or now - began >= at_most_s:
                raise _Enough
            return False

        try:
            train(_job(settings, vocabulary, where, paths, log, look), began)
        except _Enough:
            pass
        finally:
            log.close()
    device.synchronize(where)
    if len(rates) < 2:
        return None
    peak = peak_allocated_mib(where)
    return Pace(tokens_per_s=statistics.median(rates[1:]), peak_mib=_resident_peak_mib() if peak is None else peak)


def _forget_peaks(where: str) -> None:
    """Peaks of memory count from here, and what earlier measurements have left behind is given up."""
    gc.collect()
    device.give_back_memory(where)
    device.forget_peaks(where)
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of all shapes so far, smallest first
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak_mib() -> float:
    """Most memory this process held since ``_forget_peaks``, or ever where the kernel keeps no such figure."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1024
    return peak_rss_mib()


def _job(
    settings: Settings, vocabulary: int, where: str, paths: RunPaths, log: EventLog, look: Callable[[], bool]
) -> Job:
    """A run that exists nowhere but in ``paths``; it ends when ``look`` says so."""
    settings = msgspec.structs.replace(settings, epochs=1_000, early_stopping_epochs=0)
    corpus = _made_up_corpus(settings, vocabulary)
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
            name="made up",
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
    return Job(
        info=info,
        paths=paths,
        log=log,
        history=RunState(),
        device=where,
        corpus=corpus,
        tables=_tables(vocabulary, settings.channels, settings.window_tokens) if frozen else None,
        stop_requested=look,
        enter_phase=lambda phase, epoch: None,
        end_telemetry=lambda: None,
    )


def _made_up_corpus(settings: Settings, vocabulary: int) -> Corpus:
    """A stream in which a few ids are common and most are rare, as in text."""
    steps = {"train": STEPS, "validation": 1, "test": 1}
    g = np.random.default_rng(0)
    splits: dict[str, NDArray[np.integer[Any]]] = {}
    for split in SPLITS:
        count = steps[split] * settings.batch_size * settings.window_tokens + 1
        ids = 1 + (vocabulary - 1) * g.random(count, dtype=np.float32) ** 4
        splits[split] = ids.clip(1, vocabulary - 1).astype(np.int32)
    return Corpus(
        name="made up",
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
    """Stand-ins of the shape and spread of GPT-1's tables."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.empty(vocabulary, channels).normal_(std=0.14, generator=g)
    tokens[0] = 0
    position = torch.empty(window_tokens, channels).normal_(std=0.05, generator=g)
    return Tables(tokens=tokens, position=position, sha256="", path=Path())
