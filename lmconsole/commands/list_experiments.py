"""`lmconsole list`: the experiments of a plan, with the status of their latest runs."""

from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from lmconsole.commands.output import console, plain_table, print_json, warn_about
from lmconsole.commands.results import DAMAGE_NOTE, describe_status, valid_perplexity
from lmconsole.commands.status import run_as_dict
from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import Plan
from lmconsole.runs.store import Run, Store, latest_by_experiment


def list_experiments(experiments: Path | None, root: Path, *, json: bool) -> None:
    """Print the plan's experiments with their latest runs in the store at ``root``."""
    plan = load_plan(experiments)
    store = Store(root)
    latest = latest_by_experiment(store.runs())
    if json:
        print_json(experiments_as_dicts(plan, latest))
    else:
        out = console()
        out.print(experiments_table(plan, latest))
        if any(latest[each.id].state.damage for each in plan.experiments if each.id in latest):
            out.print(Text(DAMAGE_NOTE, style="dim"))
    warn_about(store)


def experiments_table(plan: Plan, latest: dict[int, Run]) -> Table:
    """Return a table with a row for each experiment, with the status of its latest run."""
    named = any(experiment.overrides or experiment.name for experiment in plan.experiments)
    table = plain_table(ID="right", Model="left", Layers="right", Optimizer="left")
    if named:
        table.add_column("Name and own settings", overflow="fold")
    for name, side in (("Latest run", "left"), ("Preset", "left"), ("Valid PPL", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for experiment in plan.experiments:
        run = latest.get(experiment.id)
        own = [experiment.name] if experiment.name else []
        own += [f"{key} {value}" for key, value in experiment.overrides.items()]
        table.add_row(
            str(experiment.id),
            MODEL_NAMES[experiment.model],
            str(experiment.layers),
            OPTIMIZER_NAMES[experiment.optimizer],
            *([Text(escape_control_characters(", ".join(own)) or UNKNOWN)] if named else []),
            describe_status(run) if run else UNKNOWN,
            escape_control_characters(run.info.preset) if run else UNKNOWN,
            valid_perplexity(run) if run else UNKNOWN,
        )
    return table


def experiments_as_dicts(plan: Plan, latest: dict[int, Run]) -> list[dict[str, Any]]:
    """Return every experiment with its settings under each preset and its latest run, for JSON output."""
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
