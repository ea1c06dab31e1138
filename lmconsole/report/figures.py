"""All figures of an export: their experiments, axes and captions. ``draw`` turns them into images.

Captions say what is shown in at most two lines. What all of them share is stated once; see ``notation``.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from lmconsole.formatting import counted
from lmconsole.plan.experiment import MODEL_NAMES
from lmconsole.report.captions import join_sentences, not_shown
from lmconsole.report.curve_figures import curves_figure, overview_figure
from lmconsole.report.figure_content import BarChart, FigureSpec, StepPlot, time_unit
from lmconsole.report.notation import EXPLORATORY
from lmconsole.report.results import damage_mark, marks, memory_frame, uses_gpu
from lmconsole.report.selection import Group
from lmconsole.report.targets import (
    MIN_WORKLOADS,
    TimeToTarget,
    common_target,
    performance_profile,
    seconds_to_target,
    time_to_target,
)

MAX_BARS = 40
"""Largest number of bars in a figure."""


def figure_specs(group: Group, *, targets_ppl: Sequence[float] = (), exploratory: bool = True) -> list[FigureSpec]:
    """Return all figures of a group: the overview, 1 to 4 over epochs, 5 to 8 the same over wall-clock time, 9 memory,
    10 time to a perplexity, 11 the performance profile. Some may have no content; they say why.

    Args:
        targets_ppl: Validation perplexities that were fixed before the runs, as targets of figures 10 and 11.
        exploratory: Whether the runs are not covered by a claim.
    """
    found = [overview_figure(group)]
    for over_time in (False, True):
        for deep in (False, True):
            for model in ("lstm", "gpt1"):
                found.append(curves_figure(group, model, len(found), over_time=over_time, deep=deep))
    found += [_memory_figure(group), _time_figure(group, targets_ppl), _profile_figure(group, targets_ppl)]
    if not exploratory:
        return found
    return [
        replace(figure, content=replace(figure.content, stamp=EXPLORATORY.lower())) if figure.content else figure
        for figure in found
    ]


def _bar_labels(group: Group) -> dict[int, str]:
    """Return labels by experiment id, for as many experiments as a bar chart shows."""
    shown = list(group.by_experiment.items())[:MAX_BARS]
    return {id_: f"{runs[0].info.experiment.label} ({id_})" for id_, runs in shown}


def _bar_groups(group: Group) -> list[str]:
    models = [runs[0].info.experiment.model for runs in group.by_experiment.values()]
    return [MODEL_NAMES[model] for model in models[:MAX_BARS]]


def _explain_dots(group: Group) -> str:
    return "; dots are seeds" if any(len(runs) > 1 for runs in group.by_experiment.values()) else ""


def _memory_figure(group: Group) -> FigureSpec:
    frame = memory_frame(group)
    gpu = uses_gpu(group)
    known: dict[int, float | None] = {
        int(experiment): None if mib is None or math.isnan(mib) else float(mib)
        for experiment, mib in zip(frame["experiment"], frame["memory_mib" if gpu else "host_peak_mib"], strict=True)
    }
    quantity = "Device memory used" if group.imported else "GPU memory" if gpu else "Peak host memory"
    title = f"{quantity} by experiment"
    if not any(mib is not None for mib in known.values()):
        return FigureSpec(number=9, title=title, omitted="the memory of these runs is unknown")
    by_experiment = group.by_experiment
    labels = {id_: label + damage_mark(by_experiment[id_]) for id_, label in _bar_labels(group).items()}
    seeds = dict(zip(map(int, frame["experiment"]), frame["seed_mib"], strict=True))
    caption = f"{title}, as in Table 2{_explain_dots(group)}."
    return FigureSpec(
        number=9,
        title=title,
        caption=join_sentences([caption, not_shown(len(known) - MAX_BARS)]),
        content=BarChart(
            labels=list(labels.values()),
            values=[known.get(id_) for id_ in labels],
            groups=_bar_groups(group),
            x_label=f"{quantity} (MiB)",
            missing=["unknown"] * len(labels),
            seeds=[seeds[id_] if known.get(id_) is not None else () for id_ in labels],
        ),
    )


def _time_figure(group: Group, targets_ppl: Sequence[float]) -> FigureSpec:
    target = min(targets_ppl) if targets_ppl else common_target(group)
    if target is None:
        return FigureSpec(number=10, title="Training time to a perplexity", omitted="no run has a finite perplexity")
    by_experiment = group.by_experiment
    times = {id_: time_to_target(runs, target) for id_, runs in by_experiment.items()}
    seeds_s = {
        id_: [time for run in runs if (time := seconds_to_target(run, target)) is not None]
        for id_, runs in by_experiment.items()
    }
    unit, unit_s = time_unit(max((time for seeds in seeds_s.values() for time in seeds), default=0.0))
    title = f"Training time to a validation perplexity of {target:,.10g}"
    if targets_ppl:
        origin = "fixed before the runs"
    else:
        origin = "chosen after the runs"
    labels = {id_: label + marks(by_experiment[id_]) for id_, label in _bar_labels(group).items()}
    shown = {id_: times.get(id_, TimeToTarget()) for id_ in labels}
    return FigureSpec(
        number=10,
        title=title,
        caption=join_sentences([f"{title}, {origin}{_explain_dots(group)}.", not_shown(len(by_experiment) - MAX_BARS)]),
        content=BarChart(
            labels=list(labels.values()),
            values=[None if time.median_s is None else time.median_s / unit_s for time in shown.values()],
            groups=_bar_groups(group),
            x_label=f"Training time to perplexity {target:,.10g} ({unit})",
            missing=[
                "times unknown" if time.reached else _how_many(len(seeds_s[id_]), len(by_experiment[id_]))
                for id_, time in shown.items()
            ],
            seeds=[[time / unit_s for time in seeds_s[id_]] for id_ in labels],
            value_format=",.1f",
        ),
    )


def _how_many(reached: int, runs: int) -> str:
    return f"reached by {reached} of {runs}" if reached else "not reached"


def _profile_figure(group: Group, targets_ppl: Sequence[float]) -> FigureSpec:
    title = "Performance profile of the optimizers"
    if not targets_ppl:
        omitted = "no targets were fixed before the runs, and it would rank optimizers by them"
        return FigureSpec(number=11, title=title, omitted=omitted)
    profile = performance_profile(group, targets_ppl)
    if not any(profile.curves.values()):
        omitted = "no two optimizers trained the same model, or none reached a target"
        return FigureSpec(number=11, title=title, omitted=omitted)
    workloads, targets = counted(profile.workloads, "workload"), counted(len(set(targets_ppl)), "target")
    few = ", too few for a score," if profile.workloads < MIN_WORKLOADS else ""
    return FigureSpec(
        number=11,
        title=title,
        caption=f"{title} over {workloads}{few} and {targets} fixed beforehand; each dot is a problem solved.",
        content=StepPlot(
            curves=profile.curves,
            x_label="Time / time of the fastest",
            y_label="Share of problems solved",
        ),
    )
