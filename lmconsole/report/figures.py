"""What the figures show: which experiments stand in which panel, over which axis, and the captions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lmconsole import formatting
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.plan.presets import ranges
from lmconsole.report.result_tables import denominator, host_memory_words
from lmconsole.report.results import is_complete, memory_frame, uses_gpu
from lmconsole.report.selection import Group, clock_note, describe_briefly
from lmconsole.report.targets import SLACK, TARGETS, common_target, performance_profile, reached
from lmconsole.runs.events import Epoch
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lmconsole.report.draw import Curve, Panel

MAX_PANELS = 16
"""A figure shows no more experiments than this."""

ORDER = ("adam", "adamw", "sgd", "momentum")
"""Of the panels of figures 1, 2, 5 and 6."""


@dataclass(frozen=True)
class Illustration:
    """A figure of the export: drawn when it is asked for. ``wide``: as wide as two columns of a paper."""

    number: int
    title: str
    caption: str
    wide: bool
    draw: Callable[[], "Figure"]

    @property
    def name(self) -> str:
        """Of its file, without suffix."""
        return f"figure-{self.number}"


@dataclass(frozen=True)
class _Slot:
    """A panel: the experiment that belongs there, if the group has it."""

    title: str
    runs: Sequence[Run]


def illustrations(group: Group) -> list[Illustration]:
    """Every figure of a group in order: 1 to 4 over epochs, 5 to 8 the same over wall-clock time, 9 memory, 10 time to
    a perplexity, 11 the performance profile."""
    found: list[Illustration] = []
    for over_time in (False, True):
        for model in ("lstm", "gpt1"):
            found.append(_curves(group, model, len(found) + 1, over_time=over_time, deep=False))
        for model in ("lstm", "gpt1"):
            found.append(_curves(group, model, len(found) + 1, over_time=over_time, deep=True))
    return [*found, _memory(group), _time_to_perplexity(group), _profile(group)]


def _slots(group: Group, model: str, *, deep: bool) -> list[_Slot]:
    """Where the experiments of a model go: one layer, or more. Those of the published twelve that are missing leave an
    empty panel, and any others follow."""
    there = {
        experiment: runs
        for experiment, runs in group.by_experiment.items()
        if runs[0].info.experiment.model == model and (runs[0].info.experiment.layers > 1) == deep
    }
    wanted = [(2, "adamw"), (4, "adamw")] if deep else [(1, optimizer) for optimizer in ORDER]
    slots: list[_Slot] = []
    for layers, optimizer in wanted:
        fitting = [id_ for id_, runs in there.items() if _place(runs) == (layers, optimizer)]
        title = _depth_and_optimizer(layers, optimizer)
        slots += [_Slot(_titled(title, there[id_]), there.pop(id_)) for id_ in fitting] or [_Slot(title, [])]
    slots += [_Slot(_titled(_depth_and_optimizer(*_place(runs)), runs), runs) for runs in there.values()]
    return slots


def _place(runs: Sequence[Run]) -> tuple[int, str]:
    return runs[0].info.experiment.layers, runs[0].info.experiment.optimizer


def _depth_and_optimizer(layers: int, optimizer: str) -> str:
    return f"{layers} layers, {OPTIMIZER_NAMES[optimizer]}" if layers > 1 else OPTIMIZER_NAMES[optimizer]


def _titled(title: str, runs: Sequence[Run]) -> str:
    experiment = runs[0].info.experiment
    return f"{title} ({experiment.id}: {experiment.name})" if experiment.name else f"{title} ({experiment.id})"


def _curves(group: Group, model: str, place: int, *, over_time: bool, deep: bool) -> Illustration:
    found = _slots(group, model, deep=deep)
    slots = found[:MAX_PANELS]
    depth = "more than one layer" if deep else "1 layer"
    over = "wall-clock time" if over_time else "epochs"
    title = f"{MODEL_NAMES[model]}, {depth}: perplexity over {over}"
    per = "depth" if deep else "optimizer"
    words = [
        f"{title}.",
        f"Train and validation perplexity per {denominator(group)}, logarithmic, one panel per {per}.",
        "In brackets: number of the experiment.",
    ]
    if over_time:
        words.append("Time: cumulated seconds of training, without set-up and evaluation.")
        words.append(clock_note(group))
    else:
        words.append("Train perplexity is that of the epoch's own training passes.")
    shown = [run for slot in slots for run in slot.runs]
    if any(len(slot.runs) > 1 for slot in slots):
        words.append("Lines are means over seeds, bands reach from the lowest to the highest seed.")
    words += _incomplete(slots, shown)
    words.append(_more(len(found) - MAX_PANELS))
    words.append(describe_briefly(group))
    return Illustration(
        number=place,
        title=title,
        caption=" ".join(word for word in words if word),
        wide=not deep,
        draw=partial(_draw_curves, slots, over_time=over_time, deep=deep, label=_ppl_label(group)),
    )


def _more(left_out: int) -> str:
    if left_out <= 0:
        return ""
    return f"{left_out} more {'experiment is' if left_out == 1 else 'experiments are'} not shown, for want of room."


def _ppl_label(group: Group) -> str:
    return "Perplexity" if group.reference.denominator == "targets" else "Perplexity (padded)"


def _incomplete(slots: Sequence[_Slot], shown: Sequence[Run]) -> list[str]:
    words = []
    missing = [slot.title for slot in slots if not slot.runs]
    if missing:
        words.append(f"No run yet: {', '.join(missing)}.")
    unfinished = [run for run in shown if run.status is not Status.FINISHED]
    if unfinished:
        stand = ", ".join(f"{run.info.experiment.id} ({_how_far(run)})" for run in unfinished)
        words.append(f"Not finished: {stand}.")
    diverged = [run.info.experiment.id for run in shown if run.state.finished and run.state.finished.diverged]
    if diverged:
        words.append(f"Diverged: {ranges(sorted(set(diverged)))}.")
    if any(_astray(metric(epoch)) for run in shown for epoch in run.state.epochs for metric in METRICS.values()):
        words.append("A cross at the upper edge marks a perplexity that is not finite or too large to draw.")
    return words


def _how_far(run: Run) -> str:
    return f"{run.status.value}, {len(run.state.epochs)} of {run.info.settings.epochs} epochs"


Metric = Callable[[Epoch], float | None]

METRICS: dict[str, Metric] = {"Train": lambda epoch: epoch.train_ppl, "Validation": lambda epoch: epoch.valid_ppl}
"""Metric of each curve of a panel."""


def _draw_curves(slots: Sequence[_Slot], *, over_time: bool, deep: bool, label: str) -> "Figure":
    from lmconsole.report.draw import DOUBLE_IN, SINGLE_IN, panels

    longest = max((run.state.elapsed_train_s or 0.0 for slot in slots for run in slot.runs), default=0.0)
    unit, seconds = time_unit(longest)
    made = [_panel(slot, seconds if over_time else None) for slot in slots]
    columns = 1 if deep and len(made) <= 2 else 2 if len(made) <= 4 else 3
    return panels(
        made,
        x_label=f"Training time ({unit})" if over_time else "Epoch",
        y_label=label,
        whole_x=not over_time,
        width_in=SINGLE_IN if columns == 1 else DOUBLE_IN,
        columns=columns,
    )


def time_unit(longest_s: float) -> tuple[str, float]:
    """The unit that suits times up to ``longest_s``, and its seconds."""
    if longest_s <= 180:
        return "s", 1.0
    return ("min", 60.0) if longest_s <= 3 * 3600 else ("h", 3600.0)


def _panel(slot: _Slot, seconds: float | None) -> "Panel":
    from lmconsole.report.draw import Panel

    if not slot.runs:
        return Panel(slot.title, note="no run yet")
    curves = {name: _curve(slot.runs, metric, seconds) for name, metric in METRICS.items()}
    notes = []
    if seconds is not None and all(run.state.elapsed_train_s is None for run in slot.runs):
        return Panel(slot.title, note="times unknown")
    states = {run.status.value for run in slot.runs if run.status is not Status.FINISHED}
    if states:
        notes.append(", ".join(sorted(states)))
    if any(run.state.finished and run.state.finished.diverged for run in slot.runs):
        notes.append("diverged")
    return Panel(slot.title, curves, ", ".join(notes))


def _curve(runs: Sequence[Run], metric: Metric, seconds: float | None) -> "Curve":
    """Mean and range over seeds at each epoch that one of them has completed; over epochs, or over the mean time in
    units of ``seconds``."""
    from lmconsole.report.draw import Curve

    xs, means, lows, highs, astray = [], [], [], [], []
    by_epoch: dict[int, list[Epoch]] = {}
    for run in runs:
        for event in run.state.epochs:
            by_epoch.setdefault(event.epoch, []).append(event)
    for epoch, events in sorted(by_epoch.items()):
        times = [event.elapsed_train_s for event in events if event.elapsed_train_s is not None]
        if seconds is not None and not times:
            continue
        x = float(epoch) if seconds is None else sum(times) / len(times) / seconds
        values = [value for event in events if (value := _drawable(metric(event))) is not None]
        if any(_astray(metric(event)) for event in events):
            astray.append(x)
        if values:
            xs.append(x)
            means.append(sum(values) / len(values))
            lows.append(min(values))
            highs.append(max(values))
    return Curve(xs, means, lows, highs, astray)


def _drawable(value: float | None) -> float | None:
    return None if _astray(value) else value


def _astray(value: float | None) -> bool:
    from lmconsole.report.draw import LARGEST_PPL

    return value is not None and not (math.isfinite(value) and 0.0 < value <= LARGEST_PPL)


def _label(runs: Sequence[Run]) -> str:
    experiment = runs[0].info.experiment
    return f"{experiment.label} ({experiment.id})"


def _memory(group: Group) -> Illustration:
    table = memory_frame(group)
    gpu = uses_gpu(group)
    column = "memory_mib" if gpu else "host_peak_mib"
    values = {row.experiment: getattr(row, column) for row in table.itertuples()}
    known = {number: None if value is None or math.isnan(value) else float(value) for number, value in values.items()}
    what = "GPU memory" if gpu else "Peak host memory"
    how = (
        "Mean over the samples taken while training, from the second epoch on: memory of the process where the driver "
        "tells it, else of the whole device."
        if gpu
        else host_memory_words(group)
    )
    title = f"{what} by experiment"

    def draw() -> "Figure":
        from lmconsole.report.draw import bars

        shown = dict(list(group.by_experiment.items())[:MAX_BARS])
        return bars(
            [_label(runs) for runs in shown.values()],
            [known.get(number) for number in shown],
            x_label=f"{what} (MiB)",
            absent="unknown",
            groups=[MODEL_NAMES[runs[0].info.experiment.model] for runs in shown.values()],
        )

    words = (f"{title}.", how, _more(len(known) - MAX_BARS), describe_briefly(group))
    return Illustration(9, title, " ".join(word for word in words if word), wide=False, draw=draw)


MAX_BARS = 40
"""A figure shows no more bars than this."""


def _time_to_perplexity(group: Group) -> Illustration:
    target = common_target(group)
    times = {n: reached(runs, target) for n, runs in group.by_experiment.items()} if target is not None else {}
    unit, seconds = time_unit(max((time.mean_s or 0.0 for time in times.values()), default=0.0))
    words = "–" if target is None else f"{target:,.10g}"
    title = f"Training time to a validation perplexity of {words}"
    caption = (
        f"{title}, at the end of the first epoch at or below it. The target lies {SLACK:.0%} above the lowest "
        "perplexity that every architecture has reached in some experiment, with every seed. Not reached: some seed is "
        "above it in every epoch."
    )
    if len(group.seeds) > 1:
        caption += " Bars are means over seeds, lines reach from the fastest to the slowest."

    def draw() -> "Figure":
        from lmconsole.report.draw import bars

        shown = dict(list(group.by_experiment.items())[:MAX_BARS])
        found = [times.get(number) for number in shown]
        return bars(
            [_label(runs) for runs in shown.values()],
            [None if time is None or time.mean_s is None else time.mean_s / seconds for time in found],
            x_label=f"Training time to perplexity {words} ({unit})",
            absent="not reached",
            groups=[MODEL_NAMES[runs[0].info.experiment.model] for runs in shown.values()],
            spans=[
                None if time is None or time.lowest_s is None or time.highest_s is None
                else (time.lowest_s / seconds, time.highest_s / seconds)
                for time in found
            ],
            value_format="{:,.1f}",
        )  # fmt: skip

    more = _more(len(group.by_experiment) - MAX_BARS)
    note = " ".join(word for word in (caption, more, clock_note(group), describe_briefly(group)) if word)
    return Illustration(10, title, note, wide=False, draw=draw)


def _profile(group: Group) -> Illustration:
    title = "Performance profile of the optimizers"
    caption = (
        f"{title}: the share of problems that an optimizer solves in at most so many times the time that the fastest "
        f"optimizer needs for each. A problem is one of {TARGETS} validation perplexities for an architecture, depth "
        "and seed on which several optimizers were tried; they lie evenly, on a logarithmic scale, between the best "
        "perplexity of the best optimizer and that of the worst. Higher is better; a curve that stays below 1 belongs "
        "to an optimizer that does not reach them all."
    )

    def draw() -> "Figure":
        from lmconsole.report.draw import steps

        return steps(
            performance_profile(group),
            x_label="Time / time of the fastest",
            y_label="Share of problems solved",
            absent="no two optimizers to compare",
        )

    note = " ".join(word for word in (caption, clock_note(group), describe_briefly(group)) if word)
    return Illustration(11, title, note, wide=False, draw=draw)


def unfinished(group: Group) -> list[str]:
    """A line for each run of the group that is not complete: how it stands."""
    return [
        f"{run.run}: {'diverged' if run.status is Status.FINISHED else run.status.value} after "
        f"{len(run.state.epochs)} of {run.info.settings.epochs} epochs, "
        f"{formatting.seconds(run.state.elapsed_train_s)} of training"
        for run in group.runs
        if not is_complete(run)
    ]
