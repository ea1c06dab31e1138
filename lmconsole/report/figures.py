"""All figures of an export: their experiments, axes and captions. ``draw`` turns them into images."""

import math

from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.captions import (
    NO_READINGS,
    describe_group_briefly,
    describe_host_memory,
    describe_readings,
    join_sentences,
    not_shown,
    timing_caveat,
)
from lmconsole.report.curve_figures import curves_figure
from lmconsole.report.figure_content import BarChart, FigureSpec, StepPlot, time_unit
from lmconsole.report.results import damage_mark, explain_marks, marks, memory_frame, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.report.targets import (
    TARGETS,
    TimeToTarget,
    common_target,
    explain_schedule,
    explain_target,
    performance_profile,
    time_to_target,
)

MAX_BARS = 40
"""Largest number of bars in a figure."""


def figure_specs(group: Group) -> list[FigureSpec]:
    """Return all figures of a group: 1 to 4 over epochs, 5 to 8 the same over wall-clock time, 9 memory, 10 time to a
    perplexity, 11 the performance profile."""
    found: list[FigureSpec] = []
    for over_time in (False, True):
        for deep in (False, True):
            for model in ("lstm", "gpt1"):
                found.append(curves_figure(group, model, len(found) + 1, over_time=over_time, deep=deep))
    return [*found, _memory_figure(group), _time_figure(group), _profile_figure(group)]


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
    explanation = join_sentences([explanation, explain_marks("".join(shown_marks.values()))])
    return FigureSpec(
        number=9,
        title=title,
        caption=join_sentences([explanation, not_shown(len(known) - MAX_BARS), describe_group_briefly(group)]),
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
    unit, unit_s = time_unit(max((time.median_s or 0.0 for time in times.values()), default=0.0))
    target_text = "–" if target is None else f"{target:,.10g}"
    title = f"Training time to a validation perplexity of {target_text}"
    explanation = join_sentences(
        [f"{title}, reached at the end of the first epoch with at most this value.", explain_target(group)]
    )
    if len(group.seeds) > 1:
        explanation += " Lines span the fastest to the slowest seed, if all reach the target."
    explanation = join_sentences([explanation, explain_schedule(group)])
    omitted = not_shown(len(group.by_experiment) - MAX_BARS)
    by_experiment = group.by_experiment
    shown_marks = {id_: marks(by_experiment[id_]) for id_ in _bar_labels(group)}
    labels = {id_: label + shown_marks[id_] for id_, label in _bar_labels(group).items()}
    explanation = join_sentences([explanation, explain_marks("".join(shown_marks.values()))])
    shown = [times.get(id_, TimeToTarget()) for id_ in labels]
    return FigureSpec(
        number=10,
        title=title,
        caption=join_sentences([explanation, omitted, timing_caveat(group), describe_group_briefly(group)]),
        content=BarChart(
            labels=list(labels.values()),
            values=[None if time.median_s is None else time.median_s / unit_s for time in shown],
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
        "best results of the best and the worst optimizer, so they were chosen after the runs. Higher is better; a "
        "curve that stays below 1 belongs to an optimizer that does not solve all problems."
    )
    return FigureSpec(
        number=11,
        title=title,
        caption=join_sentences([explanation, timing_caveat(group), describe_group_briefly(group)]),
        content=StepPlot(
            curves=performance_profile(group),
            x_label="Time / time of the fastest",
            y_label="Share of problems solved",
            missing="no two optimizers to compare",
        ),
    )
