"""The rows of the experiments table: texts, sort keys and styles, computed from a snapshot."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, clock, perplexity, seconds
from lmconsole.plan.experiment import MODEL_NAMES, OPTIMIZER_NAMES, Experiment
from lmconsole.runs.comparable import differ_only_in_seed
from lmconsole.runs.notes import NO_NOTES, Notes
from lmconsole.runs.state import Status
from lmconsole.runs.store import queue_order
from lmconsole.tui.baseline import Baseline, change, mean_of_known, mean_valid_ppl
from lmconsole.tui.plot.glyphs import Glyphs, sparkline
from lmconsole.tui.snapshot import FILES_BLOCKED, RunView

SPARK_WIDTH = 10
COLUMNS = ("", "ID", "Model", "L", "Optimizer", "Status", "Train", "Valid", "Change", "Time", "Trend", "Notes")
"""Headings; the first column holds the checkbox."""
_STATUS_ORDER = (Status.RUNNING, Status.QUEUED, Status.FAILED, Status.LOST, Status.STOPPED, Status.FINISHED)

SortKey = tuple[float, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An experiment, or below it one of its runs."""

    key: str
    experiment: Experiment | None
    """None for a run that has never been readable."""
    runs: tuple[RunView, ...] = ()
    """Runs that decide whether a filter shows the row: for an experiment those of its newest group, and earlier ones
    with a note or tags."""
    run: RunView | None
    """The run of this row; for an experiment its newest one, None if it has none."""
    child: bool
    cells: tuple[str, ...]
    """Texts in the order of ``COLUMNS``."""
    status_style: str
    """Key of the status cell's style."""
    damaged: bool = False
    """Whether a run that the row shows is damaged, so that its results are not bold."""
    sort_keys: tuple[SortKey, ...]
    """Sort keys in the order of ``COLUMNS``."""

    @property
    def unreadable(self) -> bool:
        """Whether the row is that of a run that has never been readable. It cannot be checked."""
        return self.experiment is None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Context:
    """Values shared by all rows of one table."""

    wide: bool
    notes_column: bool
    baseline: Baseline | None
    glyphs: Glyphs
    problems: Mapping[str, str]
    queue_positions: Mapping[str, int]

    def has_problem(self, view: RunView) -> bool:
        return bool(view.problem) or view.run in self.problems

    def mark(self, group: Iterable[RunView]) -> str:
        """Return the mark of damage in front of a status; empty if none of the runs is damaged."""
        damaged = any(view.damage and not self.has_problem(view) for view in group)
        return f"{self.glyphs.damaged} " if damaged else ""

    def notes_mark(self, text: str) -> str:
        """Return what is put in front of an id in place of the column of notes."""
        return self.glyphs.noted if text and not self.notes_column else ""

    def checkbox(self, checked: bool) -> str:
        return self.glyphs.checked if checked else self.glyphs.unchecked


def experiment_key(number: int) -> str:
    """Return the row key of an experiment. The key of a run is its name, which has no slash."""
    return f"/{number}"


def latest_original(runs: Sequence[RunView]) -> RunView | None:
    """Return the last of these runs that is no reproduction of another; None if there is none."""
    return next((view for view in reversed(runs) if view.info.reproduces is None), None)


