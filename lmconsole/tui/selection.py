"""The selected experiments and runs, and the curves that belong to them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import DAMAGE_MARK
from lmconsole.plan.experiment import Experiment
from lmconsole.report.reference import is_published_text, published
from lmconsole.runs.comparable import differ_only_in_seed
from lmconsole.tui.baseline import Baseline
from lmconsole.tui.plot.series import Series
from lmconsole.tui.rows import Row, experiment_key, newest_seed_group
from lmconsole.tui.snapshot import RunView, Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Experiments to train, and their runs: for a selected experiment the seeds of its newest group."""

    experiments: list[Experiment]
    runs: list[RunView]


def runs_by_experiment(snapshot: Snapshot) -> dict[int, list[RunView]]:
    """Return the runs of each experiment by its id, oldest first."""
    found: dict[int, list[RunView]] = {}
    for view in snapshot.runs.values():
        found.setdefault(view.info.experiment.id, []).append(view)
    return found


def selection_of(
    snapshot: Snapshot, experiments: Iterable[Experiment], checked: Collection[str], highlighted: Row | None
) -> Selection:
    """Return the checked rows, visible or not, or the highlighted one if none is checked."""
    known, runs = _all_experiments(snapshot, experiments), runs_by_experiment(snapshot)
    keys = sorted(checked, key=_natural_order) or ([highlighted.key] if highlighted else [])
    selected: dict[int, Experiment] = {}
    selected_runs: dict[str, RunView] = {}
    for key in keys:
        view = snapshot.runs.get(key)
        number = view.info.experiment.id if view else _experiment_id(key)
        if number in known:
            selected[number] = known[number]
            group = [view] if view else newest_seed_group(runs.get(number, []))
            selected_runs |= {each.run: each for each in group}
    return Selection(experiments=list(selected.values()), runs=list(selected_runs.values()))


def prune_checked(checked: Iterable[str], snapshot: Snapshot, experiments: Iterable[Experiment]) -> frozenset[str]:
    """Return those of the ``checked`` keys whose runs or experiments still exist."""
    existing = snapshot.runs.keys() | {experiment_key(number) for number in _all_experiments(snapshot, experiments)}
    return frozenset(existing.intersection(checked))


def _all_experiments(snapshot: Snapshot, experiments: Iterable[Experiment]) -> dict[int, Experiment]:
    """Return experiments by id, including those that no file names any more but runs have."""
    of_runs = {view.info.experiment.id: view.info.experiment for view in snapshot.runs.values()}
    return of_runs | {experiment.id: experiment for experiment in experiments}


def find_baseline(snapshot: Snapshot, key: str) -> Baseline | None:
    """Return the run or the newest group of the experiment with this row key; None if it has no run."""
    view = snapshot.runs.get(key)
    if view is not None:
        label = f"{view.info.experiment.id} {view.info.short_seed}"
        return Baseline(key=key, label=label, views=(view,))
    number = _experiment_id(key)
    group = newest_seed_group(runs_by_experiment(snapshot).get(number, []))
    return Baseline(key=key, label=str(number), views=tuple(group)) if group else None


def means_of_seeds(views: Iterable[RunView], series: Iterable[Series]) -> list[Series]:
    """Return ``series`` with one in place of those of runs that differ in their seed alone.

    It is the mean of the finished runs. While fewer than two have finished, it is that of all that have been validated.
    """
    groups: list[list[tuple[RunView, Series]]] = []
    of_experiment: dict[int, list[list[tuple[RunView, Series]]]] = {}
    for view, each in zip(views, series, strict=True):
        known = of_experiment.setdefault(view.info.experiment.id, [])
        group = next((group for group in known if differ_only_in_seed(group[0][0].info, view.info)), None)
        if group is None:
            group = []
            known.append(group)
            groups.append(group)
        group.append((view, each))
    made = []
    for slot, group in enumerate(groups):
        finished = [each for view, each in group if view.finished and view.epochs]
        seeds = finished if len(finished) > 1 else [each for view, each in group if view.validations]
        view, first = group[-1]
        if len(seeds) < 2:
            made += [replace(each, slot=slot) for each in (seeds or [first])]
            continue
        experiment, mark = view.info.experiment, DAMAGE_MARK if any(view.damage for view, _ in group) else ""
        label = escape_control_characters(f"{experiment.id} {experiment.label} ×{len(seeds)}{mark}")
        made.append(replace(first, label=label, slot=slot, seeds=tuple(seeds)))
    return made


def series_for(snapshot: Snapshot, views: Iterable[RunView], *, show_published: bool) -> list[Series]:
    """Return the curves of ``views``, with the published results if ``show_published``."""
    several_runs = {number for number, runs in runs_by_experiment(snapshot).items() if len(runs) > 1}
    made = []
    for slot, view in enumerate(views):
        info = view.info
        seed = f" {info.short_seed}" if info.experiment.id in several_runs else ""
        mark = DAMAGE_MARK if view.damage else ""
        train_s_left = (view.train_seconds_left or 0.0) if view.status.active else 0.0
        made.append(
            Series(
                run=view.run,
                experiment=info.experiment.id,
                label=escape_control_characters(f"{info.experiment.id} {info.experiment.label}{seed}{mark}"),
                slot=slot,
                train=view.curve,
                validations=view.validations,
                planned_epochs=info.settings.epochs,
                tokens_per_epoch=info.corpus.tokens.get("train"),
                expected_s=None if view.elapsed_train_s is None else view.elapsed_train_s + train_s_left,
                published_ppl=_published_ppl(view) if show_published else None,
            )
        )
    return made


def _published_ppl(view: RunView) -> float | None:
    """Return the published validation perplexity of this experiment if the run follows the published protocol."""
    experiment = view.info.experiment
    result = published().get(experiment.id)
    if result is None or view.info.preset != "paper" or experiment.overrides or not is_published_text(view.info):
        return None
    same = (result.model, result.layers, result.optimizer) == (
        experiment.model,
        experiment.layers,
        experiment.optimizer,
    )
    return result.valid_ppl_per_target if same else None


def _experiment_id(key: str) -> int:
    """Return the id in the key of an experiment; -1 for the key of a run."""
    return int(key[1:]) if key.startswith("/") else -1


def _natural_order(key: str) -> tuple[int, str]:
    number = key[1:] if key.startswith("/") else key.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, key)
