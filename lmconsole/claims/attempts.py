"""All attempts at the settings of claims: what was trained besides the runs that count, and what it cost."""

from collections.abc import Collection, Sequence

import msgspec

from lmconsole.plan.claims import Side
from lmconsole.plan.flops import run_flops
from lmconsole.runs.paths import TRASH
from lmconsole.runs.registration import Registration
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """Runs with the models, optimizers and data of a claim."""

    counted: int
    """Runs that the claims count."""
    others: int
    """Other finished runs, such as those of earlier claims, of other seeds or of `--fresh`."""
    unfinished: int
    """Runs that failed, were stopped, or are not finished."""
    tuning: int
    """Runs that were not tested, because they served to choose settings."""
    reproductions: int
    """Runs that trained another one once more, to compare the two."""
    deleted: int
    """Those of all of these that are in the trash."""
    train_s: float
    """Training time of all, in seconds."""
    flops: float
    """Floating-point operations of all, as far as they got."""


def count_attempts(registration: Registration, runs: Sequence[Run], counted: Collection[str]) -> Attempts:
    """Count all attempts at the models and optimizers of claims on their corpora. ``counted`` has the names of the runs
    that count, ``runs`` all of the store and of its trash."""
    found = [run for run in runs if _concerns(registration, list(registration.settings), run)]
    rest = [run for run in found if run.run not in counted]
    tuning = [run for run in rest if _is_tuning(run)]
    reproductions = [run for run in rest if run.info.reproduces is not None and not _is_tuning(run)]
    rest = [run for run in rest if not _is_tuning(run) and run.info.reproduces is None]
    finished = [run for run in rest if run.status is Status.FINISHED]
    return Attempts(
        counted=sum(run.run in counted and run.status is Status.FINISHED for run in found),
        others=len(finished),
        unfinished=len(rest)
        - len(finished)
        + sum(run.run in counted and run.status is not Status.FINISHED for run in found),
        tuning=len(tuning),
        reproductions=len(reproductions),
        deleted=sum(run.paths.folder.parent.name == TRASH for run in found),
        train_s=sum(run.state.elapsed_train_s or 0.0 for run in found),
        flops=sum(_flops(run) for run in found),
    )


def tuning_trials(registration: Registration, side: Side, runs: Sequence[Run]) -> int:
    """Return the number of tuning trials of a side before the registration: runs of its architecture, depth and
    optimizer on its corpus that were not tested."""
    return sum(
        _is_tuning(run) and _concerns(registration, side, run) and run.state.first_place < registration.place
        for run in runs
    )


def _is_tuning(run: Run) -> bool:
    return not run.info.test


def _concerns(registration: Registration, ids: Sequence[int], run: Run) -> bool:
    """Return whether a run has the architecture, depth, optimizer and corpus of one of these experiments."""
    settings = run.info.settings
    return run.info.origin == "trained" and any(
        (each.settings.model, each.settings.layers, each.settings.optimizer)
        == (settings.model, settings.layers, settings.optimizer)
        and each.corpus.sha256 == run.info.corpus.sha256
        for each in (registration.settings[id_] for id_ in ids)
    )


def _flops(run: Run) -> float:
    total = run_flops(run.info.settings, run.info.corpus.vocabulary, run.info.corpus.tokens)
    return total * run.state.done(run.info.settings.epochs)
