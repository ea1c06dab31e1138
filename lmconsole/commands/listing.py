"""The tables of `lmconsole list` and `status`, and the one that ends a headless run."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, perplexity, seconds
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.presets import Plan
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

STYLES = {
    Status.QUEUED: "dim",
    Status.RUNNING: "cyan",
    Status.FINISHED: "green",
    Status.STOPPED: "yellow",
    Status.FAILED: "bold red",
    Status.LOST: "bold red",
}

PIPE_WIDTH = 140
"""Columns of a table that goes into a pipe or a file, where nobody says how wide it may be."""


def console(*, stderr: bool = False) -> Console:
    """Where to print: NO_COLOR, dumb terminals and pipes are honoured, and nothing in a text is taken for markup."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def describe_status(run: Run) -> Text:
    """Status in a word or two, with the epoch for a run under way."""
    status, state = run.status, run.state
    words = status.value
    if run.problem:
        return Text("unreadable", style=STYLES[Status.FAILED])
    if run.info.origin == "imported":
        return Text(_describe_imported(run), style="dim")
    if status is Status.RUNNING:
        words = f"epoch {min(state.position[0], run.info.settings.epochs)}/{run.info.settings.epochs}"
        if run.stop_requested:
            words = f"stopping, {words}"
    elif status is Status.FINISHED and state.finished and state.finished.diverged:
        words = "diverged"
    elif status in (Status.STOPPED, Status.LOST):
        words = f"{status.value} in epoch {min(state.position[0], run.info.settings.epochs)}"
    return Text(words, style=STYLES[status])


def _describe_imported(run: Run) -> str:
    if run.status is Status.FINISHED:
        return "imported, diverged" if run.state.finished and run.state.finished.diverged else "imported"
    return f"imported, {len(run.state.epochs)}/{run.info.settings.epochs}"


def results_table(runs: Iterable[Run]) -> Table:
    """One row a run: how it stands, and its perplexities at the epoch that validated best. Fits 80 columns."""
    runs = list(runs)
    several = len({run.info.seed for run in runs}) > 1
    table = _table(ID="right", Experiment="left")
    for name in ("Seed", "Status") if several else ("Status",):
        table.add_column(name, justify="right" if name == "Seed" else "left", no_wrap=True)
    for name in ("Train", "Valid", "Epoch", "Test", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        experiment = run.info.experiment
        seed = [str(run.info.seed)] if several else []
        table.add_row(str(experiment.id), Text(escape_control_characters(experiment.label)), *seed, *_results(run))
    return table


RESULTS_NOTE = (
    "Train, Valid, Test: perplexity per target token, at the epoch that validated best.\n"
    "Time: training alone, without set-up and evaluation."
)


def _table(**columns: JustifyMethod) -> Table:
    """A table with these columns, by name and side."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for name, side in columns.items():
        table.add_column(name.replace("_", " "), justify=side, no_wrap=True)
    return table


def _results(run: Run) -> list[str | Text]:
    state = run.state
    best = state.best_epoch or state.last_epoch
    return [
        describe_status(run),
        perplexity(best.train_ppl if best else None),
        Text(perplexity(best.valid_ppl if best else None), style="bold"),
        str(best.epoch) if best else UNKNOWN,
        perplexity(state.finished.test_ppl_best if state.finished else None),
        seconds(state.elapsed_train_s),
    ]


def status_table(runs: Iterable[Run]) -> Table:
    """One row a run with its id, for `lmconsole status`."""
    table = _table(Run="left", Status="left", Valid_PPL="right", Time="right")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = False
    for run in runs:
        status, _, valid, _, _, time = _results(run)
        table.add_row(Text(escape_control_characters(run.run)), status, valid, time)
    return table


def experiments_table(plan: Plan, latest: dict[int, Run]) -> Table:
    """One row an experiment, with the state of its latest run."""
    own = any(experiment.overrides or experiment.name for experiment in plan.experiments)
    table = _table(ID="right", Model="left", Layers="right", Optimizer="left")
    if own:
        table.add_column("Name and own settings", overflow="fold")
    for name, side in (("Latest run", "left"), ("Preset", "left"), ("Valid PPL", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for experiment in plan.experiments:
        run = latest.get(experiment.id)
        status, valid = (_results(run)[0], _results(run)[2]) if run else (Text(UNKNOWN), UNKNOWN)
        words = [experiment.name] if experiment.name else []
        words += [f"{key} {value}" for key, value in experiment.overrides.items()]
        table.add_row(
            str(experiment.id),
            MODEL_NAMES[experiment.model],
            str(experiment.layers),
            OPTIMIZER_NAMES[experiment.optimizer],
            *([Text(escape_control_characters(", ".join(words)) or UNKNOWN)] if own else []),
            status,
            run.info.preset if run else UNKNOWN,
            valid,
        )
    return table


def run_as_dict(run: Run) -> dict[str, Any]:
    """A run for JSON output. A number that is not finite is written as text, as JSON has no other way."""
    state, info = run.state, run.info
    best, finished, (epoch, step) = state.best_epoch, state.finished, state.position
    return {
        "run": run.run,
        "experiment": info.experiment.id,
        "label": info.experiment.label,
        "model": info.experiment.model,
        "layers": info.experiment.layers,
        "optimizer": info.experiment.optimizer,
        "preset": info.preset,
        "origin": info.origin,
        "denominator": info.denominator,
        "seed": info.seed,
        "status": run.status.value,
        "attempt": state.attempt,
        "epoch": epoch,
        "step": step,
        "epochs": info.settings.epochs,
        "train_ppl": _json_number(state.train_ppl),
        "best_valid_ppl": _json_number(best.valid_ppl if best else None),
        "best_epoch": best.epoch if best else None,
        "test_ppl_best": _json_number(finished.test_ppl_best if finished else None),
        "test_ppl_final": _json_number(finished.test_ppl_final if finished else None),
        "diverged": finished.diverged if finished else None,
        "elapsed_train_s": state.elapsed_train_s,
        "energy_j": finished.energy_j if finished else None,
        "device": state.started.device if state.started else None,
        "precision": info.settings.precision,
        "error": {k: getattr(state.failed, k) for k in ("error", "message", "hint")} if state.failed else None,
        "damaged_lines": state.damaged,
        "folder": str(run.paths.folder),
    }


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def experiments_as_dicts(plan: Plan, latest: dict[int, Run]) -> Sequence[dict[str, Any]]:
    """Every experiment with its settings under each preset and its latest run, for JSON output."""
    return [
        {
            "id": experiment.id,
            "label": experiment.label,
            "model": experiment.model,
            "layers": experiment.layers,
            "optimizer": experiment.optimizer,
            "presets": {
                name: msgspec.to_builtins(plan.resolve(experiment, name).settings) for name in sorted(plan.presets)
            },
            "latest_run": run_as_dict(latest[experiment.id]) if experiment.id in latest else None,
        }
        for experiment in plan.experiments
    ]
