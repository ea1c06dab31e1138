"""`lmconsole status`: the runs of a store, as a table or as JSON."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lmconsole.commands.output import console, plain_table, print_json, print_message, warn_about
from lmconsole.commands.results import describe_status, valid_perplexity
from lmconsole.errors import escape_control_characters
from lmconsole.formatting import DAMAGE_MARK, seconds
from lmconsole.runs.permissions import NOT_STARTED, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

MAX_LISTED = 12
"""Runs that a message lists by name."""


def show_status(root: Path, *, json: bool) -> None:
    """Print the runs of the store at ``root``, and why runs failed."""
    store = Store(root)
    runs = store.runs()
    if json:
        print_json([run_as_dict(run) for run in runs])
    elif not runs:
        print_message(f"{store.root}: no runs yet. `lmconsole run ID` trains an experiment.")
    else:
        console().print(status_table(runs))
        _print_unattended(store, runs)
        for run in runs:
            if run.state.failed:
                print_message(f"{run.run}: {run.state.failed.message}\n  {run.state.failed.hint}")
            if run.state.damage:
                print_message(f"{run.run}: warning: damaged ({DAMAGE_MARK}): {'; '.join(run.state.damage)}")
            if run.notes_problem:
                print_message(f"warning: {run.notes_problem}")
    warn_about(store)


def _print_unattended(store: Store, runs: Iterable[Run]) -> None:
    """Print which queued runs nobody will start."""
    queued = [run for run in runs if run.status is Status.QUEUED and not run.problem and run.info.origin == "trained"]
    waiting = {run.run for run in pending(store, queued)}
    names = [run.run for run in queued if run.run not in waiting]
    if names:
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        print_message(f"{', '.join(names[:MAX_LISTED])}{more}: {NOT_STARTED}")


def status_table(runs: Iterable[Run]) -> Table:
    """Return a table with a row for each run, by its id."""
    table = plain_table(Run="left", Status="left", Valid_PPL="right", Time="right")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = False
    runs = list(runs)
    noted = any(run.notes.text for run in runs)
    if noted:
        table.add_column("Tags and note", overflow="fold")
    for run in runs:
        name = Text(escape_control_characters(run.run))
        notes = [Text(escape_control_characters(run.notes.text))] if noted else []
        table.add_row(name, describe_status(run), valid_perplexity(run), seconds(run.state.elapsed_train_s), *notes)
    return table


def run_as_dict(run: Run) -> dict[str, Any]:
    """Return a run for JSON output. Numbers that are not finite become text, since JSON has none."""
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
        "note": run.notes.note or None,
        "tags": list(run.notes.tags),
        "notes_problem": run.notes_problem,
        "damaged_lines": state.damaged,
        "damage": list(state.damage),
        "problem": run.problem,
        "folder": str(run.paths.folder),
    }


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
