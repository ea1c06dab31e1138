"""Real runs on a GPU: fast paths and reference implementation compared, steps timed, and all experiments trained.

lmconsole's runs are trained by real workers, on run directories as the queue creates them, and results are read from
their event logs.
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
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from baseline import baseline_steps
from gpu_process import LOG_CHARACTERS, Stage

from lmconsole.data.cache import SPLITS
from lmconsole.data.lookup import find_data, find_embeddings
from lmconsole.engine import worker
from lmconsole.engine.ask import ask
from lmconsole.engine.attempt import load_verified_corpus, load_verified_tables
from lmconsole.engine.probe import ResolvedRun
from lmconsole.engine.processes import last_line, python
from lmconsole.engine.queue import enqueue
from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import escape_control_characters
from lmconsole.lm.device import apply_precision
from lmconsole.lm.memory import empty_cache, reset_peak_memory
from lmconsole.lm.model import build_model
from lmconsole.plan.experiment import Precision
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import load_plan
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Queued
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import threads_per_run

ADAMW_FIRST = (2, 6, 9, 11, 10, 12, 1, 3, 4, 5, 7, 8)
"""The twelve experiments, beginning with one of each shape. A shape is a model and its number of layers."""
REFERENCE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-3}
"""Relative difference of losses between the fast paths and the reference implementation."""
NO_FAST_PATHS = {"LMCONSOLE_PLAIN": "1"}
"""Environment of a worker that uses only the reference implementation."""
BASELINES: dict[Precision, tuple[Precision, Precision]] = {"fp32": ("fp32", "fp32"), "bf16": ("tf32", "bf16")}
"""Precision of plain PyTorch outside and inside autocast: in fp32 without TF32, in bf16 with it."""
SEED = 42
WARM_UP_STEPS = 3
STOP_TIMEOUT_S = 6.0
"""Time that workers have after a request to stop, before they are killed."""
PROGRESS_S = 5.0
"""Interval at which the progress of a suite is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of everything that is measured."""

    experiments: tuple[int, ...]
    tokens: dict[str, int]
    """Tokens of each split, if they are random."""
    preset: str
    """TOML that overrides values of the preset ``paper``."""
    head_rows: tuple[int, ...]
    """Rows of features in the checks of the linear cross-entropy."""
    copy_mib: int
    matmul_size: int
    reference_steps: int
    """Full batches in each epoch of a comparison with the reference implementation; a short one follows."""
    reference_epochs: int
    steps: int
    """Timed steps of plain PyTorch, and steps in each epoch of lmconsole's run."""
    step_epochs: int
    replays: int
    """Replays of a captured step between two device syncs."""


PAPER = Sizes(
    experiments=ADAMW_FIRST,
    tokens=dict(zip(SPLITS, (2_356_376, 245_046, 279_023), strict=True)),
    preset="",
    head_rows=(4096, 1237),
    copy_mib=4096,
    matmul_size=8192,
    reference_steps=5,
    reference_epochs=4,
    steps=32,
    step_epochs=3,
    replays=60,
)
REHEARSAL = Sizes(
    experiments=(2, 6),
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
    matmul_size=64,
    reference_steps=2,
    reference_epochs=2,
    steps=3,
    step_epochs=2,
    replays=3,
)


