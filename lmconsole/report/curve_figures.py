"""Figures 1 to 8: perplexity over epochs and over wall-clock time, one panel for each experiment."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.captions import (
    describe_group_briefly,
    join_sentences,
    not_shown,
    ppl_denominator,
    timing_caveat,
)
from lmconsole.report.figure_content import LARGEST_PPL, Curve, FigureSpec, Panel, PanelGrid, time_unit
from lmconsole.report.selection import Group
from lmconsole.runs.events import Epoch
from lmconsole.runs.store import Run

MAX_PANELS = 16
"""Largest number of panels in a figure."""

OPTIMIZER_ORDER = ("adam", "adamw", "sgd", "momentum")
"""Order of the panels in figures 1, 2, 5 and 6."""

Metric = Callable[[Epoch], float | None]

METRICS: Mapping[str, Metric] = {"Train": lambda epoch: epoch.train_ppl, "Validation": lambda epoch: epoch.valid_ppl}
"""Metrics of the curves of a panel, by label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _PanelRuns:
    """Runs of a panel; none if the experiment has not been run."""

    title: str
    runs: Sequence[Run]


def _panel_runs(group: Group, model: str, *, deep: bool) -> list[_PanelRuns]:
    """Return the runs of every panel for experiments with one layer or, if ``deep``, with more.

    Missing experiments of the published twelve leave an empty panel; all others follow.
    """
    remaining = {
        id_: runs
        for id_, runs in group.by_experiment.items()
        if runs[0].info.experiment.model == model and (runs[0].info.experiment.layers > 1) == deep
    }
    published = [(2, "adamw"), (4, "adamw")] if deep else [(1, optimizer) for optimizer in OPTIMIZER_ORDER]
    panels: list[_PanelRuns] = []
    for layers, optimizer in published:
        fitting = [id_ for id_, runs in remaining.items() if _depth_and_optimizer(runs) == (layers, optimizer)]
        panels += [_titled(remaining.pop(id_)) for id_ in fitting] or [
            _PanelRuns(title=_setting(layers, optimizer), runs=[])
        ]
    return panels + [_titled(runs) for runs in remaining.values()]


def _depth_and_optimizer(runs: Sequence[Run]) -> tuple[int, str]:
    return runs[0].info.experiment.layers, runs[0].info.experiment.optimizer


def _setting(layers: int, optimizer: str) -> str:
    return f"{layers} layers, {OPTIMIZER_NAMES[optimizer]}" if layers > 1 else OPTIMIZER_NAMES[optimizer]


def _titled(runs: Sequence[Run]) -> _PanelRuns:
    experiment = runs[0].info.experiment
    identity = f"{experiment.id}: {experiment.name}" if experiment.name else str(experiment.id)
    return _PanelRuns(title=f"{_setting(*_depth_and_optimizer(runs))} ({identity})", runs=runs)


def curves_figure(group: Group, model: str, figure: int, *, over_time: bool, deep: bool) -> FigureSpec:
    """Return the figure with this number: experiments of a model with one layer or, if ``deep``, with more."""
    found = _panel_runs(group, model, deep=deep)
    shown = found[:MAX_PANELS]
    depth = "more than one layer" if deep else "1 layer"
    title = f"{MODEL_NAMES[model]}, {depth}: perplexity over {'wall-clock time' if over_time else 'epochs'}"
    panels_by = "depth" if deep else "optimizer"
    sentences = [
        f"{title}.",
        f"Train and validation perplexity per {ppl_denominator(group)}, logarithmic axis, one panel per {panels_by}.",
        "Numbers in parentheses are experiments.",
    ]
    if over_time:
        sentences.append("Time is cumulative training time, without setup and evaluation.")
        sentences.append(timing_caveat(group))
    elif not group.imported:
        sentences.append("Train perplexity is computed from the training losses of each epoch.")
    if any(len(panel.runs) > 1 for panel in shown):
        sentences.append("Lines are means over seeds; bands span the lowest to the highest seed.")
    sentences += _missing_and_incomplete(shown)
    sentences.append(not_shown(len(found) - MAX_PANELS))
    sentences.append(describe_group_briefly(group))
    longest_s = max((run.state.elapsed_train_s or 0.0 for panel in shown for run in panel.runs), default=0.0)
    unit, unit_s = time_unit(longest_s)
    panels = [_panel(panel, unit_s if over_time else None) for panel in shown]
    return FigureSpec(
        number=figure,
        title=title,
        caption=join_sentences(sentences),
        full_width=not deep,
        content=PanelGrid(
            panels=panels,
            columns=1 if deep and len(panels) <= 2 else 2 if len(panels) <= 4 else 3,
            x_label=f"Training time ({unit})" if over_time else "Epoch",
            y_label="Perplexity" if group.reference.denominator == "targets" else "Perplexity (padded)",
            integer_x=not over_time,
        ),
    )


