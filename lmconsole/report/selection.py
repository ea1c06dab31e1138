"""Selection of the runs that one export compares: a reference run, and one run per experiment and seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lmconsole.errors import ExportError
from lmconsole.plan.experiment import OPTIMIZER_NAMES
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS, comparable, differ_only_in_seed
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Comparable runs with any seed; see ``runs.comparable``."""

    reference: RunInfo
    runs: list[Run]
    """One per experiment and seed in the order of the tables: GPT-1 before LSTM, layers, optimizer, id, seed."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Numbers of comparable runs that were excluded, by reason."""

    @property
    def key(self) -> str:
        """Identifier of the shared settings, which does not change as runs come and go. It does not depend on the
        contents of the corpus."""
        info = self.reference
        traits = {
            "origin": info.origin,
            "denominator": info.denominator,
            "preset": info.preset,
            "max_tokens": info.corpus.max_tokens,
            "embeddings_sha256": info.embeddings.sha256 if info.embeddings else None,
            **msgspec.to_builtins(info.settings),
        }
        own = {*EXPERIMENT_SETTINGS, *info.experiment.overrides}
        shared = {key: value for key, value in traits.items() if key not in own}
        return hashlib.sha256(msgspec.json.encode(shared, order="deterministic")).hexdigest()

    @property
    def seeds(self) -> list[int]:
        """All seeds, in ascending order."""
        return sorted({run.info.seed for run in self.runs})

    @property
    def by_experiment(self) -> dict[int, list[Run]]:
        """Runs by experiment id in the order of the tables; seeds in ascending order."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.info.experiment.id, []).append(run)
        return found

    @property
    def devices(self) -> list[str]:
        """Names of the devices on which the runs were trained."""
        return list(dict.fromkeys(run.state.started.device_name for run in self.runs if run.state.started))

    @property
    def imported(self) -> bool:
        """Whether the runs were imported rather than trained by lmconsole."""
        return self.reference.origin == "imported"


def choose_group(
    runs: Sequence[Run], *, preset: str | None = None, run: str | None = None, imported: bool | None = None
) -> Group:
    """Return the group of ``run``, or of the run that finished last (under ``preset``). If none has finished, the
    newest run with a complete epoch counts.

    ``imported`` selects imported runs; None selects them only if there are no others. ``runs`` are oldest first.

    Raises:
        ExportError: No run that matches has completed an epoch.
    """
    candidates = [
        each
        for each in runs
        if preset in (None, each.info.preset)
        and run in (None, each.run)
        and imported in (None, each.info.origin == "imported")
    ]
    shown = [each for each in candidates if each.state.epochs]
    if imported is None and any(each.info.origin == "trained" for each in shown):
        shown = [each for each in shown if each.info.origin == "trained"]
    finished = [each for each in shown if each.status is Status.FINISHED]
    if not shown:
        raise ExportError(_nothing_to_export(runs, candidates, preset), hint="`lmconsole status` lists the runs.")
    reference = max(finished or shown, key=lambda each: each.state.last_t).info
    return _select(reference, [each for each in runs if comparable(each.info, reference)])


def _nothing_to_export(runs: Sequence[Run], candidates: Sequence[Run], preset: str | None) -> str:
    if not runs:
        return "nothing to export: the store has no runs"
    if not candidates:
        known = ", ".join(dict.fromkeys(each.info.preset for each in runs))
        if preset is None:
            return "nothing to export: the store has no imported runs"
        return f"nothing to export: no run of preset {preset!r}; the store has {known}"
    failed = sum(each.status is Status.FAILED for each in candidates)
    reason = f" ({failed} failed)" if failed else ""
    return f"nothing to export: none of {len(candidates)} runs has completed an epoch{reason}"


def _select(reference: RunInfo, members: Sequence[Run]) -> Group:
    """Select per experiment and seed the latest finished run, or else the latest with an epoch. The settings of an
    experiment are those of its latest run."""
    selected: dict[tuple[int, int], Run] = {}
    excluded: dict[str, int] = {}
    latest = {run.info.experiment.id: run.info for run in members if run.state.epochs}
    for run in members:
        key = run.info.experiment.id, run.info.seed
        if not run.state.epochs:
            reason = f"{run.status.value} without a complete epoch"
        elif not differ_only_in_seed(run.info, latest[run.info.experiment.id]):
            reason = "with older settings of the experiment"
        else:
            reason = "superseded by another run" if key in selected else ""
            if not reason or run.status is Status.FINISHED or selected[key].status is not Status.FINISHED:
                selected[key] = run
        if reason:
            excluded[reason] = excluded.get(reason, 0) + 1
    return Group(reference=reference, runs=sorted(selected.values(), key=_table_order), excluded=excluded)


def _table_order(run: Run) -> tuple[str, int, str, int, int]:
    experiment = run.info.experiment
    name = OPTIMIZER_NAMES[experiment.optimizer]
    return experiment.model, experiment.layers, name.lower(), experiment.id, run.info.seed
