"""Registered claims, evaluated on the runs of a store."""

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from lmconsole.claims.attempts import Attempts, count_attempts, tuning_trials
from lmconsole.claims.replicates import RESULTS, Replicate, pairs, planned_runs, replicates, values
from lmconsole.claims.verdict import Comparison, Contrast, Planned, Verdict, compare_family
from lmconsole.plan.claims import ENDPOINT_UNITS, Claim, Endpoint, Side
from lmconsole.plan.claims import replicates as planned_replicates
from lmconsole.runs.registration import Registration
from lmconsole.runs.store import Run

UNLEARNED_NATS = 0.1
"""A test loss less than this below that of a uniform guess shows hardly any learning, where that of a unigram model is
unknown."""

SUPPORTED = (Verdict.LOWER, Verdict.HIGHER, Verdict.EQUIVALENT)


class ClaimedContrast(msgspec.Struct, frozen=True, kw_only=True):
    """One contrast of a claim, for one target if it has any."""

    claim: str
    """Name of the claim."""
    first: Side
    """Experiments on the left of the difference: one setting, or several studies."""
    second: Side
    """Experiments on the right."""
    endpoint: Endpoint
    """Value of each run that is compared."""
    unit: str
    """Unit of its values."""
    target_ppl: float | None
    """Validation perplexity to reach; null for the test loss."""
    delta: float | None
    """Largest difference that does not matter; null if none was fixed."""
    planned: int
    """Replicates planned on each side."""
    of_optimizers: bool
    """Whether the replicates are independent studies, so that the comparison is one of optimizers; otherwise they are
    seeds, and it is one of two settings."""
    paired: bool
    """Whether runs with the same seed are compared in pairs, as declared beforehand."""
    decaying: bool
    """Whether a learning rate decays: rankings on the way to a target may then flip later."""
    tuning: tuple[int, int]
    """Tuning trials of each side that this store has."""
    unlearned: tuple[bool, bool]
    """Whether the median test loss of each side is not below that of a unigram model or, where that is unknown, less
    than 0.1 nats per token below that of a uniform guess over the vocabulary."""
    unigram_nats: tuple[float | None, float | None]
    """Test loss of a unigram model on the corpus of each side, in nats per token; null where it is unknown."""
    first_runs: tuple[Replicate, ...]
    """Planned runs of the first side."""
    second_runs: tuple[Replicate, ...]
    """Planned runs of the second side."""
    result: Comparison
    """Difference, interval, p-value and verdict."""


class EvaluatedClaims(msgspec.Struct, frozen=True, kw_only=True):
    """The registered claims of one file and what the runs show."""

    hash: str
    """Hash by which the claims are known."""
    registered_t: str
    """Time of the registration: UTC, ISO 8601."""
    place: int
    """Place in the queue at which they were registered."""
    number: int
    """Number of the registration in the store, from 1."""
    source: str
    """File of the claims."""
    planned_runs: int
    """Runs that the claims need."""
    finished_runs: int
    """Those of them that have a result."""
    contrasts: tuple[ClaimedContrast, ...]
    """All comparisons of the file: one family for Holm's correction."""
    attempts: Attempts
    """All runs with the settings of the claims, whatever became of them."""

    @property
    def supported(self) -> bool:
        """Whether every comparison has a verdict of lower, higher or equivalent."""
        return all(each.result.verdict in SUPPORTED for each in self.contrasts)


def evaluate(registration: Registration, runs: Iterable[Run]) -> EvaluatedClaims:
    """Evaluate registered claims. ``runs`` are all runs of the store and of its trash, with their logs read."""
    runs = list(runs)
    found = planned_runs(registration, runs)
    parts = [
        (claim, first, second, target)
        for claim in registration.claims
        for first, second in claim.contrasts
        for target in (claim.targets or (None,))
    ]
    sides = [
        tuple(tuple(replicates(registration, claim, side, found, target)) for side in (first, second))
        for claim, first, second, target in parts
    ]
    family = [
        Planned(
            _contrast(registration, claim, first, second, *both),
            claim.delta,
            planned_replicates(claim, first),
            _log(claim),
        )
        for (claim, first, second, _), both in zip(parts, sides, strict=True)
    ]
    contrasts = tuple(
        ClaimedContrast(
            claim=claim.name,
            first=first,
            second=second,
            endpoint=claim.endpoint,
            unit=ENDPOINT_UNITS[claim.endpoint],
            target_ppl=target,
            delta=claim.delta,
            planned=planned_replicates(claim, first),
            of_optimizers=len(first) > 1,
            paired=claim.paired,
            decaying=any(
                registration.settings[id_].settings.learning_rate_decay != "none" for id_ in (*first, *second)
            ),
            tuning=(tuning_trials(registration, first, runs), tuning_trials(registration, second, runs)),
            unlearned=(
                _is_unlearned(registration, first, both[0]),
                _is_unlearned(registration, second, both[1]),
            ),
            unigram_nats=(_unigram_nats(registration, first), _unigram_nats(registration, second)),
            first_runs=both[0],
            second_runs=both[1],
            result=result,
        )
        for (claim, first, second, target), both, result in zip(parts, sides, compare_family(family), strict=True)
    )
    done = {(each.experiment, each.seed) for both in sides for side in both for each in side if each.outcome in RESULTS}
    return EvaluatedClaims(
        hash=registration.hash,
        registered_t=registration.registered_t,
        place=registration.place,
        number=registration.number,
        source=registration.source,
        planned_runs=sum(len(each.runs) for each in registration.settings.values()),
        finished_runs=len(done),
        contrasts=contrasts,
        attempts=count_attempts(registration, runs, {run.run for run, _ in found.values() if run}),
    )


def _is_unlearned(registration: Registration, side: Side, runs: Sequence[Replicate]) -> bool:
    """Return whether the median test loss of a side is not below that of a unigram model or, where that is unknown,
    above ``UNLEARNED_NATS`` below that of a uniform guess."""
    losses = [each.test_nll for each in runs if each.test_nll is not None]
    if not losses:
        return False
    unigram = _unigram_nats(registration, side)
    if unigram is not None:
        return statistics.median(losses) >= unigram
    guess = min(math.log(registration.settings[id_].corpus.vocabulary) for id_ in side)
    return statistics.median(losses) > guess - UNLEARNED_NATS


def _unigram_nats(registration: Registration, side: Side) -> float | None:
    """Return the test loss of a unigram model in nats per token, the lowest of the corpora of a side; None if it is
    unknown for one."""
    ppls = [registration.settings[id_].corpus.unigram_ppl.get("test") for id_ in side]
    known = [math.log(ppl) for ppl in ppls if ppl is not None]
    return min(known) if len(known) == len(ppls) else None


def _log(claim: Claim) -> bool:
    """Return whether values are logarithms, whose difference is also a ratio of perplexities."""
    return claim.endpoint == "test_nll"


def _contrast(
    registration: Registration,
    claim: Claim,
    first: Side,
    second: Side,
    first_runs: Sequence[Replicate],
    second_runs: Sequence[Replicate],
) -> Contrast:
    names = registration.label(first), registration.label(second)
    if claim.paired:
        return Contrast(*names, *pairs(first_runs, second_runs), paired=True)
    of_both = values(claim, first, first_runs), values(claim, second, second_runs)
    return Contrast(*names, *of_both, ranks=claim.endpoint != "test_nll")
