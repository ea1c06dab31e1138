"""How long a viewer takes to read a store of 1,000 runs with 1,000 events each, and to look at it again.

The runs are made by the package's own types and encoders, and read in fresh processes. Their files were written a
moment ago, so they come from the page cache: what is measured is the reading, not the disk.
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
from typing import Any

import msgspec

from lmconsole import __version__
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.runs.events import (
    AnyEvent,
    Epoch,
    Event,
    EventLog,
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
"""Seconds within which 1,000 runs of 1,000 events are to be read."""
EVENTS = 1_000
"""Events in each run's log."""
ENDINGS = ("finished",) * 9 + ("stopped", "failed", "lost")
"""How the runs end, in turn; a lost one has no last event and nobody who holds its lock."""
STEPS = 576
"""Steps in an epoch of the paper preset."""
POLLS = 5


def run_info(number: int, preset: str, corpus: CorpusInfo, *, run: str, **overrides: object) -> RunInfo:
    """The run.json of a run of experiment ``number``, as queuing would write it."""
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


def events_of(info: RunInfo, ending: str, events: int) -> Iterator[Event]:
    """A life of ``events`` events: two of progress for each of telemetry, as a run on a GPU leaves them, an event for
    every epoch, and the ending."""
    epochs = info.settings.epochs
    yield Queued(devices=("cuda:0",), jobs=1, exports="/home/person/project/exports")
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
    measured = events - 2 - epochs - (ending != "lost")
    written = 0
    for epoch in range(1, epochs + 1):
        last = measured * epoch // epochs
        here = last - written
        for i in range(here):
            loss = 9.2 * 0.93 ** (epoch + i / here)
            elapsed_s = 0.3371 * (written + i)
            yield (
                _telemetry("train", epoch, i)
                if i % 3 == 2
                else Progress(
                    epoch=epoch,
                    step=1 + i * (STEPS - 1) // max(here - 1, 1),
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
                best_valid_ppl=81.41421356237,
                setup_s=5.4321,
                wall_s=345.678901,
                diverged=False,
                torch_peak_mib=2_345.678,
                rss_peak_mib=1_234.567,
            )
        case "stopped":
            yield Stopped(epoch=epochs, step=123)
        case "failed":
            yield Failed(error="crash", message="RuntimeError: a message", hint="The trace is in worker.log.")


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
    """Make ``runs`` runs of ``events`` events each, of all twelve experiments.

    One log for each experiment and ending goes through the real writing end; the runs are copies of these under names
    of their own.
    """
    logs: dict[tuple[int, str], bytes] = {}
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
            logs[number, ending] = _written(root / ".log.tmp", events_of(info, ending, events))
        minute = f"{i // 60 % 24:02d}{i % 60:02d}"
        paths = RunPaths(root / f"{number:02d}-benchmark-s42-202601{1 + i // 1440:02d}T{minute}00Z")
        paths.folder.mkdir()
        config_hash = hashlib.sha256(paths.run.encode()).hexdigest()
        text = re.sub(r'"same_run": "\w+"', f'"same_run": "{config_hash}"', infos[number].replace("NAME", paths.run))
        paths.info.write_text(text, encoding="utf-8")
        paths.events.write_bytes(logs[number, ending])
        paths.lock.touch()


def _written(path: Path, events: Iterator[Event]) -> bytes:
    """The bytes that the writing end makes of ``events``."""
    log = EventLog(path)
    for event in events:
        log.append(event)
    log.close()
    data = path.read_bytes()
    path.unlink()
    return data


def measure(quick: bool) -> dict[str, Any]:
    """Seconds and MiB of a full read and of the polls after it, each from several fresh processes."""
    runs, repetitions = (100, 2) if quick else (1_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        began = time.perf_counter()
        make_store(root, runs)
        making_s = time.perf_counter() - began
        size = sum(path.stat().st_size for path in root.glob("*/events.jsonl"))
        readings = [_read_in_fresh_process(root) for _ in range(repetitions)]
    return {
        "runs": runs,
        "events_per_run": EVENTS,
        "log_mib": size / 2**20,
        "making_s": making_s,
        "goal_read_s": GOAL_READ_S,
        "median": {key: statistics.median(reading[key] for reading in readings) for key in readings[0]},
        "best_read_s": min(reading["read_s"] for reading in readings),
        "readings": readings,
    }


def _read_in_fresh_process(root: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(root)], stdout=subprocess.PIPE, check=True, timeout=600
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def read(root: Path) -> dict[str, float]:
    """What a viewer does with the store at ``root``: read everything, look again, look again after one run wrote.

    ``floor_s`` is for comparison: the same bytes read and decoded, and the events dropped at once.
    """
    before_mib = peak_mib()
    store = Store(root)
    began = time.perf_counter()
    runs = store.runs()
    read_s = time.perf_counter() - began
    read_peak_mib = peak_mib()
    assert not store.problems
    events = sum(run.state.seq for run in runs)
    polls, changed = [], []
    for i in range(POLLS):
        polls.append(_seconds(store))
        log = EventLog(runs[i].paths.events)
        log.append(_epoch(99, 4.0, 345.0))
        log.close()
        changed.append(_seconds(store))
        assert runs[i].state.epochs[-1].epoch == 99
    paths = [run.paths.events for run in runs]
    del store, runs
    gc.collect()
    decoder = msgspec.json.Decoder(AnyEvent)
    began = time.perf_counter()
    for path in paths:
        decoder.decode_lines(path.read_bytes())
    return {
        "events": events,
        "read_s": read_s,
        "poll_s": statistics.median(polls),
        "poll_one_changed_s": statistics.median(changed),
        "floor_s": time.perf_counter() - began,
        "start_mib": before_mib,
        "peak_mib": read_peak_mib,
    }


def _seconds(store: Store) -> float:
    began = time.perf_counter()
    store.runs()
    return time.perf_counter() - began


def peak_mib() -> float:
    """Most resident memory of this process so far. What ``getrusage`` says is at least what the parent had at the fork,
    so the kernel's own mark is taken where it can be read."""
    try:
        mark = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        mark = None
    if mark:
        return int(mark[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the table that ``run.py`` prints."""
    found, whole = result["median"], result["runs"] == 1_000
    size = f"{result['runs']:,} runs × {result['events_per_run']:,} events"
    return [
        {
            "what": f"reading {size}",
            "measured": f"{found['read_s']:.2f} s (floor {found['floor_s']:.2f} s), peak {found['peak_mib']:,.0f} MiB",
            "goal": f"< {result['goal_read_s']:g} s" if whole else None,
            "met": found["read_s"] < result["goal_read_s"] if whole else None,
        },
        {
            "what": "looking again: nothing new · one run wrote",
            "measured": f"{found['poll_s'] * 1e3:.0f} ms · {found['poll_one_changed_s'] * 1e3:.0f} ms",
            "goal": None,
            "met": None,
        },
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", type=Path, required=True, help="store to read once, in this process")
    json.dump(read(parser.parse_args().read), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # freeing a million events is not part of it
