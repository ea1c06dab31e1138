"""`lmconsole list`: the experiments of a plan, with the status of their latest runs."""

from pathlib import Path

import msgspec
from rich.table import Table
from rich.text import Text

from lmconsole.commands.output import console, plain_table, print_json, warn_about
from lmconsole.commands.results import DAMAGE_NOTE, describe_status, valid_perplexity
from lmconsole.commands.status import RunSummary, summarize
from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Model, Optimizer, Settings
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import Plan
from lmconsole.runs.store import Run, Store, latest_by_experiment


def list_experiments(experiments: Path | None, root: Path, *, json: bool) -> None:
    """Print the plan's experiments with their latest runs in the store at ``root``."""
    plan = load_plan(experiments)
    store = Store(root, cached=True)
    latest = latest_by_experiment(store.runs())
    if json:
        print_json(listed_experiments(plan, latest))
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
            describe_status(run, on_slurm=True) if run else UNKNOWN,
            escape_control_characters(run.info.preset) if run else UNKNOWN,
            valid_perplexity(run) if run else UNKNOWN,
        )
    return table


class ListedExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment, as `list --json` prints it."""

    id: int
    """Number that names the experiment on the command line."""
    label: str
    """Name for display."""
    model: Model
    """Architecture: ``lstm`` or ``gpt1``."""
    layers: int
    """Stacked LSTM layers, or transformer blocks."""
    optimizer: Optimizer
    """``adam``, ``adamw``, ``sgd``, or ``momentum`` (SGD with momentum)."""
    presets: dict[str, Settings]
    """Settings under each preset, by its name."""
    latest_run: RunSummary | None
    """The run of this experiment that was queued last; null if there is none."""


def listed_experiments(plan: Plan, latest: dict[int, Run]) -> list[ListedExperiment]:
    """Return every experiment with its settings under each preset and its latest run, for JSON output."""
    return [
        ListedExperiment(
            id=experiment.id,
            label=experiment.label,
            model=experiment.model,
            layers=experiment.layers,
            optimizer=experiment.optimizer,
            presets={name: plan.resolve(experiment, name).settings for name in sorted(plan.presets)},
            latest_run=summarize(latest[experiment.id]) if experiment.id in latest else None,
        )
        for experiment in plan.experiments
    ]
