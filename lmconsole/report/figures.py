"""Contents of the figures: their experiments, panels, axes and captions. ``draw`` turns them into images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.captions import (
    NO_READINGS,
    describe_group_briefly,
    describe_host_memory,
    describe_readings,
    ppl_denominator,
    timing_caveat,
)
from lmconsole.report.results import damage_mark, explain_marks, marks, memory_frame, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.report.targets import (
    TARGET_MARGIN,
    TARGETS,
    TimeToTarget,
    common_target,
    performance_profile,
    time_to_target,
)
from lmconsole.runs.events import Epoch
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

MAX_PANELS = 16
"""Largest number of panels in a figure."""

MAX_BARS = 40
"""Largest number of bars in a figure."""

LARGEST_PPL = 1e6
"""Largest perplexity on an axis; a uniform guess over any vocabulary here has a lower one."""

OPTIMIZER_ORDER = ("adam", "adamw", "sgd", "momentum")
"""Order of the panels in figures 1, 2, 5 and 6."""

Metric = Callable[[Epoch], float | None]

METRICS: Mapping[str, Metric] = {"Train": lambda epoch: epoch.train_ppl, "Validation": lambda epoch: epoch.valid_ppl}
"""Metrics of the curves of a panel, by label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Line ``y`` over ``x`` with a band from ``low`` to ``high``."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    off_scale: Sequence[float] = ()
    """x of values that are not finite or larger than ``LARGEST_PPL``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves of one experiment by label."""

    title: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    note: str = ""
    """Note on what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelGrid:
    """Panels with shared axes; perplexity is on a logarithmic axis."""

    panels: Sequence[Panel]
    columns: int
    x_label: str
    y_label: str
    integer_x: bool
    """Whether x is a count and has integer ticks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Horizontal bars, colored by group and annotated with their values."""

    labels: Sequence[str]
    values: Sequence[float | None]
    groups: Sequence[str]
    x_label: str
    missing: Sequence[str]
    """Annotation of each bar in place of a value that is None."""
    spans: Sequence[tuple[float, float] | None] = ()
    """Lowest and highest of the values whose mean a bar shows."""
    value_format: str = ",.0f"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlot:
    """Step curves of shares, from 0 to 1, over a logarithmic axis that starts at 1."""

    curves: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    missing: str
    """Text in place of the curves if there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureSpec:
    """Everything that defines a figure of the export."""

    number: int
    title: str
    caption: str
    content: PanelGrid | BarChart | StepPlot
    full_width: bool = False
    """Whether the figure takes the full width of the text in LaTeX."""

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"figure-{self.number}"


def figure_specs(group: Group) -> list[FigureSpec]:
    """Return all figures of a group: 1 to 4 over epochs, 5 to 8 the same over wall-clock time, 9 memory, 10 time to a
    perplexity, 11 the performance profile."""
    found: list[FigureSpec] = []
    for over_time in (False, True):
        for deep in (False, True):
            for model in ("lstm", "gpt1"):
                found.append(_curves_figure(group, model, len(found) + 1, over_time=over_time, deep=deep))
    return [*found, _memory_figure(group), _time_figure(group), _profile_figure(group)]


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


def _curves_figure(group: Group, model: str, figure: int, *, over_time: bool, deep: bool) -> FigureSpec:
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
    sentences.append(_not_shown(len(found) - MAX_PANELS))
    sentences.append(describe_group_briefly(group))
    longest_s = max((run.state.elapsed_train_s or 0.0 for panel in shown for run in panel.runs), default=0.0)
    unit, unit_s = time_unit(longest_s)
    panels = [_panel(panel, unit_s if over_time else None) for panel in shown]
    return FigureSpec(
        number=figure,
        title=title,
        caption=_join(sentences),
        full_width=not deep,
        content=PanelGrid(
            panels=panels,
            columns=1 if deep and len(panels) <= 2 else 2 if len(panels) <= 4 else 3,
            x_label=f"Training time ({unit})" if over_time else "Epoch",
            y_label="Perplexity" if group.reference.denominator == "targets" else "Perplexity (padded)",
            integer_x=not over_time,
        ),
    )


