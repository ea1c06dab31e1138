"""Measure how long a viewer takes to read a store of 1,000 runs with 1,000 events each, and to poll it afterwards.

The runs are written with the package's own types and encoders, and read in fresh processes. The files have just been
written, so they come from the page cache and the disk is not part of the time.
"""

import argparse
import gc
import hashlib
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from result_rows import Row

from lmconsole import __version__
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Event,
    Failed,
    Finished,
    Phase,
    Progress,
    Queued,
    Started,
    Stopped,
    Telemetry,
    perplexity,
)
from lmconsole.runs.info import SCHEMA, CorpusInfo, RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.store import Store

GOAL_READ_S = 2.0
"""Upper limit for reading 1,000 runs of 1,000 events."""
EVENTS = 1_000
"""Events in each run's log."""
Ending = Literal["finished", "stopped", "failed", "lost"]
ENDINGS: tuple[Ending, ...] = ("finished",) * 9 + ("stopped", "failed", "lost")
"""Ends of the runs, repeated in this order. A lost run has no last event, and no process holds its lock."""
STEPS = 576
"""Steps in an epoch of the paper preset."""
POLLS = 5


def run_info(number: int, preset: str, corpus: CorpusInfo, *, run: str, **overrides: object) -> RunInfo:
    """Return the run.json of a run of experiment ``number``, as it is written to the queue."""
    plan = load_plan(builtin_file())
    resolved = plan.resolve(plan.experiment(number), preset, {"precision": "fp32", **overrides})
    return RunInfo(
        schema=SCHEMA,
        run=run,
        queued_t="2026-01-01T00:00:00.000Z",
        experiment=plan.experiment(number),
        preset=preset,
        settings=resolved.settings,
        origins=resolved.origins,
        seed=resolved.seed,
        config_hash=hashlib.sha256(run.encode()).hexdigest(),
        corpus=corpus,
        embeddings=None,
        threads=2,
        command=("lmconsole", "run", str(number)),
        cwd="/home/person/project",
        version=__version__,
    )


WIKITEXT2 = CorpusInfo(
    name="WikiText-2 (GPT-1 BPE)",
    kind="npz",
    path="/home/person/data/wikitext-2",
    vocabulary=40_479,
    tokenizer="GPT-1 BPE, ids shifted by one",
    tokens={"train": 2_356_376, "validation": 245_046, "test": 279_023},
    sha256="0" * 64,
    max_tokens=None,
)


def run_events(info: RunInfo, ending: Ending, events: int) -> Iterator[Event]:
    """Yield the ``events`` events of a run on a GPU: two progress events for each telemetry event, one event per epoch,
    and the last one."""
    epochs = info.settings.epochs
    yield Queued(devices=("cuda:0",), jobs=1)
    yield Started(
        attempt=1,
        pid=4_194_303,
        host="gpu-box",
        device="cuda:0",
        device_name="NVIDIA H100 80GB HBM3",
        device_uuid="GPU-00000000-0000-0000-0000-000000000000",
        versions={"lmconsole": __version__, "python": "3.11.7", "torch": "2.13.0", "cuda": "13.0", "driver": "580.95"},
        threads=2,
        precision="fp32",
        parameters_total=38_304_000,
        parameters_trainable=7_087_872,
        shared_gpu=False,
    )
    measurements = events - 2 - epochs - (ending != "lost")
    written = 0
    for epoch in range(1, epochs + 1):
        last = measurements * epoch // epochs
        in_epoch = last - written
        for i in range(in_epoch):
            loss = 9.2 * 0.93 ** (epoch + i / in_epoch)
            elapsed_s = 0.3371 * (written + i)
            yield (
                _telemetry("train", epoch, i)
                if i % 3 == 2
                else Progress(
                    epoch=epoch,
                    step=1 + i * (STEPS - 1) // max(in_epoch - 1, 1),
                    steps=STEPS,
                    train_loss_nats=loss,
                    tokens_per_s=131_072.0 / (0.5 + 1e-3 * (i % 17)),
                    elapsed_train_s=elapsed_s,
                )
            )
        written = last
        yield _epoch(epoch, 9.2 * 0.93**epoch, 0.3371 * written)
    match ending:
        case "finished":
            yield Finished(
                test_ppl_final=82.31415926535,
                test_ppl_best=80.27182818284,
                best_epoch=epochs,
                best_valid_ppl=perplexity(9.2 * 0.93**epochs + 0.1),
                setup_s=5.4321,
                wall_s=345.678901,
                diverged=False,
                torch_peak_mib=2_345.678,
                rss_peak_mib=1_234.567,
            )
        case "stopped":
            yield Stopped(epoch=epochs, step=123)
        case "failed":
            yield Failed(error="crash", message="RuntimeError: a message", hint="worker.log has the traceback.")


def _telemetry(phase: Phase, epoch: int, i: int) -> Telemetry:
    return Telemetry(
        phase=phase,
        epoch=epoch,
        device_used_mib=4_321.0625 + i % 7,
        device_total_mib=81_559.0,
        process_used_mib=3_210.0 + i % 5,
        torch_allocated_mib=1_234.56787109375,
        torch_reserved_mib=2_345.0,
        utilization_percent=float(90 + i % 10),
        power_w=410.123 + i % 40,
        temperature_c=float(50 + i % 15),
        rss_mib=1_876.48828125 + i % 3,
    )


def _epoch(epoch: int, loss: float, elapsed_train_s: float) -> Epoch:
    return Epoch(
        epoch=epoch,
        train_loss_nats=loss,
        train_ppl=perplexity(loss),
        valid_loss_nats=loss + 0.1,
        valid_ppl=perplexity(loss + 0.1),
        train_s=33.71,
        valid_s=1.234,
        elapsed_train_s=elapsed_train_s,
    )


