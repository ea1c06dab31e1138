"""Real runs on a GPU: fast paths beside their plain twins, steps beside the textbook's, and whole suites.

Everything of ours is trained by real workers on run directories as the queue makes them, and what is reported is read
from their event logs.
"""

import contextlib
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from textbook import textbook_steps

from lmconsole.data.corpus import SPLITS, find_data, find_embeddings
from lmconsole.engine import attempt, worker
from lmconsole.engine.local import last_line, python
from lmconsole.engine.options import threads_per_run
from lmconsole.engine.probe import Prepared, ProbeRequest, ask
from lmconsole.engine.queue import Wanted, enqueue, fingerprint
from lmconsole.lm import device as devices
from lmconsole.lm.model import build_model
from lmconsole.plan.arithmetic import step_flops
from lmconsole.plan.experiment import Precision
from lmconsole.plan.load import load_plan
from lmconsole.runs.events import EventReader, Queued
from lmconsole.runs.info import read_info
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store

ADAMW_FIRST = (2, 6, 9, 11, 10, 12, 1, 3, 4, 5, 7, 8)
"""The twelve, one of each shape before the others."""
TWIN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-3}
"""How far the losses of a fast path may be from its twin's, relative."""
PLAIN = {"LMCONSOLE_PLAIN": "1"}
"""Environment of a worker that is to take the plain twin of every fast path."""
TEXTBOOK_WAYS: dict[str, tuple[Precision, Precision]] = {"fp32": ("fp32", "fp32"), "bf16": ("tf32", "bf16")}
"""The textbook's script as it comes, without TF32, and with TF32 and bf16 autocast: switches, and autocast."""
STOP_S = 20.0
"""How long workers that were asked to stop may take before they are killed."""


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
    twin_steps: int
    """Whole batches in each epoch of a comparison with the plain twin; a short one follows."""
    twin_epochs: int
    steps: int
    """Steps in each epoch, and in each turn of the textbook, when steps are timed."""
    step_epochs: int
    rounds: int


