"""Figures of perplexity over epochs and over wall-clock time: the overview, and figures 1 to 8 with one panel for each
experiment.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.report.captions import join_sentences, name_ids, not_shown
from lmconsole.report.figure_content import (
    LARGEST_PPL,
    OVERVIEW,
    Curve,
    FigureSpec,
    Panel,
    PanelGrid,
    SeedCurve,
    time_unit,
)
from lmconsole.report.panel_limits import are_cut, have_own_limits, with_limits
from lmconsole.report.results import best_experiments, marks
from lmconsole.report.selection import Group
from lmconsole.runs.state import RunState
from lmconsole.runs.store import Run

MAX_PANELS = 16
"""Largest number of panels in a figure."""

OPTIMIZER_ORDER = ("adam", "adamw", "sgd", "momentum")
"""Order of the panels in figures 1, 2, 5 and 6."""

VALIDATION = "Validation"


class _Point(NamedTuple):
    """A point of the curve of one run."""

    passes: float
    """Passes over the train split."""
    elapsed_train_s: float | None
    ppl: float | None


Points = Callable[[RunState], Sequence[_Point]]

METRICS: Mapping[str, Points] = {
    "Train": lambda state: [_Point(each.passes, each.elapsed_train_s, each.train_ppl) for each in state.epochs],
    VALIDATION: lambda state: [_Point(each.passes, each.elapsed_train_s, each.valid_ppl) for each in state.validations],
}
"""Points of the curves of a panel, by label."""


def _experiments(group: Group, model: str, *, deep: bool) -> list[list[Run]]:
    """Return the runs of the experiments with one layer or, if ``deep``, with more, in the order of their panels."""
    found = [
        runs
        for runs in group.by_experiment.values()
        if runs[0].info.experiment.model == model and (runs[0].info.experiment.layers > 1) == deep
    ]
    return sorted(found, key=_panel_order)


def _panel_order(runs: Sequence[Run]) -> tuple[int, int, int]:
    experiment = runs[0].info.experiment
    return experiment.layers, OPTIMIZER_ORDER.index(experiment.optimizer), experiment.id


def _panel_title(runs: Sequence[Run]) -> str:
    experiment = runs[0].info.experiment
    layers = f"{experiment.layers} layers, " if experiment.layers > 1 else ""
    identity = f"{experiment.id}: {experiment.name}" if experiment.name else str(experiment.id)
    return f"{layers}{OPTIMIZER_NAMES[experiment.optimizer]} ({identity})"


def overview_figure(group: Group) -> FigureSpec:
    """Return the figure of the first page: validation curves of the best experiment of each architecture."""
    best = best_experiments(group)
    unit, unit_s = _time_unit([run for runs in best.values() for run in runs])
    axes: list[tuple[str, str, float | None]] = [("Over epochs", "Epoch", None)]
    if all(run.state.elapsed_train_s is not None for runs in best.values() for run in runs):
        axes.append(("Over training time", f"Training time ({unit})", unit_s))
    panels = []
    for panel_title, x_label, divisor in axes:
        curves = {
            f"{runs[0].info.experiment.label} ({id_}){marks(runs)}": _curve(runs, METRICS[VALIDATION], divisor)
            for id_, runs in best.items()
        }
        panels.append(Panel(title=panel_title, x_label=x_label, integer_x=divisor is None, curves=curves))
    panels = with_limits(panels, [label for panel in panels for label in panel.curves])
    title = "Validation perplexity of the best experiment of each architecture"
    if not any(curve.seeds for panel in panels for curve in panel.curves.values()):
        return FigureSpec(number=OVERVIEW, title=title, omitted="no run has a perplexity that can be drawn")
    return FigureSpec(
        number=OVERVIEW,
        title=title,
        caption=join_sentences([f"{title}.", _describe_axes(panels)]),
        full_width=len(panels) > 1,
        content=_grid(group, panels),
    )


def curves_figure(group: Group, model: str, figure: int, *, over_time: bool, deep: bool) -> FigureSpec:
    """Return the figure with this number: experiments of a model with one layer or, if ``deep``, with more."""
    found = _experiments(group, model, deep=deep)
    depth = "more than one layer" if deep else "1 layer"
    title = f"{MODEL_NAMES[model]}, {depth}: perplexity over {'wall-clock time' if over_time else 'epochs'}"
    runs = [run for each in found for run in each]
    unit, unit_s = _time_unit(runs)
    x_label = f"Training time ({unit})" if over_time else "Epoch"
    panels = [_panel(each, x_label, unit_s if over_time else None) for each in found[:MAX_PANELS]]
    if not any(panel.curves for panel in panels):
        missing = f"no {MODEL_NAMES[model]} with {depth} has completed an epoch"
        omitted = "the times of its runs are unknown" if panels else missing
        return FigureSpec(number=figure, title=title, omitted=omitted)
    panels = with_limits(panels, [VALIDATION])
    sentences = [f"{title}.", _describe_axes(panels), *_incomplete(runs), not_shown(len(found) - MAX_PANELS)]
    return FigureSpec(
        number=figure,
        title=title,
        caption=join_sentences(sentences),
        full_width=len(panels) > 1,
        content=_grid(group, panels),
    )


def _grid(group: Group, panels: Sequence[Panel]) -> PanelGrid:
    return PanelGrid(
        panels=panels,
        columns=_columns(len(panels)),
        y_label=_y_label(group),
        unigram_ppl=group.unigram_ppl.get("validation"),
    )


def _columns(panels: int) -> int:
    return 1 if panels == 1 else 2 if panels <= 4 else 3


def _time_unit(runs: Sequence[Run]) -> tuple[str, float]:
    return time_unit(max((run.state.elapsed_train_s or 0.0 for run in runs), default=0.0))


def _y_label(group: Group) -> str:
    return "Perplexity" if group.reference.denominator == "targets" else "Perplexity (padded)"


def _describe_axes(panels: Sequence[Panel]) -> str:
    own, cut = have_own_limits(panels), are_cut(panels)
    kind = "Logarithmic" if any(panel.log_y for panel in panels) else "Linear"
    axes = f"{kind} axes, one for each panel" if own else f"{kind} axis"
    return f"{axes}, without the first epochs." if cut else f"{axes}."


def _incomplete(runs: Sequence[Run]) -> list[str]:
    sentences = []
    for phrase, fitting in (
        ("Not finished", [run for run in runs if run.state.finished is None]),
        ("Diverged", [run for run in runs if run.state.finished and run.state.finished.diverged]),
        ("Damaged event logs", [run for run in runs if run.state.damage]),
    ):
        if fitting:
            sentences.append(f"{phrase}: {name_ids(run.info.experiment.id for run in fitting)}.")
    if any(_off_scale(point.ppl) for run in runs for points in METRICS.values() for point in points(run.state)):
        sentences.append("Crosses: not finite, or too large to draw.")
    return sentences


def _panel(runs: Sequence[Run], x_label: str, unit_s: float | None) -> Panel:
    """Return the panel of an experiment, over epochs or, in ``unit_s``, over time."""
    title, integer_x = _panel_title(runs), unit_s is None
    if unit_s is not None and all(run.state.elapsed_train_s is None for run in runs):
        return Panel(title=title, x_label=x_label, integer_x=integer_x, note="times unknown")
    curves = {label: _curve(runs, metric, unit_s, mark_best=label == VALIDATION) for label, metric in METRICS.items()}
    notes = sorted({run.status.value for run in runs if run.state.finished is None})
    if any(run.state.finished and run.state.finished.diverged for run in runs):
        notes.append("diverged")
    if any(run.state.damage for run in runs):
        notes.append("damaged")
    return Panel(title=title, x_label=x_label, integer_x=integer_x, curves=curves, note=", ".join(notes))


def _curve(runs: Sequence[Run], points_of: Points, unit_s: float | None, *, mark_best: bool = True) -> Curve:
    """Return the lines of all seeds over epochs or over time in ``unit_s``, and their mean where every seed has a
    value. A mean of the seeds that are left would hide that others diverged."""
    seeds: list[SeedCurve] = []
    off_scale: list[float] = []
    by_passes: dict[float, list[tuple[float, float]]] = {}
    for run in runs:
        points = []
        for passes, time_s, value in points_of(run.state):
            if value is None or (unit_s is not None and time_s is None):
                continue
            x = passes if unit_s is None else (time_s or 0.0) / unit_s
            if _off_scale(value):
                off_scale.append(x)
            else:
                points.append((passes, x, value))
                by_passes.setdefault(passes, []).append((x, value))
        best_epoch = run.state.best_epoch.epoch if mark_best and run.state.best_epoch else None
        best = next(((x, y) for passes, x, y in points if passes == best_epoch), None)
        if points:
            seeds.append(SeedCurve(x=[x for _, x, _ in points], y=[y for _, _, y in points], best=best))
    means = [
        (statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points))
        for _, points in sorted(by_passes.items())
        if len(points) == len(runs)
    ]
    return Curve(x=[x for x, _ in means], y=[y for _, y in means], seeds=seeds, off_scale=sorted(set(off_scale)))


def _off_scale(value: float | None) -> bool:
    return value is not None and not (math.isfinite(value) and 0.0 < value <= LARGEST_PPL)