def _join(sentences: Sequence[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _not_shown(count: int) -> str:
    if count <= 0:
        return ""
    return f"{count} more {'experiment is' if count == 1 else 'experiments are'} not shown, for lack of space."


def _missing_and_incomplete(panels: Sequence[_PanelRuns]) -> list[str]:
    sentences = []
    runs = [run for panel in panels for run in panel.runs]
    missing = [panel.title for panel in panels if not panel.runs]
    if missing:
        separator = "; " if any("," in title for title in missing) else ", "
        sentences.append(f"No run yet: {separator.join(missing)}.")
    unfinished = [run for run in runs if run.status is not Status.FINISHED]
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


def time_unit(longest_s: float) -> tuple[str, float]:
    """Return a unit for times up to ``longest_s``, and its seconds."""
    if longest_s <= 180:
        return "s", 1.0
    return ("min", 60.0) if longest_s <= 3 * 3600 else ("h", 3600.0)


def _panel(panel: _PanelRuns, unit_s: float | None) -> Panel:
    runs = panel.runs
    if not runs:
        return Panel(title=panel.title, note="no run yet")
    if unit_s is not None and all(run.state.elapsed_train_s is None for run in runs):
        return Panel(title=panel.title, note="times unknown")
    curves = {label: _curve(runs, metric, unit_s) for label, metric in METRICS.items()}
    notes = sorted({run.status.value for run in runs if run.status is not Status.FINISHED})
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


def _bar_labels(group: Group) -> dict[int, str]:
    """Return labels by experiment id, for as many experiments as a bar chart shows."""
    shown = list(group.by_experiment.items())[:MAX_BARS]
    return {id_: f"{runs[0].info.experiment.label} ({id_})" for id_, runs in shown}


def _bar_groups(group: Group) -> list[str]:
    models = [runs[0].info.experiment.model for runs in group.by_experiment.values()]
    return [MODEL_NAMES[model] for model in models[:MAX_BARS]]


def _memory_figure(group: Group) -> FigureSpec:
    frame = memory_frame(group)
    gpu = uses_gpu(group)
    known: dict[int, float | None] = {
        int(experiment): None if mib is None or math.isnan(mib) else float(mib)
        for experiment, mib in zip(frame["experiment"], frame["memory_mib" if gpu else "host_peak_mib"], strict=True)
    }
    quantity = "Device memory used" if group.imported else "GPU memory" if gpu else "Peak host memory"
    title = f"{quantity} by experiment"
    if group.imported:
        explanation = describe_readings(title) if any(mib is not None for mib in known.values()) else NO_READINGS
    elif gpu:
        explanation = (
            f"{title}: mean over samples taken during training, from the second epoch on, of the memory of the process "
            "if the driver reports it, otherwise of the whole device."
        )
    else:
        explanation = describe_host_memory(title)
    by_experiment = group.by_experiment
    shown_marks = {id_: damage_mark(by_experiment[id_]) for id_ in _bar_labels(group)}
    labels = {id_: label + shown_marks[id_] for id_, label in _bar_labels(group).items()}
    explanation = _join([explanation, explain_marks("".join(shown_marks.values()))])
    return FigureSpec(
        number=9,
        title=title,
        caption=_join([explanation, _not_shown(len(known) - MAX_BARS), describe_group_briefly(group)]),
        content=BarChart(
            labels=list(labels.values()),
            values=[known.get(id_) for id_ in labels],
            groups=_bar_groups(group),
            x_label=f"{quantity} (MiB)",
            missing=["unknown"] * len(labels),
        ),
    )


def _time_figure(group: Group) -> FigureSpec:
    target = common_target(group)
    times: dict[int, TimeToTarget] = {}
    if target is not None:
        times = {id_: time_to_target(runs, target) for id_, runs in group.by_experiment.items()}
    unit, unit_s = time_unit(max((time.mean_s or 0.0 for time in times.values()), default=0.0))
    target_text = "–" if target is None else f"{target:,.10g}"
    title = f"Training time to a validation perplexity of {target_text}"
    explanation = (
        f"{title}, reached at the end of the first epoch with at most this value. The target is {TARGET_MARGIN:.0%} "
        "above the lowest perplexity that every architecture reaches in some experiment with every seed. “Not reached” "
        "means that at least one seed is above it in every epoch."
    )
    if len(group.seeds) > 1:
        explanation += " Bars are means over seeds; lines span the fastest to the slowest seed."
    not_shown = _not_shown(len(group.by_experiment) - MAX_BARS)
    by_experiment = group.by_experiment
    shown_marks = {id_: marks(by_experiment[id_]) for id_ in _bar_labels(group)}
    labels = {id_: label + shown_marks[id_] for id_, label in _bar_labels(group).items()}
    explanation = _join([explanation, explain_marks("".join(shown_marks.values()))])
    shown = [times.get(id_, TimeToTarget()) for id_ in labels]
    return FigureSpec(
        number=10,
        title=title,
        caption=_join([explanation, not_shown, timing_caveat(group), describe_group_briefly(group)]),
        content=BarChart(
            labels=list(labels.values()),
            values=[None if time.mean_s is None else time.mean_s / unit_s for time in shown],
            groups=_bar_groups(group),
            x_label=f"Training time to perplexity {target_text} ({unit})",
            missing=["times unknown" if time.reached else "not reached" for time in shown],
            spans=[
                None
                if time.lowest_s is None or time.highest_s is None
                else (time.lowest_s / unit_s, time.highest_s / unit_s)
                for time in shown
            ],
            value_format=",.1f",
        ),
    )


def _profile_figure(group: Group) -> FigureSpec:
    title = "Performance profile of the optimizers"
    explanation = (
        f"{title} (Dolan and Moré, 2002): share of problems that an optimizer solves within a given multiple of the "
        f"fastest optimizer's time. A problem is one of {TARGETS} validation perplexities for an architecture, depth "
        "and seed with at least two optimizers. The perplexities are spaced evenly on a logarithmic scale between the "
        "best results of the best and the worst optimizer. Higher is better; a curve that stays below 1 belongs to an "
        "optimizer that does not solve all problems."
    )
    return FigureSpec(
        number=11,
        title=title,
        caption=_join([explanation, timing_caveat(group), describe_group_briefly(group)]),
        content=StepPlot(
            curves=performance_profile(group),
            x_label="Time / time of the fastest",
            y_label="Share of problems solved",
            missing="no two optimizers to compare",
        ),
    )
