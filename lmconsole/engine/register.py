"""Registration of claims, before the runs that they need are queued."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from lmconsole import __version__
from lmconsole.engine.probe import ProbeAnswer, ResolvedRun
from lmconsole.errors import LmconsoleError, StoreError
from lmconsole.plan.claims import show_side, training_seeds
from lmconsole.plan.presets import ranges
from lmconsole.runs.create import next_places, queue_lock
from lmconsole.runs.events import utc_now
from lmconsole.runs.paths import TRASH
from lmconsole.runs.registration import (
    PlannedSetting,
    Registration,
    claims_hash,
    last_number,
    read_registrations,
    write_registration,
)
from lmconsole.runs.store import Run, Store


def claimed_runs(answer: ProbeAnswer) -> list[ResolvedRun]:
    """Return the runs that the claims of a request need, in the order of training."""
    by_id = {run.experiment.id: run for run in answer.runs}
    return [msgspec.structs.replace(by_id[id_], seed=seed) for id_, seed in training_seeds(answer.claims)]


def planned_settings(answer: ProbeAnswer) -> dict[int, PlannedSetting]:
    """Return the experiments of the claims of a request with the runs that they need, by id."""
    runs: dict[int, dict[int, str]] = {}
    for run in claimed_runs(answer):
        runs.setdefault(run.experiment.id, {})[run.seed] = run.config_hash
    return {
        run.experiment.id: PlannedSetting(
            experiment=run.experiment,
            preset=run.preset,
            settings=run.settings,
            corpus=run.corpus,
            embeddings=run.embeddings,
            runs=runs[run.experiment.id],
        )
        for run in answer.runs
    }


def registered(store: Store, answer: ProbeAnswer) -> Registration | None:
    """Return the registration of the claims of a request; None if there is none. Raises StoreError."""
    wanted = claims_hash(answer.claims, planned_settings(answer))
    return next((each for each in read_registrations(store.root) if each.hash == wanted), None)


def check_claims(answer: ProbeAnswer, runs: Iterable[Run]) -> None:
    """Check claims that are not registered yet against the ``runs`` of the store, deleted ones included.

    Raises LmconsoleError if both sides of a contrast would be the same runs, or if results are known already.
    """
    settings = planned_settings(answer)
    problems = _same_runs(answer, settings) + _used_seeds(settings, list(runs))
    if problems:
        raise LmconsoleError("\n".join(problems), hint="A claim is about runs whose results nobody knows yet.")


def _same_runs(answer: ProbeAnswer, settings: Mapping[int, PlannedSetting]) -> list[str]:
    """Return the contrasts of two equal settings that have a seed in common, and so the same runs on both sides."""
    problems = []
    for claim in answer.claims:
        for first, second in claim.contrasts:
            for one, other in ((settings[a], settings[b]) for a in first for b in second):
                shared = [seed for seed in one.runs if seed in other.runs]
                if one.settings == other.settings and shared:
                    problems.append(
                        f"contrast {show_side(first)}, {show_side(second)}: equal settings with the same seeds "
                        f"({ranges(shared)}) are the same runs; give each experiment seeds of its own"
                    )
    return problems


def _used_seeds(settings: Mapping[int, PlannedSetting], runs: Sequence[Run]) -> list[str]:
    """Return the planned seeds with which a run of the same kind has completed an epoch: its result is known, or one
    that a small change of a setting hardly changes, and it may have chosen the setting."""
    problems = []
    for id_, planned in settings.items():
        known = [
            seed
            for seed in planned.runs
            if any(run.info.seed == seed and run.state.epochs and planned.is_of_one_kind_with(run.info) for run in runs)
        ]
        if known:
            noun = "seed" if len(known) == 1 else "seeds"
            problems.append(
                f"experiment {id_}, {noun} {ranges(known)}: already trained with this model, depth and optimizer; "
                "choose other seeds for the claim"
            )
    return problems


def all_runs(store: Store) -> list[Run]:
    """Return the runs of the store and those in its trash, each with its log read. Raises StoreError."""
    return [*store.runs(), *Store(store.root / TRASH).runs()]


def register(store: Store, answer: ProbeAnswer, source: Path | str) -> tuple[Registration, bool]:
    """Register the claims of a request unless they are registered already. Return the registration, and whether it is
    new.

    Raises:
        LmconsoleError: the claims cannot hold: see ``check_claims``.
        StoreError: the store cannot be read or written.
    """
    with queue_lock(store):
        known = registered(store, answer)
        if known is not None:
            return known, False
        runs = all_runs(store)
        check_claims(answer, runs)
        settings = planned_settings(answer)
        made = Registration(
            hash=claims_hash(answer.claims, settings),
            number=1 + last_number(read_registrations(store.root), runs),
            place=next(next_places(store, runs)),
            registered_t=utc_now(),
            source=str(source),
            version=__version__,
            claims=answer.claims,
            settings=settings,
        )
        try:
            write_registration(store.root, made)
        except OSError as error:
            raise StoreError(
                f"{error.filename or store.root}: the claims cannot be registered: {error.strerror}"
            ) from None
        return read_registrations(store.root)[-1], True
