"""Values of the runs that count for a claim, and the reasons why others do not."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from lmconsole.data.windows import cut_windows
from lmconsole.errors import StoreError
from lmconsole.plan.claims import Claim, Endpoint, Side
from lmconsole.plan.flops import training_flops
from lmconsole.runs.endpoint import read_test_losses, test_nll_best
from lmconsole.runs.registration import PlannedSetting, Registration
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run

Outcome = Literal[
    "counts", "diverged", "target missed", "not queued", "unfinished", "failed", "damaged", "known before"
]


WINDOWS_AGREEMENT = 1e-6
"""Relative difference of a test loss and the sum over its windows that rounding explains."""

RESULTS = ("counts", "diverged", "target missed")
"""Outcomes that have a value, which may be infinite."""


class Replicate(msgspec.Struct, frozen=True, kw_only=True):
    """One planned run of a claim."""

    experiment: int
    """Id of the experiment."""
    seed: int
    """Its seed."""
    run: str | None
    """Id of the run that counts, or is to count; null if there is none yet."""
    outcome: Outcome
    """``counts``, ``diverged`` and ``target missed`` have a value. ``known before``: an equal run was trained before
    the registration, so nobody can claim to have predicted its result."""
    value: float | None
    """Value of the endpoint; null if it is infinite or there is none."""
    test_nll: float | None
    """Test loss in nats per token, whatever the endpoint; null if it is infinite or unknown."""
    best_at_end: bool
    """Whether it has a result and validated best at its last planned epoch, so that longer training may have changed
    it."""


def planned_runs(registration: Registration, runs: Iterable[Run]) -> dict[tuple[int, int], tuple[Run | None, bool]]:
    """Return, for each experiment and seed of the claims, the run that counts and whether its result was known before.

    Of several equal runs the first finished one counts, deleted or not, else the last one queued. ``runs`` are all runs
    of the store and of its trash.
    """
    runs = [run for run in runs if run.info.origin == "trained" and run.info.reproduces is None]
    found: dict[tuple[int, int], tuple[Run | None, bool]] = {}
    for id_, planned in registration.settings.items():
        for seed, config_hash in planned.runs.items():
            equal = [run for run in runs if run.info.seed == seed and planned.decides_same_results(run.info)]
            known = any(run.state.epochs and run.state.first_place <= registration.place for run in equal)
            later = [
                run
                for run in equal
                if run.info.config_hash == config_hash and run.state.first_place > registration.place and run.info.test
            ]
            later.sort(key=lambda run: run.state.first_place)
            finished = [run for run in later if run.status is Status.FINISHED]
            found[id_, seed] = (finished[0] if finished else later[-1] if later else None), known
    return found


def replicates(
    registration: Registration,
    claim: Claim,
    side: Side,
    runs: Mapping[tuple[int, int], tuple[Run | None, bool]],
    target_ppl: float | None = None,
) -> list[Replicate]:
    """Return what became of each planned run of a side, in the order of the plan."""
    return [
        _replicate(registration.settings[id_], seed, *runs[id_, seed], claim.endpoint, target_ppl)
        for id_ in side
        for seed in claim.seeds[id_]
    ]


def _replicate(
    planned: PlannedSetting, seed: int, run: Run | None, known: bool, endpoint: Endpoint, target_ppl: float | None
) -> Replicate:
    outcome, value = _outcome(run, known, endpoint, target_ppl)
    loss = test_nll_best(run) if run else None
    return Replicate(
        experiment=planned.experiment.id,
        seed=seed,
        run=run.run if run else None,
        outcome=outcome,
        value=value if value is not None and math.isfinite(value) else None,
        test_nll=None if loss is None or not math.isfinite(loss) else loss,
        best_at_end=outcome in RESULTS
        and run is not None
        and run.state.finished is not None
        and run.state.finished.best_epoch == planned.settings.epochs,
    )


def _outcome(
    run: Run | None, known: bool, endpoint: Endpoint, target_ppl: float | None
) -> tuple[Outcome, float | None]:
    if known:
        return "known before", None
    if run is None:
        return "not queued", None
    if run.status in (Status.FAILED, Status.LOST):
        return "failed", None
    if run.status is not Status.FINISHED or run.state.finished is None:
        return "unfinished", None
    if run.state.damage or run.problem or not _agrees_with_windows(run):
        return "damaged", None
    if endpoint == "test_nll":
        loss = test_nll_best(run)
        if loss is None:
            return "unfinished", None
        return ("counts", loss) if math.isfinite(loss) else ("diverged", math.inf)
    assert target_ppl is not None
    cost = cost_to_target(run, target_ppl, endpoint)
    return ("counts", cost) if math.isfinite(cost) else ("target missed", math.inf)


def _agrees_with_windows(run: Run) -> bool:
    """Return whether the test loss is that of the losses of the windows, if the run has kept them."""
    loss = test_nll_best(run)
    try:
        kept = read_test_losses(run)
    except StoreError:
        return False
    if kept is None or loss is None or not math.isfinite(loss):
        return True
    return math.isclose(loss, float(kept.nll_nats.sum()) / int(kept.targets.sum()), rel_tol=WINDOWS_AGREEMENT)


def values(claim: Claim, side: Side, found: Sequence[Replicate]) -> tuple[float, ...]:
    """Return the values of a side that are there: of each seed, or the mean of each study whose seeds are all there."""
    known = {(each.experiment, each.seed): _number(each) for each in found}
    if len(side) == 1:
        return tuple(value for value in known.values() if value is not None)
    studies = []
    for id_ in side:
        seeds = [known[id_, seed] for seed in claim.seeds[id_]]
        if None not in seeds:
            studies.append(float(np.mean([value for value in seeds if value is not None])))
    return tuple(studies)


def pairs(first: Sequence[Replicate], second: Sequence[Replicate]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values of the seeds for which both sides have one."""
    both = [
        (one, other)
        for a, b in zip(first, second, strict=True)
        if (one := _number(a)) is not None and (other := _number(b)) is not None
    ]
    return tuple(one for one, _ in both), tuple(other for _, other in both)


def _number(replicate: Replicate) -> float | None:
    return math.inf if replicate.outcome in ("diverged", "target missed") else replicate.value


def cost_to_target(run: Run, target_ppl: float, endpoint: Endpoint) -> float:
    """Return what a finished run spent until its first validation at or below ``target_ppl``; infinite if none was.

    That is seconds of training, or steps, target tokens or FLOPs of training, without validation.
    """
    for each in run.state.validations:
        if each.valid_ppl is not None and each.valid_ppl <= target_ppl:
            seconds = each.elapsed_train_s
            return math.inf if seconds is None else _cost(run, each.passes, seconds, endpoint)
    return math.inf


def _cost(run: Run, epochs: float, seconds: float, endpoint: Endpoint) -> float:
    if endpoint == "seconds":
        return seconds
    settings, corpus = run.info.settings, run.info.corpus
    _, lengths = cut_windows(corpus.tokens["train"], settings.window_tokens)
    if endpoint == "steps":
        return epochs * math.ceil(len(lengths) / settings.batch_size)
    tokens = epochs * int(lengths.sum())
    return tokens if endpoint == "tokens" else tokens * training_flops(settings, corpus.vocabulary).total