class Workload:
    """Data, experiments and stores of one benchmark, in a folder of its own."""

    def __init__(self, folder: Path, sizes: Sizes, device: str, data: Path | None) -> None:
        """``data`` is a folder with tokens and possibly tables. Random ones replace what is missing."""
        self.folder, self.sizes, self.device = folder, sizes, device
        self.toml = folder / "paper.toml"
        self.toml.write_text(f"include_builtin = true\n[presets.paper]\n{sizes.preset}", encoding="utf-8")
        plan = load_plan(self.toml)
        self.settings = {id_: plan.resolve(plan.experiment(id_), "paper").settings for id_ in sizes.experiments}
        # Batch size, windows, vocabulary and channels are the same for all.
        self.common = self.settings[sizes.experiments[0]]
        self.lstm = next(each for each in self.settings.values() if each.model == "lstm")
        found = None if data is None else find_data(data, environ={}, cwd=Path.cwd())
        tables = find_embeddings(None, found)
        self.data = self._random_tokens() if found is None else found
        self.tables = tables or self._random_tables()
        self.resolved = ask(
            RunRequest(
                experiments=self.toml,
                ids=tuple(sorted(sizes.experiments)),
                preset="paper",
                data=self.data,
                embeddings=self.tables,
                device=device,
            )
        )
        T, B = self.common.window_tokens, self.common.batch_size
        self.tokens: dict[str, int] = self.resolved.runs[0].corpus.tokens
        self.labels = {each.experiment.id: each.experiment.label for each in self.resolved.runs}
        self.steps_per_epoch = math.ceil(math.ceil((self.tokens["train"] - 1) / T) / B)
        self.data_info: dict[str, Any] = {
            "tokens": "random" if found is None else "given",
            "tables": "given" if tables else "random",
            "train_tokens": self.tokens["train"],
            "steps_per_epoch": self.steps_per_epoch,
        }

    def save(self) -> None:
        """Save it in its folder for the stages, which are processes of their own."""
        (self.folder / "workload.pickle").write_bytes(pickle.dumps(self))

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        """Return the workload saved in ``folder``."""
        workload: Workload = pickle.loads((folder / "workload.pickle").read_bytes())
        return workload

    @property
    def shapes(self) -> tuple[int, ...]:
        """One experiment of each shape, the first in the order of ``sizes.experiments``."""
        found: dict[tuple[str, int], int] = {}
        for experiment, settings in self.settings.items():
            found.setdefault((settings.model, settings.layers), experiment)
        return tuple(found.values())

    def _random_tokens(self) -> Path:
        """Write token streams in which a few ids are common and most are rare, as in text."""
        folder = self.folder / "data"
        folder.mkdir()
        g = np.random.default_rng(2)
        for split, count in self.sizes.tokens.items():
            tokens = 1 + (self.common.vocabulary - 2) * g.random(count) ** 4
            np.savez(folder / f"wiki.{split}.npz", tokens=tokens.astype(np.int32))
        return folder

    def _random_tables(self) -> Path:
        """Write tables with the shapes and standard deviations of GPT-1's."""
        settings, g = self.common, np.random.default_rng(1)
        tokens = g.standard_normal((settings.vocabulary, settings.channels), dtype=np.float32) * 0.14
        tokens[0] = 0
        position = g.standard_normal((settings.window_tokens, settings.channels), dtype=np.float32) * 0.05
        file = self.folder / "embeddings.npz"
        np.savez(file, tokens=tokens, position=position.astype(np.float32))
        return file

    def queue(
        self,
        name: str,
        precision: Precision,
        *,
        epochs: int,
        experiments: Collection[int],
        max_tokens: int | None = None,
        jobs: int = 1,
    ) -> Store:
        """Queue runs of ``experiments`` in a new store, without starting a runner."""
        store = Store(self.folder / name)
        runs = [
            _with_settings(run, precision, epochs, max_tokens)
            for run in self.resolved.runs
            if run.experiment.id in experiments
        ]
        queued = Queued(devices=self.resolved.device_keys, jobs=jobs)
        enqueue(store, runs, queued, fresh=True, refuse_active=False, threads=threads_per_run(jobs))
        return store

    def compare_with_reference(self, precision: Precision, stage: Stage) -> dict[str, Any]:
        """Train all experiments for a few short epochs on the fast paths, and again on the reference implementation,
        and compare the losses of every epoch."""
        sizes, settings = self.sizes, self.common
        windows = sizes.reference_steps * settings.batch_size + max(settings.batch_size // 3, 1)
        jobs = min(max(threads_per_run(1) // 2, 1), 8) if self.device != "cpu" else 2
        stores = {}
        for implementation, variables in (("fast", {}), ("reference", NO_FAST_PATHS)):
            stores[implementation] = self.queue(
                f"reference-{precision}-{implementation}",
                precision,
                experiments=sizes.experiments,
                epochs=sizes.reference_epochs,
                max_tokens=windows * settings.window_tokens + 1,
                jobs=jobs,
            )
            command = python("lmconsole.engine.runner", str(stores[implementation].root))
            _run_until_deadline(command, stores[implementation], stage, variables)
        fast, reference = ({run.info.experiment.id: run for run in store.runs()} for store in stores.values())
        tolerance = REFERENCE_TOLERANCE[precision]
        compared = {str(id_): _compare_losses(fast[id_], reference[id_], tolerance) for id_ in sizes.experiments}
        differences = [each["difference"] for each in compared.values() if each["difference"] is not None]
        return {
            "steps": (sizes.reference_steps + 1) * sizes.reference_epochs,
            "tolerance": tolerance,
            "experiments": compared,
            "largest_difference": max(differences, default=None),
            "identical": sum(each["difference"] == 0 for each in compared.values()),
            "ok": all_ok(each["ok"] for each in compared.values()),
        }

    def time_steps(self, experiment: int) -> dict[str, Any]:
        """Return step times and memory of one experiment, for plain PyTorch and for a run of lmconsole, whose log has
        the time of its epochs."""
        sizes, settings = self.sizes, self.settings[experiment]
        runs = {
            precision: self.queue(
                f"steps-{experiment}-{precision}",
                precision,
                epochs=sizes.step_epochs,
                experiments=[experiment],
                max_tokens=sizes.steps * settings.batch_size * settings.window_tokens + 1,
            ).runs()[0]
            for precision in BASELINES
        }
        flops = step_flops(settings, self.resolved.runs[0].corpus.vocabulary)
        return {"label": self.labels[experiment], "flops": flops, **_time_steps(self.device, sizes.steps, runs)}

    def train_all(self, name: str, precision: Precision, *, epochs: int, jobs: int, stage: Stage) -> dict[str, Any]:
        """Train all experiments by one ``lmconsole run`` command, and time it from start to end.

        At the deadline the runs are stopped. If the command cannot run, for want of a package, the queue and a runner
        are used directly.
        """
        store, command_name = Store(self.folder / name), "lmconsole run"
        options = {
            "preset": "paper",
            "device": self.device,
            "precision": precision,
            "jobs": jobs,
            "epochs": epochs,
            "data": self.data,
            "embeddings": self.tables,
            "experiments": self.toml,
            "runs": store.root,
        }
        ids = map(str, sorted(self.sizes.experiments))
        command = python("lmconsole", "run", *ids, "--headless", "--json", "--no-export")
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        began = time.monotonic()
        code = _run_until_deadline(command, store, stage)
        if not store.runs() and stage.left_s > 0:
            command_name, began = "queue and runner", time.monotonic()
            store = self.queue(name, precision, epochs=epochs, experiments=self.sizes.experiments, jobs=jobs)
            code = _run_until_deadline(python("lmconsole.engine.runner", str(store.root)), store, stage)
        whole_s = time.monotonic() - began
        runs = {str(run.info.experiment.id): _measurements(run) for run in store.runs()}
        finished = sum(each["status"] == Status.FINISHED for each in runs.values())
        found = {
            "precision": precision,
            "jobs": jobs,
            "epochs": epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "trained_steps": sum(len(each["train_s"]) for each in runs.values()) * self.steps_per_epoch,
            "command": command_name,
            "exit_code": code,
            "finished": finished,
            "complete": finished == len(self.sizes.experiments),
            "whole_s": whole_s,
            "runs": runs,
        }
        if not any(each["train_s"] for each in runs.values()):
            stage.save_partial(found)
            raise RuntimeError(f"no run trained an epoch, exit code {code}: {_last_message(stage.log_path)}")
        return found


def _last_message(log: Path) -> str:
    """Return the last line of a command's output that is not JSON, which usually has the reason of a failure."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    messages = (escape_control_characters(line) for line in reversed(lines) if not line.startswith("{"))
    return next(messages, "no output")


def _with_settings(run: ResolvedRun, precision: Precision, epochs: int, max_tokens: int | None) -> ResolvedRun:
    """Return the same experiment with these settings, on the first ``max_tokens`` tokens."""
    replace = msgspec.structs.replace
    corpus = run.corpus
    if max_tokens is not None:
        tokens = {
            split: min(count, max_tokens if split == "train" else max_tokens // 10)
            for split, count in corpus.tokens.items()
        }
        corpus = replace(corpus, max_tokens=max_tokens, tokens=tokens)
    settings = replace(run.settings, precision=precision, epochs=epochs)
    return replace(run, corpus=corpus, settings=settings, seed=SEED)


def _run_until_deadline(command: list[str], store: Store, stage: Stage, variables: dict[str, str] | None = None) -> int:
    """Run ``command`` until it ends and return its exit code. At the deadline its runs are stopped, then killed."""
    process = subprocess.Popen(command, cwd=stage.folder, env=os.environ | (variables or {}), stdin=subprocess.DEVNULL)
    finished = 0
    while stage.left_s > 0:
        try:
            return process.wait(min(stage.left_s, PROGRESS_S))
        except subprocess.TimeoutExpired:
            runs = store.runs() if store.root.is_dir() else []
            if finished < (finished := sum(run.status is Status.FINISHED for run in runs)):
                elapsed_s = time.monotonic() - stage.started
                stage.progress(f"{finished} of {len(runs)} runs finished after {elapsed_s:.0f} s")
    for run in store.runs():
        run.request_stop()
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for run in store.runs():
            if (owner := run.worker()) is not None and owner.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(owner.pid, signal.SIGKILL)
        process.kill()
        return process.wait()


def _compare_losses(fast: Run, reference: Run, tolerance: float) -> dict[str, Any]:
    """Compare the training and validation losses of every epoch. ``ok`` is None if a run was cut off."""
    losses = {"fast": _losses(fast), "reference": _losses(reference)}
    known = [(a, b) for a, b in zip(losses["fast"], losses["reference"], strict=False) if a is not None and b]
    difference = max((abs(a / b - 1) for a, b in known), default=None)
    ended = {fast.status, reference.status} <= {Status.FINISHED, Status.FAILED}
    complete = len(known) == 2 * fast.info.settings.epochs == 2 * reference.info.settings.epochs
    return {
        "label": fast.info.experiment.label,
        "difference": difference,
        "ok": (complete and difference is not None and difference <= tolerance) if ended else None,
        **losses,
        "statuses": [fast.status, reference.status],
        "messages": [_message(fast), _message(reference)],
        "logs": [_log(fast), _log(reference)],
    }


def all_ok(results: Iterable[bool | None]) -> bool | None:
    """Return False if one result is False, otherwise None if one is None, otherwise True."""
    found = set(results)
    return False if False in found else None if None in found else True


def _losses(run: Run) -> list[float | None]:
    return [loss for epoch in run.state.epochs for loss in (epoch.train_loss_nats, epoch.valid_loss_nats)]


def _message(run: Run) -> str | None:
    """Return why a run failed, or else the last line of its worker's log, which tells of a fast path that is not
    used; None if the log is empty."""
    if run.state.failed is not None:
        return run.state.failed.message
    return last_line(run.paths.worker_log) if _log(run) else None


def _log(run: Run) -> str:
    """Return the end of the worker's log, tracebacks included."""
    with contextlib.suppress(OSError):
        return run.paths.worker_log.read_text(encoding="utf-8", errors="replace").strip()[-LOG_CHARACTERS:]
    return ""


def _measurements(run: Run) -> dict[str, Any]:
    """Return the times, memory and perplexities in a run's log."""
    state = run.state
    finished, epochs, samples = state.finished, state.epochs, state.telemetry
    reserved_mib = (sample.torch_reserved_mib for sample in samples)
    process_mib = (sample.process_used_mib for sample in samples)
    return {
        "label": run.info.experiment.label,
        "status": run.status,
        "message": _message(run),
        "log": _log(run),
        "setup_s": finished and finished.setup_s,
        "wall_s": finished and finished.wall_s,
        "test_ppl_final": finished and finished.test_ppl_final,
        "torch_peak_mib": finished and finished.torch_peak_mib,
        "torch_reserved_mib": _max_known(reserved_mib),
        "process_used_mib": _max_known(process_mib),
        "energy_j": finished and finished.energy_j,
        "train_s": [epoch.train_s for epoch in epochs],
        "valid_s": [epoch.valid_s for epoch in epochs],
        "train_ppl": [epoch.train_ppl for epoch in epochs],
        "valid_ppl": [epoch.valid_ppl for epoch in epochs],
    }


def _max_known(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


# ---- steps of one experiment


def _time_steps(device: str, steps: int, runs: dict[Precision, Run]) -> dict[str, Any]:
    """Time the steps of plain PyTorch, then those of the queued run, in each precision; medians after a warm-up."""
    info = runs["fp32"].info
    corpus, tables = load_verified_corpus(info), load_verified_tables(info)
    assert tables is not None
    tokens = torch.from_numpy(corpus.splits["train"].astype(np.int64))
    torch.manual_seed(0)
    weights = build_model(info.settings, vocabulary=corpus.vocabulary, tables=tables).state_dict()

    seconds: dict[str, list[float]] = {}
    first_epochs: dict[str, float] = {}
    memory: dict[str, float | None] = {}
    for precision, (outside_autocast, autocast) in BASELINES.items():
        before_mib = _reserved_mib_before(device)
        apply_precision(outside_autocast)
        baseline = baseline_steps(info.settings, tables, tokens, weights, autocast, device)
        seconds[f"baseline_{precision}"] = _step_seconds(baseline, steps)
        memory[f"baseline_{precision}_mib"] = _peak_reserved_mib(device, before_mib)
        del baseline

        before_mib = _reserved_mib_before(device)
        state = _train_here(runs[precision].paths, device)
        first_epochs[precision], *seconds[f"ours_{precision}"] = [
            epoch.train_s / steps for epoch in state.epochs if epoch.train_s is not None
        ]
        memory[f"ours_{precision}_mib"] = _peak_reserved_mib(device, before_mib)
    medians = {f"{name}_s": statistics.median(each) for name, each in seconds.items()}
    return {**medians, **memory, "seconds": seconds, "first_epochs_s": first_epochs}


def _step_seconds(losses: Iterator[float], steps: int) -> list[float]:
    """Return the seconds of each step after the warm-up. A step ends by reading its loss, which syncs the device."""
    for _ in range(WARM_UP_STEPS):
        next(losses)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        next(losses)
        seconds.append(time.perf_counter() - began)
    return seconds


def _train_here(paths: RunPaths, device: str) -> RunState:
    """Train a queued run in this process, and return its state."""
    code = worker.main([str(paths.folder), "--device", device])
    state = RunState()
    state.apply(EventReader(paths.events).read_new())
    if code or state.finished is None:
        raise RuntimeError(f"{paths.run}: {state.failed.message if state.failed else f'exit code {code}'}")
    return state


def _reserved_mib_before(device: str) -> float | None:
    """Return the MiB that PyTorch reserves now, and reset the peak; None on a CPU, where PyTorch does not count.

    Memory in tensors would leave out the private pool of a captured graph.
    """
    gc.collect()
    if device == "cpu":
        return None
    empty_cache(device)
    reset_peak_memory(device)
    return torch.cuda.memory_reserved(device) / 2**20


def _peak_reserved_mib(device: str, before_mib: float | None) -> float | None:
    """Return the peak of reserved memory above ``before_mib``."""
    return None if before_mib is None else torch.cuda.max_memory_reserved(device) / 2**20 - before_mib
