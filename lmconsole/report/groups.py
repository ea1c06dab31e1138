"""Which runs one table may compare: the group of a reference run, and in it one run per experiment and seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lmconsole.errors import ExportError
from lmconsole.plan.experiment import APPLIES_TO, MODEL_NAMES, OPTIMIZER_NAMES
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

OWN = frozenset({"model", "layers", "optimizer", "weight_decay", *APPLIES_TO})
"""Settings in which experiments differ by nature; all others a group has in common, and these among the experiments of
one model or optimizer."""


@dataclass(frozen=True)
class Group:
    """Comparable runs: same preset, settings, corpus, precision and origin, any seed."""

    reference: RunInfo
    runs: list[Run]
    """One per experiment and seed, ordered as tables are: GPT-1 before LSTM, layers, optimizer, id, seed."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why other runs of the group are not in it, and how many."""

    @property
    def key(self) -> str:
        """A name for the group that stays the same as runs come and go."""
        own = {*OWN, *self.reference.experiment.overrides}
        traits = {key: value for key, value in _traits(self.reference).items() if key not in own}
        return hashlib.sha256(msgspec.json.encode(traits, order="deterministic")).hexdigest()

    @property
    def seeds(self) -> list[int]:
        """Every seed in it."""
        return sorted({run.info.seed for run in self.runs})


def _traits(info: RunInfo) -> dict[str, object]:
    return {
        "origin": info.origin,
        "preset": info.preset,
        "corpus": info.corpus.sha256,
        "max_tokens": info.corpus.max_tokens,
        "embeddings_sha256": info.embeddings.sha256 if info.embeddings else None,
        **msgspec.to_builtins(info.settings),
    }


def comparable(info: RunInfo, reference: RunInfo) -> bool:
    """Whether both runs belong into one table. What an experiment's own row sets is its business."""
    ours, theirs = _traits(info), _traits(reference)
    free = {"model", "layers", "optimizer", *info.experiment.overrides, *reference.experiment.overrides}
    for key in OWN - free:
        kind = "model" if set(APPLIES_TO.get(key, ())) & set(MODEL_NAMES) else "optimizer"
        if ours[kind] != theirs[kind]:
            free.add(key)
    return all(ours[key] == theirs[key] for key in ours if key not in free)


def choose_group(runs: Sequence[Run], *, preset: str | None = None, run: str | None = None) -> Group:
    """The group of ``run``, or of the run that finished last (under ``preset``); where none has finished, of the newest
    that has an epoch to show. ``runs`` come oldest first.

    Raises ExportError if there is nothing to show.
    """
    candidates = [each for each in runs if preset in (None, each.info.preset) and run in (None, each.run)]
    shown = [each for each in candidates if each.state.epochs]
    finished = [each for each in shown if each.status is Status.FINISHED]
    if not shown:
        raise ExportError(_nothing(runs, candidates, preset), hint="`lmconsole status` shows how the runs stand.")
    reference = max(finished or shown, key=lambda each: each.state.last_t).info
    members = [each for each in runs if comparable(each.info, reference)]
    return _pick(reference, members)


def _nothing(runs: Sequence[Run], candidates: Sequence[Run], preset: str | None) -> str:
    if not runs:
        return "nothing to export: the store has no runs"
    if not candidates:
        known = ", ".join(dict.fromkeys(each.info.preset for each in runs))
        return f"nothing to export: no run of preset {preset!r}; the store has {known}"
    return f"nothing to export: none of {len(candidates)} runs has completed an epoch"


def _pick(reference: RunInfo, members: Sequence[Run]) -> Group:
    """Per experiment and seed the latest finished run, else the latest with an epoch. Seeds of one experiment must
    share its settings too: those of its latest run count."""
    chosen: dict[tuple[int, int], Run] = {}
    left_out: dict[str, int] = {}
    latest: dict[int, RunInfo] = {}
    for run in members:
        if run.state.epochs:
            latest[run.info.experiment.id] = run.info
    for run in members:
        place = run.info.experiment.id, run.info.seed
        if not run.state.epochs:
            _count(left_out, f"{run.status.value} without an epoch")
        elif run.info.settings != latest[place[0]].settings:
            _count(left_out, "older settings of the experiment")
        else:
            if place in chosen:
                _count(left_out, "repeated")
            if place not in chosen or run.status is Status.FINISHED or chosen[place].status is not Status.FINISHED:
                chosen[place] = run
    return Group(reference=reference, runs=sorted(chosen.values(), key=_place), left_out=left_out)


def _count(left_out: dict[str, int], why: str) -> None:
    left_out[why] = left_out.get(why, 0) + 1


def _place(run: Run) -> tuple[str, int, str, int, int]:
    experiment = run.info.experiment
    name = OPTIMIZER_NAMES[experiment.optimizer]
    return experiment.model, experiment.layers, name.lower(), experiment.id, run.info.seed
