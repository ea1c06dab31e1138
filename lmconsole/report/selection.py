"""Selection of the runs that one export compares: a reference run, and one run per experiment and seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from lmconsole.errors import ExportError
from lmconsole.plan.experiment import OPTIMIZER_NAMES, RECORDING_SETTINGS
from lmconsole.runs.comparable import EXPERIMENT_SETTINGS, comparable, conditions, differ_only_in_seed
from lmconsole.runs.info import RunInfo
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run


class Exclusion(Enum):
    """Reason why a comparable run is not in a group."""

    NO_EPOCH = "no epoch"
    """The run has not completed an epoch."""
    OTHER_SETTINGS = "other settings"
    """A later run of the experiment has other settings."""
    SUPERSEDED = "superseded"
    """Another run of the experiment has the same settings and seed."""
    REPRODUCTION = "reproduction"
    """The run was trained only to see whether another one can be reproduced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs of any seed that are comparable with a reference run; see ``runs.comparable``.

    The runs need not be comparable with each other where the reference overrides a setting, and the reference need not
    be one of them: a later run of its experiment can take its place.
    """

    reference: RunInfo
    runs: list[Run]
    """One per experiment and seed, sorted by model, layers, optimizer, experiment id and seed."""
    excluded: list[tuple[Run, Exclusion]]
    """Comparable runs that are not in the group."""

    @property
    def key(self) -> str:
        """Hash of the reference's conditions and settings, for ``data/runs`` and the manifest.

        It leaves out the contents of the corpus, ``EXPERIMENT_SETTINGS``, ``RECORDING_SETTINGS``, and what the
        reference overrides. It stays the same as comparable runs without overrides come and go, but changes when a run
        that overrides other settings becomes the reference. Groups that differ only in what is left out have the same
        key.
        """
        info = self.reference
        left_out = {"corpus_sha256", *EXPERIMENT_SETTINGS, *RECORDING_SETTINGS, *info.experiment.overrides}
        values = {**conditions(info), **msgspec.to_builtins(info.settings)}
        shared = {key: value for key, value in values.items() if key not in left_out}
        return hashlib.sha256(msgspec.json.encode(shared, order="deterministic")).hexdigest()

    @property
    def seeds(self) -> list[int]:
        """All seeds, in ascending order."""
        return sorted({run.info.seed for run in self.runs})

    @property
    def by_experiment(self) -> dict[int, list[Run]]:
        """Runs by experiment id, in the order of ``runs``."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.info.experiment.id, []).append(run)
        return found

    @property
    def devices(self) -> list[str]:
        """Names of the devices on which the runs were trained."""
        return list(dict.fromkeys(run.state.started.device_name for run in self.runs if run.state.started))

    @property
    def unigram_ppl(self) -> dict[str, float]:
        """Perplexity of each split for a unigram model; empty if no run states it. Runs of the same tokens with another
        window length have at most one target more or less."""
        infos = (self.reference, *(run.info for run in self.runs))
        return next((info.corpus.unigram_ppl for info in infos if info.corpus.unigram_ppl), {})

    @property
    def imported(self) -> bool:
        """Whether the runs were imported rather than trained by lmconsole."""
        return self.reference.origin == "imported"