def make_store(root: Path, runs: int, events: int = EVENTS) -> None:
    """Create ``runs`` runs of ``events`` events each, over all twelve experiments.

    ``EventLog`` writes one log for each experiment and ending, which all runs of that kind share.
    """
    logs: dict[tuple[int, Ending], bytes] = {}
    infos: dict[int, str] = {}
    root.mkdir(parents=True)
    numbers = itertools.cycle(range(1, 13))
    for i, number in zip(range(runs), numbers, strict=False):
        ending = ENDINGS[(i // 12) % len(ENDINGS)]
        if number not in infos:
            info = run_info(number, "scratch", WIKITEXT2, run="NAME")
            infos[number] = msgspec.json.format(msgspec.json.encode(info), indent=2).decode() + "\n"
        if (number, ending) not in logs:
            info = msgspec.json.decode(infos[number], type=RunInfo)
            logs[number, ending] = _encode(root / ".log.tmp", run_events(info, ending, events))
        minute = f"{i // 60 % 24:02d}{i % 60:02d}"
        paths = RunPaths(root / f"{number:02d}-benchmark-s42-202601{1 + i // 1440:02d}T{minute}00Z")
        paths.folder.mkdir()
        config_hash = hashlib.sha256(paths.run.encode()).hexdigest()
        text = re.sub(r'"same_run": "\w+"', f'"same_run": "{config_hash}"', infos[number].replace("NAME", paths.run))
        paths.info.write_text(text, encoding="utf-8")
        paths.events.write_bytes(logs[number, ending])
        paths.lock.touch()


def _encode(path: Path, events: Iterator[Event]) -> bytes:
    """Return the bytes that ``EventLog`` writes for ``events``, by way of a temporary file at ``path``."""
    log = EventLog(path)
    for event in events:
        log.append(event)
    log.close()
    data = path.read_bytes()
    path.unlink()
    return data


def measure(quick: bool) -> dict[str, Any]:
    """Return seconds and MiB of reading a store and of polling it, each from several fresh processes."""
    runs, repetitions = (100, 2) if quick else (1_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        started_s = time.perf_counter()
        make_store(root, runs)
        creation_s = time.perf_counter() - started_s
        size = sum(path.stat().st_size for path in root.glob("*/events.jsonl"))
        readings = [_read_in_child(root) for _ in range(repetitions)]
    return {
        "runs": runs,
        "events_per_run": EVENTS,
        "log_mib": size / 2**20,
        "creation_s": creation_s,
        "goal_read_s": GOAL_READ_S,
        "median": {key: statistics.median(reading[key] for reading in readings) for key in readings[0]},
        "best_read_s": min(reading["read_s"] for reading in readings),
        "readings": readings,
    }


def _read_in_child(root: Path) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, __file__, "--read", str(root)], stdout=subprocess.PIPE, check=True, timeout=600
    )
    reading: dict[str, float] = json.loads(process.stdout)
    return reading


def read(root: Path) -> dict[str, float]:
    """Read the store at ``root`` as a viewer does, poll it, and poll it again after a run has written an event.

    ``decode_s`` is the lower bound of reading: the time to read and decode the same bytes without keeping the events.
    """
    start_mib = peak_rss_mib()
    store = Store(root)
    started_s = time.perf_counter()
    runs = store.runs()
    read_s = time.perf_counter() - started_s
    read_peak_mib = peak_rss_mib()
    assert not store.problems
    events = sum(run.state.seq for run in runs)
    polls, changed = [], []
    for i in range(POLLS):
        polls.append(_poll_s(store))
        log = EventLog(runs[i].paths.events)
        log.append(_epoch(99, 4.0, 345.0))
        log.close()
        changed.append(_poll_s(store))
        assert runs[i].state.epochs[-1].epoch == 99
    paths = [run.paths.events for run in runs]
    del store, runs
    gc.collect()
    decoder = msgspec.json.Decoder(AnyEvent)
    started_s = time.perf_counter()
    for path in paths:
        decoder.decode_lines(path.read_bytes())
    return {
        "events": events,
        "read_s": read_s,
        "poll_s": statistics.median(polls),
        "poll_one_changed_s": statistics.median(changed),
        "decode_s": time.perf_counter() - started_s,
        "start_mib": start_mib,
        "peak_mib": read_peak_mib,
    }


def _poll_s(store: Store) -> float:
    started_s = time.perf_counter()
    store.runs()
    return time.perf_counter() - started_s


def peak_rss_mib() -> float:
    """Return the peak resident memory of this process.

    On Linux from ``/proc``, since ``getrusage`` in a child process is never below the parent's memory at the fork.
    """
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def rows(result: dict[str, Any]) -> list[Row]:
    """Return a row for reading the store, which has a goal at full size, and one for polling it."""
    median, full_size = result["median"], result["runs"] == 1_000
    return [
        Row(
            what=f"store: read {result['runs']:,} runs × {result['events_per_run']:,} events",
            measured=f"{median['read_s']:.2f} s (decoding alone {median['decode_s']:.2f} s), "
            f"peak memory {median['peak_mib']:,.0f} MiB",
            goal=f"< {result['goal_read_s']:g} s" if full_size else None,
            met=median["read_s"] < result["goal_read_s"] if full_size else None,
        ),
        Row(
            what="store: poll, without and with a new event",
            measured=f"{median['poll_s'] * 1e3:.0f} ms, {median['poll_one_changed_s'] * 1e3:.0f} ms",
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", type=Path, required=True, help="store to read once, in this process")
    json.dump(read(parser.parse_args().read), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # skip freeing a million events
