"""The rows of the experiments table: values for cells, worked out from what the feed has seen."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, perplexity, seconds
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.runs.state import Status
from lmconsole.runs.store import queue_order
from lmconsole.tui.feed import STUCK, RunView
from lmconsole.tui.plot.glyphs import Glyphs, sparkline

SPARK_WIDTH = 10
COLUMNS = ("", "ID", "Model", "L", "Optimizer", "Status", "Train", "Valid", "Time", "Trend")
"""Headings; the first holds the checkbox."""
_ORDER = (Status.RUNNING, Status.QUEUED, Status.FAILED, Status.LOST, Status.STOPPED, Status.FINISHED)


class Row(NamedTuple):
    """One line: an experiment, or beneath it one of its runs."""

    key: str
    experiment: Experiment | None
    """None for a run that has never been readable."""
    run: RunView | None
    """The run it shows; for an experiment its latest one; None if it has none."""
    child: bool
    cells: tuple[str, ...]
    """Texts of ``COLUMNS``."""
    mood: str
    """Status word that decides the colour of the status cell."""
    order: tuple[tuple[float, str], ...]
    """What each column sorts by."""


def group_of(runs: Sequence[RunView]) -> list[RunView]:
    """The runs that belong with the newest of one experiment's ``runs``: the same settings, other seeds; of each seed
    the newest. In the order of seeds."""
    if not runs:
        return []
    newest = runs[-1].info
    same = (newest.preset, newest.settings, newest.corpus.sha256, newest.corpus.max_tokens, newest.origin)
    latest: dict[int, RunView] = {}
    for view in runs:
        info = view.info
        if (info.preset, info.settings, info.corpus.sha256, info.corpus.max_tokens, info.origin) == same:
            latest[info.seed] = view
    return [latest[seed] for seed in sorted(latest)]


def build_rows(
    experiments: Iterable[Experiment],
    runs: Iterable[RunView],
    *,
    checked: frozenset[str],
    unfolded: frozenset[str],
    wide: bool,
    glyphs: Glyphs,
    problems: dict[str, str],
) -> list[Row]:
    """A row for each experiment, and for those unfolded one for each of their runs, newest first. Experiments that only
    runs know, because the file has changed since, come after the others, and runs that were never readable at the end.
    ``problems``: what is wrong with runs, by their names."""
    known = {experiment.id: experiment for experiment in experiments}
    by_experiment: dict[int, list[RunView]] = {}
    unread = dict.fromkeys(sorted(problems))
    for view in runs:
        unread.pop(view.run, None)
        by_experiment.setdefault(view.info.experiment.id, []).append(view)
        known.setdefault(view.info.experiment.id, view.info.experiment)
    waiting = [
        view
        for views in by_experiment.values()
        for view in views
        if view.status is Status.QUEUED and not view.problem and view.run not in problems
    ]
    waiting.sort(key=lambda view: queue_order(view.info, view.queued))
    places = {view.run: place for place, view in enumerate(waiting, 1)}
    rows = []
    for experiment in known.values():
        its = by_experiment.get(experiment.id, [])
        key = f"e{experiment.id}"
        fold = "" if len(its) < 2 else glyphs.unfolded if key in unfolded else glyphs.folded
        rows.append(_experiment_row(key, experiment, its, fold, key in checked, wide, glyphs, problems, places))
        if key in unfolded and len(its) > 1:
            rows += [
                _run_row(experiment, view, view.run in checked, wide, glyphs, problems, places)
                for view in reversed(its)
            ]
    return rows + [_unreadable_row(name, problems[name]) for name in unread]


def _experiment_row(
    key: str,
    experiment: Experiment,
    runs: list[RunView],
    fold: str,
    checked: bool,
    wide: bool,
    glyphs: Glyphs,
    problems: dict[str, str],
    places: dict[str, int],
) -> Row:
    newest = runs[-1] if runs else None
    group = group_of(runs)
    named = escape_control_characters(experiment.name) or OPTIMIZER_NAMES[experiment.optimizer]
    front = (
        (glyphs.checked if checked else glyphs.unchecked) + fold,
        str(experiment.id),
        MODEL_NAMES[experiment.model],
        str(experiment.layers),
        named,
    )
    order: tuple[tuple[float, str], ...] = (
        (float(checked), ""),
        (float(experiment.id), ""),
        (0.0, experiment.model),
        (float(experiment.layers), ""),
        (0.0, named),
    )
    if newest is None:
        return Row(key, experiment, None, False, (*front, UNKNOWN, *[""] * 4), "", (*order, *[(math.inf, "")] * 5))
    one = len(group) == 1
    status = describe(newest, wide, problems, places) if one else _several(group, wide, problems, places)
    cells, back = _numbers(group, newest, glyphs)
    mood = "problem" if newest.problem or newest.run in problems else _mood(min(group, key=_rank))
    rank = _rank(newest) + places.get(newest.run, 0) / (len(places) + 1)  # those that wait, in the order of the queue
    return Row(key, experiment, newest, False, (*front, status, *cells), mood, (*order, (rank, status), *back))


def _run_row(
    experiment: Experiment,
    view: RunView,
    checked: bool,
    wide: bool,
    glyphs: Glyphs,
    problems: dict[str, str],
    places: dict[str, int],
) -> Row:
    front = (
        f"{glyphs.child}{glyphs.checked if checked else glyphs.unchecked}",
        "",
        "import" if view.info.origin == "imported" else escape_control_characters(view.info.preset)[:7],
        "",
        f"seed {view.info.seed}",
    )
    cells, back = _numbers([view], view, glyphs)
    mood = "problem" if view.problem or view.run in problems else _mood(view)
    order = ((0.0, ""),) * 6
    status = describe(view, wide, problems, places)
    return Row(view.run, experiment, view, True, (*front, status, *cells), mood, (*order, *back))


def _unreadable_row(name: str, why: str) -> Row:
    what = "not answering" if why == STUCK else "unreadable"
    cells = ("", "?", "", "", "", f"{what}: {escape_control_characters(name)}", "", "", "", "")
    return Row(name, None, None, True, cells, "problem", ((math.inf, ""),) * len(COLUMNS))


def _rank(view: RunView) -> float:
    return float(_ORDER.index(view.status))


def _mood(view: RunView) -> str:
    return "diverged" if view.finished and view.finished.diverged else view.status.value


def _several(group: Sequence[RunView], wide: bool, problems: dict[str, str], places: dict[str, int]) -> str:
    """How the seeds stand: the one that is running, and how many are over."""
    running = [view for view in group if view.status is Status.RUNNING]
    over = sum(view.status is Status.FINISHED for view in group)
    count = f"{over}/{len(group)} seeds"
    if running:
        return f"{count}, {describe(running[0], False, problems, places)}" if wide else f"{count}, running"
    if over == len(group):
        return f"finished, {len(group)} seeds" if wide else count
    foremost = min(group, key=lambda view: (_rank(view), places.get(view.run, 0)))
    if wide and foremost.run in places:
        return f"{count}, {describe(foremost, False, problems, places)}"
    return f"{count}, {foremost.status.value}"


def describe(view: RunView, wide: bool, problems: dict[str, str], places: dict[str, int]) -> str:
    """How a run stands, in about 16 characters, or twice as many if there is room. ``places``: of the runs that wait,
    from 1, in the order in which they will be started."""
    epochs, (epoch, step) = view.info.settings.epochs, view.position
    if view.problem:
        return "unreadable"
    if view.run in problems:
        return "not answering"
    if view.status is Status.FINISHED and view.finished:
        if view.finished.diverged:
            return "diverged"
        if view.info.origin == "imported":
            return "imported"
        return "stopped early" if view.finished.stopped_early else "finished"
    if view.status is Status.RUNNING:
        if view.stopping:
            return "stopping"
        if epoch > epochs:
            return "testing"
        if view.progress is None and not view.epochs:
            return "starting"
        left = seconds(view.seconds_left)
        if not wide:
            left = left.removesuffix(" min").removesuffix(" h")  # 2:48 and 1:02:30 say it themselves
            return f"{epoch}/{epochs} {left} left" if view.seconds_left is not None else f"{epoch}/{epochs}"
        steps = f" step {step}/{view.progress.steps}" if view.progress else ""
        return f"epoch {epoch}/{epochs}{steps}, {left} left"
    if view.info.origin == "imported":
        return f"imported, {len(view.epochs)}/{epochs}"
    if view.run in places:
        place = places[view.run]
        return f"queued, {place} of {len(places)}" if wide else f"queued {place}"
    if view.status in (Status.STOPPED, Status.LOST):
        return f"{view.status.value} in {min(epoch, epochs)}/{epochs}"
    return view.status.value


def _numbers(
    group: Sequence[RunView], newest: RunView, glyphs: Glyphs
) -> tuple[tuple[str, ...], tuple[tuple[float, str], ...]]:
    """Train and best validation perplexity (means over several seeds), training time of the newest run, trend."""
    train = _mean([(view.best or view.epochs[-1]).train_ppl for view in group if view.epochs])
    valid = _mean([(view.best or view.epochs[-1]).valid_ppl for view in group if view.epochs])
    known = (epoch.valid_loss_nats for epoch in newest.epochs)
    losses = [loss for loss in known if loss is not None and math.isfinite(loss)]
    time = newest.elapsed_train_s
    cells = (perplexity(train), perplexity(valid), seconds(time), sparkline(losses, SPARK_WIDTH, glyphs))
    order = [(value if value is not None and not math.isnan(value) else math.inf, "") for value in (train, valid, time)]
    fallen = losses[-1] - losses[0] if losses else math.inf
    return cells, (*order, (fallen, ""))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def matches(row: Row, words: str) -> bool:
    """Whether every word of the filter occurs in the row's texts or its run's id."""
    text = " ".join(
        [*row.cells, row.experiment.label if row.experiment else "", row.run.run if row.run else "", row.mood]
    ).lower()
    return all(word in text for word in words.lower().split())