def choose_group(
    runs: Sequence[Run], *, preset: str | None = None, run_id: str | None = None, imported: bool | None = None
) -> Group:
    """Return the group whose reference is, of the finished runs, the one that was queued last or, if none has finished,
    that of the runs that have completed an epoch.

    Args:
        runs: All runs of a store, oldest first.
        preset: Only a run of this preset can be the reference.
        run_id: Only this run can be the reference.
        imported: Whether the reference is an imported run. If None, it is one only if no trained run can be.

    Raises:
        ExportError: No run that matches has completed an epoch.
    """
    candidates = matching_runs(runs, preset=preset, run_id=run_id, imported=imported)
    if run_id is not None and (original := candidates[0].info.reproduces) is not None:
        raise ExportError(f"{run_id}: a reproduction, which no export shows", hint=f"Its original is {original}.")
    with_epoch = [run for run in candidates if run.state.epochs and run.info.reproduces is None]
    if not with_epoch:
        failed = sum(run.status is Status.FAILED for run in candidates)
        reason = f" ({failed} failed)" if failed else ""
        subject = "the run has not" if len(candidates) == 1 else f"none of {len(candidates)} runs has"
        raise _nothing_to_export(f"{subject} completed an epoch{reason}")
    if imported is None:
        with_epoch = [run for run in with_epoch if run.info.origin == "trained"] or with_epoch
    finished = [run for run in with_epoch if run.state.finished]
    reference = (finished or with_epoch)[-1].info
    return _select(reference, [run for run in runs if comparable(run.info, reference)])


def matching_runs(
    runs: Sequence[Run], *, preset: str | None = None, run_id: str | None = None, imported: bool | None = None
) -> list[Run]:
    """Return the runs of this preset, id and origin, each of which may be None for any.

    Raises:
        ExportError: There are none.
    """
    if not runs:
        hint = "Train an experiment with `lmconsole run ID`, or name another store with --runs."
        raise ExportError("nothing to export: the store has no runs", hint=hint)
    found = [
        run
        for run in runs
        if (preset is None or run.info.preset == preset)
        and (run_id is None or run.run == run_id)
        and (imported is None or (run.info.origin == "imported") == imported)
    ]
    if not found:
        raise _nothing_to_export(_explain_no_match(runs, preset, run_id, imported))
    return found


def _nothing_to_export(reason: str) -> ExportError:
    return ExportError(f"nothing to export: {reason}", hint="`lmconsole status` lists the runs.")


def _explain_no_match(runs: Sequence[Run], preset: str | None, run_id: str | None, imported: bool | None) -> str:
    """Name the filters that no run passes together."""
    origin = {None: "", True: "imported ", False: "trained "}[imported]
    known = dict.fromkeys(run.info.preset for run in runs)
    if preset is not None and preset not in known:
        return f"no {origin}run of preset {preset!r}; the store has {', '.join(known)}"
    of_preset = "" if preset is None else f" of preset {preset!r}"
    with_id = "" if run_id is None else f" with the id {run_id!r}"
    return f"no {origin}run{of_preset}{with_id}"


def _select(reference: RunInfo, comparable_runs: Sequence[Run]) -> Group:
    """Select per experiment and seed the latest finished run, or else the latest that has completed an epoch.

    An experiment is shown with the settings of its latest run that has completed an epoch, finished or not, so that an
    export follows its current definition. ``comparable_runs`` are oldest first.
    """
    originals = [run for run in comparable_runs if run.info.reproduces is None]
    latest = {run.info.experiment.id: run.info for run in originals if run.state.epochs}
    selected: dict[tuple[int, int], Run] = {}
    excluded = [(run, Exclusion.REPRODUCTION) for run in comparable_runs if run.info.reproduces is not None]
    for run in originals:
        if not run.state.epochs:
            excluded.append((run, Exclusion.NO_EPOCH))
            continue
        if not differ_only_in_seed(run.info, latest[run.info.experiment.id]):
            excluded.append((run, Exclusion.OTHER_SETTINGS))
            continue
        key = run.info.experiment.id, run.info.seed
        earlier = selected.get(key)
        if earlier is None:
            selected[key] = run
        elif earlier.state.finished and not run.state.finished:
            excluded.append((run, Exclusion.SUPERSEDED))
        else:
            excluded.append((earlier, Exclusion.SUPERSEDED))
            selected[key] = run
    return Group(reference=reference, runs=sorted(selected.values(), key=_table_order), excluded=excluded)


def _table_order(run: Run) -> tuple[str, int, str, int, int]:
    experiment = run.info.experiment
    name = OPTIMIZER_NAMES[experiment.optimizer]
    return experiment.model, experiment.layers, name.lower(), experiment.id, run.info.seed
