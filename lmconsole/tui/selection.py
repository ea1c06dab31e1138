"""What is chosen in the table, in terms of experiments and runs, and the curves that belong to it."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from lmconsole.errors import escape_control_characters
from lmconsole.plan.experiment import Experiment
from lmconsole.report.reference import published
from lmconsole.tui.feed import Picture, RunView
from lmconsole.tui.plot.chart import Series
from lmconsole.tui.rows import Row, group_of


class Chosen(NamedTuple):
    """Experiments to train, and the runs that stand for what is chosen: of an experiment its newest group's."""

    experiments: list[Experiment]
    runs: list[RunView]


def by_experiment(picture: Picture) -> dict[int, list[RunView]]:
    """Runs of each experiment by its id, oldest first."""
    found: dict[int, list[RunView]] = {}
    for view in picture.runs.values():
        found.setdefault(view.info.experiment.id, []).append(view)
    return found


def choose(
    picture: Picture, experiments: Iterable[Experiment], checked: Collection[str], highlighted: Row | None
) -> Chosen:
    """What is checked, whether the filter shows it or not, or what is highlighted if nothing is."""
    known, runs = _known(picture, experiments), by_experiment(picture)
    keys = sorted(checked, key=_natural) or ([highlighted.key] if highlighted else [])
    wanted: dict[int, Experiment] = {}
    chosen: dict[str, RunView] = {}
    for key in keys:
        view = picture.runs.get(key)
        number = view.info.experiment.id if view else _number(key)
        if number in known:
            wanted[number] = known[number]
            chosen |= {each.run: each for each in ([view] if view else group_of(runs.get(number, [])))}
    return Chosen(list(wanted.values()), list(chosen.values()))


def still_there(checked: Iterable[str], picture: Picture, experiments: Iterable[Experiment]) -> set[str]:
    """What of ``checked`` has not been deleted since."""
    there = picture.runs.keys() | {f"e{number}" for number in _known(picture, experiments)}
    return there.intersection(checked)


def _known(picture: Picture, experiments: Iterable[Experiment]) -> dict[int, Experiment]:
    """Experiments by their ids, with those that only runs know."""
    there = {view.info.experiment.id: view.info.experiment for view in picture.runs.values()}
    return there | {experiment.id: experiment for experiment in experiments}


def series_of(picture: Picture, views: Iterable[RunView], *, reference: bool) -> list[Series]:
    """Curves for these runs; ``reference`` says whether published results are drawn beside them."""
    several = {number for number, runs in by_experiment(picture).items() if len(runs) > 1}
    made = []
    for slot, view in enumerate(views):
        info = view.info
        seed = f" s{info.seed}" if info.experiment.id in several else ""
        left = (view.seconds_left or 0.0) if view.status.active else 0.0
        made.append(
            Series(
                run=view.run,
                label=escape_control_characters(f"{info.experiment.id} {info.experiment.label}{seed}"),
                slot=slot,
                train=view.curve,
                epochs=view.epochs,
                planned_epochs=info.settings.epochs,
                tokens_per_epoch=info.corpus.tokens.get("train"),
                expected_s=None if view.elapsed_train_s is None else view.elapsed_train_s + left,
                published_ppl=_published(view) if reference else None,
            )
        )
    return made


def _published(view: RunView) -> float | None:
    """The published validation perplexity of this experiment, where the protocol is the published one."""
    experiment = view.info.experiment
    result = published().get(experiment.id)
    if result is None or view.info.preset != "paper" or experiment.overrides:
        return None
    same = (result.model, result.layers, result.optimizer) == (
        experiment.model,
        experiment.layers,
        experiment.optimizer,
    )
    return result.valid_ppl_per_target if same else None


def _number(key: str) -> int:
    return int(key[1:]) if key[1:].isdigit() else -1


def _natural(key: str) -> tuple[int, str]:
    number = key[1:] if key.startswith("e") else key.partition("-")[0]
    return (int(number) if number.isdigit() else 0, key)
