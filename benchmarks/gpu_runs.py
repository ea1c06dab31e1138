"""Real runs on a GPU: fast paths compared with their reference, steps with plain PyTorch's, and whole suites.

Everything of ours is trained by real workers on run directories as the queue makes them, and what is reported is read
from their event logs.
"""

import contextlib
import gc
import math
import os
import pickle
import signal
import statistics
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from baseline import baseline_steps
from gpu_process import LOG_CHARACTERS, Stage

from lmconsole.data.corpus import SPLITS, find_data, find_embeddings
from lmconsole.engine import attempt, worker
from lmconsole.engine.probe import ResolvedRun, ask
from lmconsole.engine.processes import last_line, python
from lmconsole.engine.queue import enqueue
from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import escape_control_characters
from lmconsole.lm import device as devices
from lmconsole.lm import memory
from lmconsole.lm.model import build_model
from lmconsole.plan.experiment import Precision
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import load_plan
from lmconsole.runs.events import EventReader, Queued
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import threads_per_run

ADAMW_FIRST = (2, 6, 9, 11, 10, 12, 1, 3, 4, 5, 7, 8)
"""The twelve, one of each shape before the others."""
REFERENCE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-3}
"""How far the losses of the fast paths may be from the reference's, relative."""
PLAIN = {"LMCONSOLE_PLAIN": "1"}
"""Environment of a worker that is to compute by the reference implementation alone."""
BASELINES: dict[Precision, tuple[Precision, Precision]] = {"fp32": ("fp32", "fp32"), "bf16": ("tf32", "bf16")}
"""Plain PyTorch as it comes, without TF32, and with TF32 and bf16 autocast: switches, and autocast."""
SEED = 42
STOP_S = 6.0
"""How long workers that were asked to stop may take before they are killed."""
NOTICE_S = 5.0
"""How often a suite is asked how far it is."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    numbers: tuple[int, ...]
    """Experiments."""
    tokens: dict[str, int]
    """Tokens of each split, where none are given."""
    preset: str
    """TOML that lies over the preset ``paper``."""
    head_rows: tuple[int, ...]
    copy_mib: int
    product: int
    reference_steps: int
    """Whole batches in each epoch of a comparison with the reference; a short one follows."""
    reference_epochs: int
    steps: int
    """Steps in each epoch, and in each turn of plain PyTorch, when steps are timed."""
    step_epochs: int
    replays: int
    """Replays of a captured step in a timed stretch."""


PAPER = Sizes(
    numbers=ADAMW_FIRST,
    tokens=dict(zip(SPLITS, (2_356_376, 245_046, 279_023), strict=True)),
    preset="",
    head_rows=(4096, 1237),
    copy_mib=4096,
    product=8192,
    reference_steps=5,
    reference_epochs=4,
    steps=32,
    step_epochs=3,
    replays=60,
)
REHEARSAL = Sizes(
    numbers=(2, 6),
    tokens=dict(zip(SPLITS, (700, 90, 80), strict=True)),
    preset="""vocabulary = 300