PAPER = Sizes(
    numbers=ADAMW_FIRST,
    tokens=dict(zip(SPLITS, (2_356_376, 245_046, 279_023), strict=True)),
    preset="",
    head_rows=(4096, 1237),
    copy_mib=4096,
    product=8192,
    twin_steps=5,
    twin_epochs=4,
    steps=32,
    step_epochs=3,
    rounds=2,
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
    twin_steps=2,
    twin_epochs=2,
    steps=3,
    step_epochs=2,
    rounds=2,
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
        self.described = {"tokens": "random" if found is None else "given", "tables": "given" if tables else "random"}
        self.data = self._random_tokens() if found is None else found
        self.tables = tables or self._random_tables()
        self.answer = ask(
            ProbeRequest(
                experiments_file=str(self.experiments),
                experiments=tuple(sorted(sizes.numbers)),
                preset="paper",
                data=str(self.data),
                embeddings=str(self.tables),
                device=where,
                max_tokens=None,
            )
        )
        T, B = self.any.window_tokens, self.any.batch_size
        train = self.answer.prepared[0].corpus.tokens["train"]
        self.labels = {each.experiment.id: each.experiment.label for each in self.answer.prepared}
        self.steps_per_epoch = math.ceil(math.ceil((train - 1) / T) / B)
        self.described |= {"train_tokens": train, "steps_per_epoch": self.steps_per_epoch}

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
        seeds: Sequence[int] = (42,),
        jobs: int = 1,
    ) -> Store:
        """A store with these runs in its queue, and nobody at work."""
        store = Store(self.folder / name)
        chosen = [each for each in self.answer.prepared if each.experiment.id in numbers]
        prepared = [_changed(each, precision, epochs, max_tokens) for each in chosen]
        wanted = [
            Wanted(prepared=each, preset="paper", seed=seed, same_run=fingerprint(each, seed))
            for seed in seeds
            for each in prepared
        ]
        queued = Queued(devices=self.answer.device_keys, jobs=jobs)
        enqueue(store, wanted, queued, fresh=True, refuse_active=False, threads=threads_per_run(jobs))
        return store

    # ---- fast paths and their plain twins

    def twins(self, precision: Precision, deadline: float) -> dict[str, Any]:
        """The experiments, trained for a few short epochs with every fast path and with none: losses of each epoch."""
        sizes, settings = self.sizes, self.any
        windows = sizes.twin_steps * settings.batch_size + max(settings.batch_size // 3, 1)
        jobs = min(max(threads_per_run(1) // 2, 1), 8) if self.where != "cpu" else 2
        stores = {}
        for way, variables in (("fast", {}), ("plain", PLAIN)):
            stores[way] = self.queue(
                f"twins-{precision}-{way}",
                precision,
                numbers=sizes.numbers,
                epochs=sizes.twin_epochs,
                max_tokens=windows * settings.window_tokens + 1,
                jobs=jobs,
            )
            command = python("lmconsole.engine.runner", str(stores[way].root))
            _finish(command, stores[way], deadline, self.folder, variables)
        fast, plain = ({run.info.experiment.id: run for run in store.runs()} for store in stores.values())
        compared = {str(n): _compare(fast[n], plain[n], TWIN_TOLERANCE[precision]) for n in sizes.numbers}
        return {
            "steps": (sizes.twin_steps + 1) * sizes.twin_epochs,
            "tolerance": TWIN_TOLERANCE[precision],
            "experiments": compared,
            "largest_off_by": max((c["off_by"] for c in compared.values() if c["off_by"] is not None), default=None),
            "identical": sum(each["off_by"] == 0 for each in compared.values()),
            "ok": verdict(each["ok"] for each in compared.values()),
        }

    # ---- steps

    def steps(self, number: int, deadline: float) -> dict[str, Any]:
        """Step times and memory of one experiment beside the textbook's, in a process of its own. A run of ours whose
        logs give the time of its epochs takes turns with as many steps of the textbook."""
        sizes, settings = self.sizes, self.settings[number]
        stores = {
            precision: self.queue(
                f"steps-{number}-{precision}",
                precision,
                epochs=sizes.step_epochs,
                numbers=[number],
                max_tokens=sizes.steps * settings.batch_size * settings.window_tokens + 1,
                seeds=range(sizes.rounds),
            )
            for precision in TEXTBOOK_WAYS
        }
        turns = {precision: [str(run.paths.folder) for run in store.runs()] for precision, store in stores.items()}
        answer = self.folder / f"steps-{number}.json"
        command = [sys.executable, str(Path(__file__)), self.where, str(sizes.steps), json.dumps(turns), str(answer)]
        with (self.folder / "steps.log").open("ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, timeout=max(deadline - time.monotonic(), 1))
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        flops = step_flops(settings, self.answer.prepared[0].corpus.vocabulary)
        return {"label": self.labels[number], "flops": flops, **found}

    # ---- the suite

    def suite(self, name: str, precision: Precision, *, epochs: int, jobs: int, deadline: float) -> dict[str, Any]:
        """All of them as one whole command, from its start to its end. At ``deadline`` they are asked to stop. Where
        the command cannot do its work, as on a machine without all it needs, the queue and a runner do."""
        store, way = Store(self.folder / name), "lmconsole run"
        flags = {"preset": "paper", "device": self.where, "precision": precision, "jobs": jobs, "epochs": epochs}
        files = {"data": self.data, "embeddings": self.tables, "experiments": self.experiments, "runs": store.root}
        options = [str(word) for key, value in (flags | files).items() for word in (f"--{key}", value)]
        command = python(
            "lmconsole", "run", *map(str, sorted(self.sizes.numbers)), "--headless", "--json", "--no-export"
        )
        began = time.monotonic()
        code = _finish([*command, *options], store, deadline, self.folder)
        if not store.runs() and time.monotonic() < deadline:
            way, began = "queue and runner", time.monotonic()
            store = self.queue(name, precision, epochs=epochs, numbers=self.sizes.numbers, jobs=jobs)
            code = _finish(python("lmconsole.engine.runner", str(store.root)), store, deadline, self.folder)
        whole_s = time.monotonic() - began
        runs = {str(run.info.experiment.id): _outcome(run) for run in store.runs()}
        finished = sum(each["status"] == Status.FINISHED for each in runs.values())
        if not any(each["train_s"] for each in runs.values()):
            raise RuntimeError(f"no run trained an epoch, exit code {code}: {last_line(self.folder / 'commands.log')}")
        return {
            "precision": precision,
            "jobs": jobs,
            "epochs": epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "command": way,
            "exit_code": code,
            "finished": finished,
            "complete": finished == len(self.sizes.numbers),
            "whole_s": whole_s,
            "runs": runs,
        }


def _changed(prepared: Prepared, precision: Precision, epochs: int, max_tokens: int | None) -> Prepared:
    """The same experiment with these settings, on the first ``max_tokens`` tokens."""
    replace = msgspec.structs.replace
    corpus = prepared.corpus
    if max_tokens is not None:
        tokens = {k: min(n, max_tokens if k == "train" else max_tokens // 10) for k, n in corpus.tokens.items()}
        corpus = replace(corpus, max_tokens=max_tokens, tokens=tokens)
    return replace(prepared, corpus=corpus, settings=replace(prepared.settings, precision=precision, epochs=epochs))


def _finish(
    command: list[str], store: Store, deadline: float, folder: Path, variables: dict[str, str] | None = None
) -> int:
    """Run ``command`` until its runs have ended; at ``deadline`` they are stopped, then killed. Its exit code."""
    with (folder / "commands.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | (variables or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        return process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
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


def _compare(fast: Run, plain: Run, tolerance: float) -> dict[str, Any]:
    """Losses of each epoch, train and validation, of two runs that should compute the same."""
    losses = {"fast": _losses(fast), "plain": _losses(plain)}
    known = [(a, b) for a, b in zip(losses["fast"], losses["plain"], strict=False) if a is not None and b]
    off = max((abs(a / b - 1) for a, b in known), default=None)
    ended = {fast.status, plain.status} <= {Status.FINISHED, Status.FAILED}
    whole = len(known) == 2 * fast.info.settings.epochs == 2 * plain.info.settings.epochs
    return {
        "label": fast.info.experiment.label,
        "off_by": off,
        "ok": (whole and off is not None and off <= tolerance) if ended else None,  # None: no time was left
        **losses,
        "statuses": [fast.status, plain.status],
        "said": [_said(fast), _said(plain)],
    }


def verdict(each: Iterable[bool | None]) -> bool | None:
    """False if one is; else None, unknown, if one is; else True."""
    found = set(each)
    return False if False in found else None if None in found else True


def _losses(run: Run) -> list[float | None]:
    return [loss for epoch in run.state.epochs for loss in (epoch.train_loss_nats, epoch.valid_loss_nats)]


def _said(run: Run) -> str | None:
    """Why a run failed, or else the last line of its worker's log, where a fast path that had to be left would say so;
    None if there is none."""
    if run.state.failed is not None:
        return run.state.failed.message
    log = run.paths.worker_log
    return last_line(log) if log.exists() and log.stat().st_size else None


def _outcome(run: Run) -> dict[str, Any]:
    """What a run's log says of time and memory."""
    state = run.state
    finished, epochs, samples = state.finished, state.epochs, state.telemetry

    def most(field: str) -> float | None:
        return max((value for sample in samples if (value := getattr(sample, field)) is not None), default=None)

    return {
        "label": run.info.experiment.label,
        "status": run.status,
        "said": _said(run),
        "setup_s": finished and finished.setup_s,
        "wall_s": finished and finished.wall_s,
        "test_ppl_final": finished and finished.test_ppl_final,
        "torch_peak_mib": finished and finished.torch_peak_mib,
        "torch_reserved_mib": most("torch_reserved_mib"),
        "process_used_mib": most("process_used_mib"),
        "train_s": [epoch.train_s for epoch in epochs],
        "valid_s": [epoch.valid_s for epoch in epochs],
        "train_ppl": [epoch.train_ppl for epoch in epochs],
        "valid_ppl": [epoch.valid_ppl for epoch in epochs],
    }


# ---- steps of one experiment, in a process of their own


def time_steps(where: str, steps: int, turns: dict[str, list[str]]) -> dict[str, Any]:
    """Ours and the textbook's in turns: for each precision the run directories, one a round."""
    info = read_info(RunPaths(Path(turns["fp32"][0])).info)
    corpus, tables = attempt.load_the_corpus(info), attempt.load_the_tables(info)
    assert tables is not None
    tokens = torch.from_numpy(corpus.splits["train"].astype(np.int64))
    torch.manual_seed(0)
    weights = build_model(info.settings, vocabulary=corpus.vocabulary, tables=tables).state_dict()

    textbook: dict[str, list[float]] = {precision: [] for precision in turns}
    ours: dict[str, list[float]] = {precision: [] for precision in turns}
    firsts: dict[str, list[float]] = {precision: [] for precision in turns}
    memory: dict[str, float | None] = {}
    for turn in range(len(turns["fp32"])):
        for precision, (switches, autocast) in TEXTBOOK_WAYS.items():
            before = _start_counting(where)
            devices.apply_precision(switches)
            script = textbook_steps(info.settings, tables, tokens, weights, autocast, where)
            textbook[precision] += _turn(script, steps)
            memory[f"textbook_{precision}_mib"] = _counted(where, before)
            del script

            before = _start_counting(where)
            paths = RunPaths(Path(turns[precision][turn]))
            state = _train(paths, where)
            epoch_s = [epoch.train_s / steps for epoch in state.epochs if epoch.train_s is not None]
            firsts[precision].append(epoch_s[0])
            ours[precision] += epoch_s[1:]
            memory[f"ours_{precision}_mib"] = _counted(where, before)
    return {
        **{f"textbook_{precision}_s": statistics.median(each) for precision, each in textbook.items()},
        **{f"ours_{precision}_s": statistics.median(each) for precision, each in ours.items()},
        **memory,
        "textbook_s": textbook,
        "ours_s": ours,
        "first_epochs_s": firsts,
    }


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
    devices.give_back_memory(where)
    devices.forget_peaks(where)
    return torch.cuda.memory_reserved(where) / 2**20


def _counted(where: str, before: float | None) -> float | None:
    return None if before is None else torch.cuda.max_memory_reserved(where) / 2**20 - before


if __name__ == "__main__":
    where, steps, turns, answer = sys.argv[1:]
    Path(answer).write_text(json.dumps(time_steps(where, int(steps), json.loads(turns))), encoding="utf-8")
