"""The tables of `lmconsole list` and `status`, and the one that ends a headless run."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconsole.formatting import UNKNOWN, perplexity, seconds
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.plan.presets import Plan
from lmconsole.runs.events import number
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
    if status is Status.RUNNING:
        words = f"epoch {min(state.position[0], run.info.settings.epochs)}/{run.info.settings.epochs}"
        if run.stop_requested:
            words = f"stopping, {words}"
    elif status is Status.FINISHED and state.finished and state.finished.diverged:
        words = "diverged"
    elif status in (Status.STOPPED, Status.LOST):
        words = f"{status.value} in epoch {min(state.position[0], run.info.settings.epochs)}"
    return Text(words, style=STYLES[status])


def results_table(runs: Iterable[Run], *, title: str | None = None) -> Table:
    """One row a run: its settings, how it stands, and perplexities at the epoch that validated best."""
    runs = list(runs)
    several = len({run.info.seed for run in runs}) > 1
    table = _table(title)
    table.add_column("ID", justify="right")
    for name in ("Model", "Layers", "Optimizer"):
        table.add_column(name, justify="right" if name == "Layers" else "left", no_wrap=True)
    if several:
        table.add_column("Seed", justify="right")
    table.add_column("Status", no_wrap=True)
    for name in ("Train PPL", "Valid PPL", "Epoch", "Test PPL", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(*_identity(run.info.experiment), *([str(run.info.seed)] if several else []), *_results(run))
    return table


def _table(title: str | None) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )


def _identity(experiment: Experiment) -> list[str]:
    return [
        str(experiment.id),
        experiment.name or MODEL_NAMES[experiment.model],
        str(experiment.layers),
        OPTIMIZER_NAMES[experiment.optimizer],
    ]


def _results(run: Run) -> list[str | Text]:
    state = run.state
    best = state.best_epoch or state.last_epoch
    return [
        describe_status(run),
        perplexity(number(best, "train_ppl") if best else None),
        Text(perplexity(number(best, "valid_ppl") if best else None), style="bold"),
        str(best.epoch) if best else UNKNOWN,
        perplexity(number(state.finished, "test_ppl_best") if state.finished else None),
        seconds(state.elapsed_train_s),
    ]


def status_table(runs: Iterable[Run]) -> Table:
    """One row a run with its id, for `lmconsole status`."""
    table = _table(None)
    for name, justify in (("Run", "left"), ("Status", "left"), ("Valid PPL", "right"), ("Time", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=name != "Run")
    for run in runs:
        status, _, valid, _, _, time = _results(run)
        table.add_row(run.run, status, valid, time)
    return table


def experiments_table(plan: Plan, latest: dict[int, Run]) -> Table:
    """One row an experiment, with the state of its latest run."""
    table = _table(None)
    table.add_column("ID", justify="right")
    for name in ("Model", "Layers", "Optimizer"):
        table.add_column(name, justify="right" if name == "Layers" else "left", no_wrap=True)
    table.add_column("Settings of its own")
    table.add_column("Latest run", no_wrap=True)
    table.add_column("Preset", no_wrap=True)
    table.add_column("Valid PPL", justify="right", no_wrap=True)
    for experiment in plan.experiments:
        run = latest.get(experiment.id)
        own = ", ".join(f"{key} {value}" for key, value in experiment.overrides.items())
        status, valid = (_results(run)[0], _results(run)[2]) if run else (Text(UNKNOWN), UNKNOWN)
        table.add_row(*_identity(experiment), own or UNKNOWN, status, run.info.preset if run else UNKNOWN, valid)
    if not any(experiment.overrides for experiment in plan.experiments):
        table.columns.pop(4)
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
        "seed": info.seed,
        "status": run.status.value,
        "attempt": state.attempt,
        "epoch": epoch,
        "step": step,
        "epochs": info.settings.epochs,
        "train_ppl": _json_number(state.train_ppl),
        "best_valid_ppl": _json_number(number(best, "valid_ppl") if best else None),
        "best_epoch": best.epoch if best else None,
        "test_ppl_best": _json_number(number(finished, "test_ppl_best") if finished else None),
        "test_ppl_final": _json_number(number(finished, "test_ppl_final") if finished else None),
        "diverged": finished.diverged if finished else None,
        "elapsed_train_s": state.elapsed_train_s,
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