channels = 16
window_tokens = 8
batch_size = 4
[presets.paper.lstm]
hidden = 8
[presets.paper.gpt1]
heads = 2
mlp_channels = 32
""",
    head_rows=(40, 13),
    copy_mib=1,
    product=64,
    reference_steps=2,
    reference_epochs=2,
    steps=3,
    step_epochs=2,
    replays=3,
)


class Bench:
    """Data, experiments and stores of one benchmark, in a folder of its own."""

    def __init__(self, folder: Path, sizes: Sizes, where: str, data: Path | None) -> None:
        """``data`` is the folder with tokens, and maybe tables; random ones stand in for what is not there."""
        self.folder, self.sizes, self.where = folder, sizes, where
        self.experiments = folder / "paper.toml"
        self.experiments.write_text(f"include_builtin = true\n[presets.paper]\n{sizes.preset}", encoding="utf-8")
        plan = load_plan(self.experiments)
        self.settings = {n: plan.resolve(plan.experiment(n), "paper").settings for n in sizes.numbers}
        self.any = self.settings[sizes.numbers[0]]  # windows, vocabulary and tables are the same for all
        self.lstm = next(each for each in self.settings.values() if each.model == "lstm")
        found = None if data is None else find_data(data, environ={}, cwd=Path.cwd())
        tables = find_embeddings(None, found)
        self.described: dict[str, Any] = {
            "tokens": "random" if found is None else "given",
            "tables": "given" if tables else "random",
        }
        self.data = self._random_tokens() if found is None else found
        self.tables = tables or self._random_tables()
        self.answer = ask(
            RunRequest(
                experiments=self.experiments,
                ids=tuple(sorted(sizes.numbers)),
                preset="paper",
                data=self.data,
                embeddings=self.tables,
                device=where,
            )
        )
        T, B = self.any.window_tokens, self.any.batch_size
        self.tokens: dict[str, int] = self.answer.runs[0].corpus.tokens
        train = self.tokens["train"]
        self.labels = {each.experiment.id: each.experiment.label for each in self.answer.runs}
        self.steps_per_epoch = math.ceil(math.ceil((train - 1) / T) / B)
        self.described |= {"train_tokens": train, "steps_per_epoch": self.steps_per_epoch}

    def save(self) -> None:
        """Leave it in its folder for the stages, which are processes of their own."""
        (self.folder / "bench.pickle").write_bytes(pickle.dumps(self))

    @classmethod
    def load(cls, folder: Path) -> "Bench":
        """Return what ``save`` left in ``folder``."""
        bench: Bench = pickle.loads((folder / "bench.pickle").read_bytes())
        return bench

    @property
    def shapes(self) -> tuple[int, ...]:
        """One experiment of each shape, the first in the order of ``sizes.numbers``."""
        found: dict[tuple[str, int], int] = {}
        for number, settings in self.settings.items():
            found.setdefault((settings.model, settings.layers), number)
        return tuple(found.values())

    def _random_tokens(self) -> Path:
        """Streams in which a few ids are common and most are rare, as in text."""
        folder = self.folder / "data"
        folder.mkdir()
        draw = np.random.default_rng(2)
        for split, count in self.sizes.tokens.items():
            tokens = 1 + (self.any.vocabulary - 2) * draw.random(count) ** 4
            np.savez(folder / f"wiki.{split}.npz", tokens=tokens.astype(np.int32))
        return folder

    def _random_tables(self) -> Path:
        """Of the shape and spread of GPT-1's."""
        settings, draw = self.any, np.random.default_rng(1)
        tokens = draw.standard_normal((settings.vocabulary, settings.channels), dtype=np.float32) * 0.14
        tokens[0] = 0
        position = draw.standard_normal((settings.window_tokens, settings.channels), dtype=np.float32) * 0.05
        file = self.folder / "embeddings.npz"
        np.savez(file, tokens=tokens, position=position.astype(np.float32))
        return file

    def queue(
        self,
        name: str,
        precision: Precision,
        *,
        epochs: int,
        numbers: Collection[int],
        max_tokens: int | None = None,
        jobs: int = 1,
    ) -> Store:
        """A store with these runs in its queue, and no runner."""
        store = Store(self.folder / name)
        chosen = [each for each in self.answer.runs if each.experiment.id in numbers]
        wanted = [_changed(each, precision, epochs, max_tokens) for each in chosen]
        queued = Queued(devices=self.answer.device_keys, jobs=jobs)
        enqueue(store, wanted, queued, fresh=True, refuse_active=False, threads=threads_per_run(jobs))
        return store

    # ---- fast paths and their reference

    def reference(self, precision: Precision, stage: Stage) -> dict[str, Any]:
        """The experiments, trained for a few short epochs by the fast paths and by the reference implementation: losses
        of each epoch."""
        sizes, settings = self.sizes, self.any
        windows = sizes.reference_steps * settings.batch_size + max(settings.batch_size // 3, 1)
        jobs = min(max(threads_per_run(1) // 2, 1), 8) if self.where != "cpu" else 2
        stores = {}
        for implementation, variables in (("fast", {}), ("reference", PLAIN)):
            stores[implementation] = self.queue(
                f"reference-{precision}-{implementation}",
                precision,
                numbers=sizes.numbers,
                epochs=sizes.reference_epochs,
                max_tokens=windows * settings.window_tokens + 1,
                jobs=jobs,
            )
            command = python("lmconsole.engine.runner", str(stores[implementation].root))
            _finish(command, stores[implementation], stage, variables)
        fast, reference = ({run.info.experiment.id: run for run in store.runs()} for store in stores.values())
        compared = {str(n): _compare(fast[n], reference[n], REFERENCE_TOLERANCE[precision]) for n in sizes.numbers}
        return {
            "steps": (sizes.reference_steps + 1) * sizes.reference_epochs,
            "tolerance": REFERENCE_TOLERANCE[precision],
            "experiments": compared,
            "largest_off_by": max((c["off_by"] for c in compared.values() if c["off_by"] is not None), default=None),
            "identical": sum(each["off_by"] == 0 for each in compared.values()),
            "ok": verdict(each["ok"] for each in compared.values()),
        }

    # ---- steps

    def steps(self, number: int) -> dict[str, Any]:
        """Step times and memory of one experiment, a run of ours whose log gives the time of its epochs after as many
        steps of plain PyTorch, for each precision."""
        sizes, settings = self.sizes, self.settings[number]
        runs = {
            precision: self.queue(
                f"steps-{number}-{precision}",
                precision,
                epochs=sizes.step_epochs,
                numbers=[number],
                max_tokens=sizes.steps * settings.batch_size * settings.window_tokens + 1,
            ).runs()[0]
            for precision in BASELINES
        }
        flops = step_flops(settings, self.answer.runs[0].corpus.vocabulary)
        return {"label": self.labels[number], "flops": flops, **time_steps(self.where, sizes.steps, runs)}

    # ---- the suite

    def suite(self, name: str, precision: Precision, *, epochs: int, jobs: int, stage: Stage) -> dict[str, Any]:
        """All of them as one whole command, from its start to its end. At the deadline they are asked to stop. Where
        the command cannot do its work, as on a machine without all it needs, the queue and a runner do."""
        store, by = Store(self.folder / name), "lmconsole run"
        flags = {"preset": "paper", "device": self.where, "precision": precision, "jobs": jobs, "epochs": epochs}
        files = {"data": self.data, "embeddings": self.tables, "experiments": self.experiments, "runs": store.root}
        options = [str(word) for key, value in (flags | files).items() for word in (f"--{key}", value)]
        command = python(
            "lmconsole", "run", *map(str, sorted(self.sizes.numbers)), "--headless", "--json", "--no-export"
        )
        began = time.monotonic()
        code = _finish([*command, *options], store, stage)
        if not store.runs() and stage.left_s > 0:
            by, began = "queue and runner", time.monotonic()
            store = self.queue(name, precision, epochs=epochs, numbers=self.sizes.numbers, jobs=jobs)
            code = _finish(python("lmconsole.engine.runner", str(store.root)), store, stage)
        whole_s = time.monotonic() - began
        runs = {str(run.info.experiment.id): _outcome(run) for run in store.runs()}
        finished = sum(each["status"] == Status.FINISHED for each in runs.values())
        found = {
            "precision": precision,
            "jobs": jobs,
            "epochs": epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "trained_steps": sum(len(each["train_s"]) for each in runs.values()) * self.steps_per_epoch,
            "command": by,
            "exit_code": code,
            "finished": finished,
            "complete": finished == len(self.sizes.numbers),
            "whole_s": whole_s,
            "runs": runs,
        }
        if not any(each["train_s"] for each in runs.values()):
            stage.report(found)
            raise RuntimeError(f"no run trained an epoch, exit code {code}: {_last_words(stage.log)}")
        return found


def _last_words(log: Path) -> str:
    """The last line that a command printed for people, which mostly says why it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return next(
        (escape_control_characters(line) for line in reversed(lines) if not line.startswith("{")), "it printed nothing"
    )


def _changed(run: ResolvedRun, precision: Precision, epochs: int, max_tokens: int | None) -> ResolvedRun:
    """The same experiment with these settings, on the first ``max_tokens`` tokens."""
    replace = msgspec.structs.replace
    corpus = run.corpus
    if max_tokens is not None:
        tokens = {k: min(n, max_tokens if k == "train" else max_tokens // 10) for k, n in corpus.tokens.items()}
        corpus = replace(corpus, max_tokens=max_tokens, tokens=tokens)
    settings = replace(run.settings, precision=precision, epochs=epochs)
    return replace(run, corpus=corpus, settings=settings, seed=SEED)


def _finish(command: list[str], store: Store, stage: Stage, variables: dict[str, str] | None = None) -> int:
    """Run ``command`` until its runs have ended; at the deadline they are stopped, then killed. Its exit code."""
    process = subprocess.Popen(command, cwd=stage.folder, env=os.environ | (variables or {}), stdin=subprocess.DEVNULL)
    finished = 0
    while stage.left_s > 0:
        try:
            return process.wait(min(stage.left_s, NOTICE_S))
        except subprocess.TimeoutExpired:
            runs = store.runs() if store.root.is_dir() else []
            if finished < (finished := sum(run.status is Status.FINISHED for run in runs)):
                stage.say(f"{finished} of {len(runs)} runs finished after {time.monotonic() - stage.began:.0f} s")
    for run in store.runs():
        run.request_stop()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for run in store.runs():
            if (owner := run.worker()) is not None and owner.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(owner.pid, signal.SIGKILL)
        process.kill()
        return process.wait()


def _compare(fast: Run, reference: Run, tolerance: float) -> dict[str, Any]:
    """Losses of each epoch, train and validation, of two runs that should compute the same."""
    losses = {"fast": _losses(fast), "reference": _losses(reference)}
    known = [(a, b) for a, b in zip(losses["fast"], losses["reference"], strict=False) if a is not None and b]
    off = max((abs(a / b - 1) for a, b in known), default=None)
    ended = {fast.status, reference.status} <= {Status.FINISHED, Status.FAILED}
    whole = len(known) == 2 * fast.info.settings.epochs == 2 * reference.info.settings.epochs
    return {
        "label": fast.info.experiment.label,
        "off_by": off,
        "ok": (whole and off is not None and off <= tolerance) if ended else None,  # None: no time was left
        **losses,
        "statuses": [fast.status, reference.status],
        "messages": [_message(fast), _message(reference)],
        "logs": [_log(fast), _log(reference)],
    }


def verdict(each: Iterable[bool | None]) -> bool | None:
    """False if one is; else None, unknown, if one is; else True."""
    found = set(each)
    return False if False in found else None if None in found else True


def _losses(run: Run) -> list[float | None]:
    return [loss for epoch in run.state.epochs for loss in (epoch.train_loss_nats, epoch.valid_loss_nats)]


def _message(run: Run) -> str | None:
    """Why a run failed, or else the last line of its worker's log, where a fast path that had to be left would say so;
    None if there is none."""
    if run.state.failed is not None:
        return run.state.failed.message
    return last_line(run.paths.worker_log) if _log(run) else None


def _log(run: Run) -> str:
    """What the worker printed, tracebacks included; its end, if it is long."""
    with contextlib.suppress(OSError):
        return run.paths.worker_log.read_text(encoding="utf-8", errors="replace").strip()[-LOG_CHARACTERS:]
    return ""


def _outcome(run: Run) -> dict[str, Any]:
    """What a run's log says of time and memory."""
    state = run.state
    finished, epochs, samples = state.finished, state.epochs, state.telemetry

    def most(field: str) -> float | None:
        return max((value for sample in samples if (value := getattr(sample, field)) is not None), default=None)

    return {
        "label": run.info.experiment.label,
        "status": run.status,
        "message": _message(run),
        "log": _log(run),
        "setup_s": finished and finished.setup_s,
        "wall_s": finished and finished.wall_s,
        "test_ppl_final": finished and finished.test_ppl_final,
        "torch_peak_mib": finished and finished.torch_peak_mib,
        "torch_reserved_mib": most("torch_reserved_mib"),
        "process_used_mib": most("process_used_mib"),
        "energy_j": getattr(finished, "energy_j", None),
        "train_s": [epoch.train_s for epoch in epochs],
        "valid_s": [epoch.valid_s for epoch in epochs],
        "train_ppl": [epoch.train_ppl for epoch in epochs],
        "valid_ppl": [epoch.valid_ppl for epoch in epochs],
    }


# ---- steps of one experiment


def time_steps(where: str, steps: int, runs: dict[Precision, Run]) -> dict[str, Any]:
    """Plain PyTorch's steps, then those of the queued run, for each precision; medians without the first ones."""
    info = runs["fp32"].info
    corpus, tables = attempt.load_verified_corpus(info), attempt.load_verified_tables(info)
    assert tables is not None
    tokens = torch.from_numpy(corpus.splits["train"].astype(np.int64))
    torch.manual_seed(0)
    weights = build_model(info.settings, vocabulary=corpus.vocabulary, tables=tables).state_dict()

    seconds: dict[str, list[float]] = {}
    first_epochs: dict[str, float] = {}
    memory: dict[str, float | None] = {}
    for precision, (switches, autocast) in BASELINES.items():
        before = _start_counting(where)
        devices.apply_precision(switches)
        script = baseline_steps(info.settings, tables, tokens, weights, autocast, where)
        seconds[f"baseline_{precision}"] = _turn(script, steps)
        memory[f"baseline_{precision}_mib"] = _counted(where, before)
        del script

        before = _start_counting(where)
        state = _train(runs[precision].paths, where)
        first_epochs[precision], *seconds[f"ours_{precision}"] = [
            epoch.train_s / steps for epoch in state.epochs if epoch.train_s is not None
        ]
        memory[f"ours_{precision}_mib"] = _counted(where, before)
    medians = {f"{name}_s": statistics.median(each) for name, each in seconds.items()}
    return {**medians, **memory, "seconds": seconds, "first_epochs_s": first_epochs}


def _turn(script: Any, steps: int) -> list[float]:
    """Seconds of the steps that follow the first three; each ends by reading its loss, which waits for the device."""
    for _ in range(3):
        next(script)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        next(script)
        seconds.append(time.perf_counter() - began)
    return seconds


def _train(paths: RunPaths, where: str) -> RunState:
    """Train a queued run in this process; what its log says."""
    code = worker.main([str(paths.folder), "--device", where])
    state = RunState()
    state.apply(EventReader(paths.events).read_new())
    if code or state.finished is None:
        raise RuntimeError(f"{paths.run}: {state.failed.message if state.failed else f'exit code {code}'}")
    return state


def _start_counting(where: str) -> float | None:
    """MiB that torch keeps from the driver now; their peak counts from here. What tensors hold would leave out the room
    of a captured graph. None on a CPU, where nobody counts."""
    gc.collect()
    if where == "cpu":
        return None
    memory.empty_cache(where)
    memory.reset_peak_memory(where)
    return torch.cuda.memory_reserved(where) / 2**20


def _counted(where: str, before: float | None) -> float | None:
    return None if before is None else torch.cuda.max_memory_reserved(where) / 2**20 - before