def newest_seed_group(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs of one experiment that differ from its newest run by their seed alone, the newest run of each
    seed, ordered by seed. Reproductions count as no run of it."""
    newest = latest_original(runs)
    latest: dict[int, RunView] = {}
    for view in runs:
        if newest is not None and differ_only_in_seed(view.info, newest.info):
            latest[view.info.seed] = view
    return [latest[seed] for seed in sorted(latest)]


def build_rows(
    experiments: Iterable[Experiment],
    runs: Iterable[RunView],
    *,
    checked: Collection[str],
    unfolded: Collection[str],
    wide: bool,
    glyphs: Glyphs,
    problems: Mapping[str, str],
    notes_column: bool = False,
    baseline: Baseline | None = None,
) -> list[Row]:
    """Return a row for each experiment and, below an unfolded one, a row for each of its runs, newest first.

    Experiments that only runs know, because the file has changed since, come after the others, and runs that have never
    been readable at the end. ``problems`` are reasons why runs cannot be read, by name. Without
    ``notes_column``, a mark next to the id shows that a row has notes.
    """
    known = {experiment.id: experiment for experiment in experiments}
    by_experiment: dict[int, list[RunView]] = {}
    never_read = dict.fromkeys(sorted(problems))
    for view in runs:
        never_read.pop(view.run, None)
        by_experiment.setdefault(view.info.experiment.id, []).append(view)
        known.setdefault(view.info.experiment.id, view.info.experiment)
    queued = [
        view
        for views in by_experiment.values()
        for view in views
        if view.status is Status.QUEUED and not (view.place or view.unattended or view.problem or view.run in problems)
    ]
    queued.sort(key=lambda view: queue_order(view.info, view.queued))
    positions = {view.run: position for position, view in enumerate(queued, 1)}
    context = _Context(
        wide=wide,
        notes_column=notes_column,
        baseline=baseline,
        glyphs=glyphs,
        problems=problems,
        queue_positions=positions,
    )
    rows = []
    for experiment in known.values():
        its_runs = by_experiment.get(experiment.id, [])
        key = experiment_key(experiment.id)
        below = len(its_runs) > 1 or (its_runs and latest_original(its_runs) is None)
        foldable, open_ = bool(below), key in unfolded
        fold = "" if not foldable else glyphs.unfolded if open_ else glyphs.folded
        rows.append(_experiment_row(key, experiment, its_runs, fold, key in checked, context))
        if foldable and open_:
            rows += [_run_row(experiment, view, view.run in checked, context) for view in reversed(its_runs)]
    return rows + [_unreadable_row(name, problems[name]) for name in never_read]


def _experiment_row(
    key: str, experiment: Experiment, runs: list[RunView], fold: str, checked: bool, context: _Context
) -> Row:
    group = newest_seed_group(runs)
    newest = latest_original(runs)
    name = escape_control_characters(experiment.name) or OPTIMIZER_NAMES[experiment.optimizer]
    notes = _notes_text(group)
    front = (
        context.checkbox(checked) + fold,
        f"{context.notes_mark(notes)}{experiment.id}",
        MODEL_NAMES[experiment.model],
        str(experiment.layers),
        name,
    )
    front_keys: tuple[SortKey, ...] = (
        (float(checked), ""),
        (float(experiment.id), ""),
        (0.0, experiment.model),
        (float(experiment.layers), ""),
        (0.0, name),
    )
    if newest is None:
        return Row(
            key=key,
            experiment=experiment,
            run=None,
            child=False,
            cells=(*front, UNKNOWN, *[""] * 6),
            status_style="",
            sort_keys=(*front_keys, *[(math.inf, "")] * 7),
        )
    mark = context.mark(group)
    status = mark + (_status_text(newest, context) if len(group) == 1 else _group_status_text(group, context))
    metrics, metric_keys = _metrics(key, group, newest, context)
    style = (
        "problem"
        if context.has_problem(newest)
        else _status_style(min(group, key=lambda view: (_rank(view), not view.damage)))
    )
    # Queued runs sort in the order of the queue.
    rank = _rank(newest) + context.queue_positions.get(newest.run, 0) / (len(context.queue_positions) + 1)
    return Row(
        key=key,
        experiment=experiment,
        runs=(*group, *(view for view in runs if view.notes != NO_NOTES and view not in group)),
        run=newest,
        child=False,
        cells=(*front, status, *metrics, notes),
        status_style=style,
        damaged=bool(mark),
        sort_keys=(*front_keys, (rank, status), *metric_keys, _text_key(notes)),
    )


def _run_row(experiment: Experiment, view: RunView, checked: bool, context: _Context) -> Row:
    notes = _notes_text([view])
    front = (
        f"{context.glyphs.child}{context.checkbox(checked)}",
        context.notes_mark(notes),
        _source(view),
        "",
        f"seed {view.info.seed}",
    )
    metrics, metric_keys = _metrics(view.run, [view], view, context)
    return Row(
        key=view.run,
        experiment=experiment,
        runs=(view,),
        run=view,
        child=True,
        cells=(*front, context.mark([view]) + _status_text(view, context), *metrics, notes),
        status_style="problem" if context.has_problem(view) else _status_style(view),
        damaged=bool(view.damage),
        sort_keys=(*((0.0, ""),) * 6, *metric_keys, _text_key(notes)),
    )


def _source(view: RunView) -> str:
    """Return in at most seven characters where a run comes from: its preset, an import, or another run."""
    if view.info.reproduces is not None:
        return "repro"
    return "import" if view.info.origin == "imported" else escape_control_characters(view.info.preset)[:7]


def _unreadable_row(name: str, reason: str) -> Row:
    problem = "not answering" if reason == FILES_BLOCKED else "unreadable"
    return Row(
        key=name,
        experiment=None,
        run=None,
        child=True,
        cells=("", "?", "", "", "", f"{problem}: {escape_control_characters(name)}", *[""] * 6),
        status_style="problem",
        sort_keys=((math.inf, ""),) * len(COLUMNS),
    )


def _rank(view: RunView) -> float:
    return float(_STATUS_ORDER.index(view.status))


def _status_style(view: RunView) -> str:
    if view.slurm.interrupted:
        return "queued"
    if view.finished and view.finished.diverged:
        return "diverged"
    return "damaged" if view.damage and view.status is Status.FINISHED else view.status.value


def _group_status_text(group: Sequence[RunView], context: _Context) -> str:
    """Return how many seeds have finished, and the status of the most important other one."""
    running = [view for view in group if view.status is Status.RUNNING]
    finished = sum(view.status is Status.FINISHED for view in group)
    if any(view.active_on_slurm for view in group):
        return _slurm_group_text(group, finished, context)
    count = f"{finished}/{len(group)} seeds"
    if running:
        return f"{count}, {_status_text(running[0], context, wide=False)}" if context.wide else f"{count}, running"
    if finished == len(group):
        return f"finished, {len(group)} seeds" if context.wide else count
    foremost = min(group, key=lambda view: (_rank(view), context.queue_positions.get(view.run, 0)))
    if context.wide and foremost.run in context.queue_positions:
        return f"{count}, {_status_text(foremost, context, wide=False)}"
    return f"{count}, {foremost.status.value}"


def _status_text(view: RunView, context: _Context, *, wide: bool | None = None) -> str:
    """Return the status of a run in about 16 characters, or twice as many if ``wide``."""
    wide = context.wide if wide is None else wide
    epochs, (epoch, step) = view.info.settings.epochs, view.position
    if view.problem:
        return "unreadable"
    if view.run in context.problems:
        return "not answering" if context.problems[view.run] == FILES_BLOCKED else "unreadable"
    if view.status is Status.FINISHED and view.finished:
        if view.finished.diverged:
            return "diverged"
        if view.info.origin == "imported":
            return "imported"
        if view.failed:
            return "test failed"
        return "stopped early" if view.finished.stopped_early else "finished"
    if view.active_on_slurm and not view.unattended:
        return _slurm_text(view, wide=wide)
    if view.status is Status.RUNNING:
        if view.stopping:
            return "stopping"
        if epoch > epochs or view.finished:
            return "testing"
        if view.progress is None and not view.epochs:
            return "starting"
        if not wide:
            left = clock(view.seconds_left)
            return f"{epoch}/{epochs} {left} left" if view.seconds_left is not None else f"{epoch}/{epochs}"
        steps = f" step {step}/{view.progress.steps}" if view.progress else ""
        return f"epoch {epoch}/{epochs}{steps}, {seconds(view.seconds_left)} left"
    if view.info.origin == "imported":
        return f"imported, {view.position[0] - 1}/{epochs}"
    if view.run in context.queue_positions:
        position = context.queue_positions[view.run]
        return f"queued, {position} of {len(context.queue_positions)}" if wide else f"queued {position}"
    if view.unattended:
        return "queued, not by you" if wide else "queued"
    if view.status is Status.LOST and view.finished:
        return "lost in its test"
    if view.status in (Status.STOPPED, Status.LOST):
        return f"{view.status.value} in {min(epoch, epochs)}/{epochs}"
    return view.status.value


def _slurm_group_text(group: Sequence[RunView], finished: int, context: _Context) -> str:
    """Return how many seeds have finished and train, some of them on SLURM, and the most frequent reason of others."""
    from lmconsole.engine.slurm.reasons import describe_task  # not needed before there are such runs

    running = sum(view.status is Status.RUNNING and not view.slurm.interrupted for view in group)
    if not finished:
        count = f"{running} of {len(group)} running"
    else:
        seeds = " seeds" if context.wide else ""
        count = f"{finished}/{len(group)}{seeds}, {running} running"
    reasons = Counter(words for view in group if view.active_on_slurm and (words := describe_task(view)))
    return f"{count}; {reasons.most_common(1)[0][0]}" if reasons and context.wide else count


def _slurm_text(view: RunView, *, wide: bool) -> str:
    """Return where a run trains on SLURM, or why it does not."""
    from lmconsole.engine.slurm.reasons import describe_task, starts

    epochs, epoch = view.info.settings.epochs, view.position[0]
    words, where = describe_task(view), f" on {escape_control_characters(view.node)}" if view.node else ""
    reason = f", {escape_control_characters(words)}".replace("\n", " ") if words else ""
    if view.slurm.interrupted:
        return f"interrupted{reason}" if wide and reason else f"interrupted {min(epoch, epochs)}/{epochs}"
    if view.status is Status.QUEUED:
        if starts(view):
            return f"starting{where}"
        return f"queued{reason}" if wide or not reason else reason.removeprefix(", ")
    if view.stopping:
        return f"stopping{where}"
    if epoch > epochs or view.finished:
        return f"testing{where}"
    if view.progress is None and not view.epochs:
        return f"starting{where}"
    if not wide or words or view.seconds_left is None:
        return f"{epoch}/{epochs}{where}{reason}"
    return f"epoch {epoch}/{epochs}{where}, {seconds(view.seconds_left)} left"


def _metrics(
    key: str, group: Sequence[RunView], newest: RunView, context: _Context
) -> tuple[tuple[str, ...], tuple[SortKey, ...]]:
    """Return texts and sort keys of train and best validation perplexity (means over the seeds) and its difference to
    the baseline, and of training time and trend of the newest run."""
    train = mean_of_known(view.shown_epoch.train_ppl for view in group if view.shown_epoch)
    valid = mean_valid_ppl(group)
    baseline = context.baseline
    ratio = baseline.ratio(group) if baseline else None
    if baseline and baseline.key == key:
        difference = "baseline"
    elif ratio is None:
        difference = UNKNOWN if baseline and valid is not None else ""
    else:
        difference = change(ratio)
    known = (validation.valid_loss_nats for validation in newest.validations)
    losses = [loss for loss in known if loss is not None and math.isfinite(loss)]
    time_s = newest.elapsed_train_s
    trend = sparkline(losses, SPARK_WIDTH, context.glyphs)
    cells = (perplexity(train), perplexity(valid), difference, clock(time_s), trend)
    values = (train, valid, ratio, time_s, losses[-1] - losses[0] if losses else None)
    return cells, tuple((math.inf if value is None or math.isnan(value) else value, "") for value in values)


def _notes_text(group: Sequence[RunView]) -> str:
    """Return the tags of all runs of a group and the note of the newest of those that have one."""
    if any(view.notes_problem for view in group):
        return "notes unreadable"
    noted = [view.notes for view in group if view.notes != NO_NOTES]
    if not noted:
        return ""
    tags = dict.fromkeys(tag for notes in noted for tag in notes.tags)
    note = next((notes.note for notes in reversed(noted) if notes.note), "")
    return escape_control_characters(Notes(note=note, tags=tuple(tags)).text)


def _text_key(text: str) -> SortKey:
    """Return a sort key by which rows without a text come last."""
    return (0.0, text.lower()) if text else (math.inf, "")