def _missing_and_incomplete(panels: Sequence[_PanelRuns]) -> list[str]:
    sentences = []
    runs = [run for panel in panels for run in panel.runs]
    missing = [panel.title for panel in panels if not panel.runs]
    if missing:
        separator = "; " if any("," in title for title in missing) else ", "
        sentences.append(f"No run yet: {separator.join(missing)}.")
    unfinished = [run for run in runs if run.state.finished is None]
    if unfinished:
        progress = ", ".join(f"{run.info.experiment.id} ({_progress(run)})" for run in unfinished)
        sentences.append(f"Not finished: {progress}.")
    diverged = [run.info.experiment.id for run in runs if run.state.finished and run.state.finished.diverged]
    if diverged:
        sentences.append(f"Diverged: {ranges(sorted(set(diverged)))}.")
    damaged = [run.info.experiment.id for run in runs if run.state.damage]
    if damaged:
        sentences.append(f"Damaged event logs: {ranges(sorted(set(damaged)))}.")
    if any(_off_scale(metric(epoch)) for run in runs for epoch in run.state.epochs for metric in METRICS.values()):
        sentences.append("A cross at the upper edge marks a perplexity that is not finite or too large to draw.")
    return sentences


def _progress(run: Run) -> str:
    return f"{run.status.value}, {run.state.epochs_done} of {formatting.counted(run.info.settings.epochs, 'epoch')}"


def _panel(panel: _PanelRuns, unit_s: float | None) -> Panel:
    runs = panel.runs
    if not runs:
        return Panel(title=panel.title, note="no run yet")
    if unit_s is not None and all(run.state.elapsed_train_s is None for run in runs):
        return Panel(title=panel.title, note="times unknown")
    curves = {label: _curve(runs, metric, unit_s) for label, metric in METRICS.items()}
    notes = sorted({run.status.value for run in runs if run.state.finished is None})
    if any(run.state.finished and run.state.finished.diverged for run in runs):
        notes.append("diverged")
    if any(run.state.damage for run in runs):
        notes.append("damaged")
    return Panel(title=panel.title, curves=curves, note=", ".join(notes))


def _curve(runs: Sequence[Run], metric: Metric, unit_s: float | None) -> Curve:
    """Return mean and range over the seeds that have completed an epoch, by epoch or by mean time in ``unit_s``."""
    xs, means, lows, highs, off_scale = [], [], [], [], []
    by_epoch: dict[int, list[Epoch]] = {}
    for run in runs:
        for event in run.state.epochs:
            by_epoch.setdefault(event.epoch, []).append(event)
    for epoch, events in sorted(by_epoch.items()):
        times = [event.elapsed_train_s for event in events if event.elapsed_train_s is not None]
        if unit_s is not None and not times:
            continue
        x = float(epoch) if unit_s is None else sum(times) / len(times) / unit_s
        values = [value for event in events if (value := metric(event)) is not None]
        on_scale = [value for value in values if not _off_scale(value)]
        if len(on_scale) < len(values):
            off_scale.append(x)
        if on_scale:
            xs.append(x)
            means.append(sum(on_scale) / len(on_scale))
            lows.append(min(on_scale))
            highs.append(max(on_scale))
    return Curve(x=xs, y=means, low=lows, high=highs, off_scale=off_scale)


def _off_scale(value: float | None) -> bool:
    return value is not None and not (math.isfinite(value) and 0.0 < value <= LARGEST_PPL)
