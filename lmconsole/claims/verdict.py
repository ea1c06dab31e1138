"""Verdicts on planned contrasts, at most one for each, with Holm's correction over all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from lmconsole.claims.difference import Array, Difference, paired, welch
from lmconsole.claims.power import detectable_sd
from lmconsole.claims.ranks import mean_permutation_p, rank_permutation_p, share_interval, superiority
from lmconsole.errors import LmconsoleError

ALPHA = 0.05
"""Probability that a family of contrasts without any difference gets a verdict of lower or higher."""
MIN_SEEDS = 3
"""Fewer seeds on a side get no verdict."""
MIN_SEEDS_RANKS = 5
"""Fewer seeds on a side get no verdict by ranks, which diverged runs need."""
MIN_PAIRS = 6
MIN_SEEDS_SUPERIORITY = 10
MAX_SEEDS_PERMUTATION = 50
"""With more seeds, a permutation test of the means says what Welch's test says, and takes long."""


class Verdict(StrEnum):
    """Statement about the first setting of a contrast, compared with its second."""

    LOWER = "lower"
    HIGHER = "higher"
    EQUIVALENT = "equivalent"
    """The 90% interval of the difference is inside ±delta."""
    INCONCLUSIVE = "inconclusive"
    """Neither a difference nor equivalence is shown. This is not evidence of no difference."""
    UNFINISHED = "unfinished"
    """Fewer seeds than planned: a verdict now would be one of several looks."""
    DESCRIPTION = "description only"
    """Too few seeds for a verdict, even if all that were planned are there."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two settings with the values of their seeds.

    Values are in nats per token for losses. ``math.inf`` is the value of a diverged run where lower values are better,
    ``-math.inf`` where higher ones are.
    """

    first: str
    second: str
    first_values: tuple[float, ...]
    second_values: tuple[float, ...]
    paired: bool = False
    """Whether values at the same place belong together, which was declared before the runs."""
    ranks: bool = False
    """Whether only the order of the values is compared, as of times that can be infinite."""


class Interval(msgspec.Struct, frozen=True):
    """Both ends of an interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of a contrast."""

    name: str
    """Value of the column or setting."""
    seeds: int
    """Number of runs, diverged ones included."""
    diverged: int
    """Runs whose value is not finite."""
    diverged_share: Interval
    """Exact 95% interval of the probability that a run diverges (Clopper and Pearson)."""
    mean: float | None
    """Null if a run diverged."""
    sd: float | None
    """Standard deviation over seeds, with n − 1; null for one seed, or if a run diverged."""
    median: float | None = None
    """Median; null if it is infinite."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a contrast. Differences are first − second, in the unit of the values."""

    first: Side
    """The setting on the left of the difference."""
    second: Side
    """The setting on the right."""
    difference: float | None
    """Difference of the means; null if a run diverged."""
    interval: Interval | None
    """Its 95% interval, for this comparison alone; null for fewer than three seeds or values that do not vary."""
    equivalence_interval: Interval | None
    """Its 90% interval, which shows equivalence if it is inside ±delta."""
    ratio: float | None
    """exp(difference): the ratio of geometric means if the values are logarithms, as of perplexities; else null, also
    if it is too large for a number."""
    ratio_interval: Interval | None
    """Its 95% interval."""
    test: str | None
    """Test that gives ``p``: Welch's t, paired t or rank permutation; null if there are too few seeds, or fewer than
    planned."""
    p: float | None
    """Two-sided p-value, before correction."""
    p_adjusted: float | None
    """The same after Holm's correction over all contrasts."""
    permutation_p: float | None
    """Two-sided p-value of a permutation test of the means, a check for five to fifty seeds."""
    superiority: float | None
    """Probability that a run of the first is below one of the second, ties counting half; from ten seeds on."""
    superiority_interval: Interval | None
    """Its 95% interval."""
    detectable_sd: float | None
    """Difference in standard deviations that these seeds detect with 80% power, before correction."""
    verdict: Verdict
    """Statement about the first setting, compared with the second."""


def holm(p_values: ArrayLike) -> Array:
    """Return p-values adjusted for all contrasts of the last axis (Holm 1979). NaN counts as 1."""
    p = np.nan_to_num(np.asarray(p_values, dtype=np.float64), nan=1.0)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = p.shape[-1] - np.arange(p.shape[-1])
    raised = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    adjusted: Array = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), -1)
    return adjusted


def compare(
    contrasts: Sequence[Contrast], *, delta: float | None = None, planned: int | None = None, log: bool = False
) -> list[Comparison]:
    """Return the result of each contrast of one family.

    ``delta`` is the largest difference that does not matter, in the unit of the values, and ``planned`` the number of
    seeds on each side, both fixed beforehand. Without ``planned``, the seeds that are there count as planned. ``log``
    says that the values are logarithms. Raises LmconsoleError for a pair without a partner.
    """
    return compare_family([Planned(contrast, delta, planned, log) for contrast in contrasts])


@dataclass(frozen=True, slots=True)
class Planned:
    """A contrast with what was fixed about it beforehand, as for ``compare``."""

    contrast: Contrast
    delta: float | None = None
    planned: int | None = None
    log: bool = False


def compare_family(family: Sequence[Planned]) -> list[Comparison]:
    """Return the result of each contrast of one family, whose contrasts may differ in what was fixed beforehand.

    A contrast with fewer seeds than planned has no p-value and counts as 1 in the correction, so that the verdicts on
    others do not depend on its results so far. Raises LmconsoleError for a pair without a partner.
    """
    tests = [_test(each.contrast) for each in family]
    tests = [
        replace(test, p=math.nan) if _is_unfinished(each.contrast, each.planned) else test
        for each, test in zip(family, tests, strict=True)
    ]
    adjusted = holm([test.p for test in tests])
    return [
        _comparison(each.contrast, test, float(p), each.delta, each.planned, each.log)
        for each, test, p in zip(family, tests, adjusted, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Test:
    name: str | None
    p: float
    """NaN if there is no test."""
    difference: Difference | None
    first_is_lower: bool


def _test(contrast: Contrast) -> _Test:
    """Choose the test: ranks if a run diverged, else the means. The choice depends on divergence alone."""
    first, second = contrast.first_values, contrast.second_values
    if contrast.paired and len(first) != len(second):
        raise LmconsoleError(
            f"{contrast.first} and {contrast.second}: {len(first)} and {len(second)} values cannot be paired"
        )
    fewest = min(len(first), len(second))
    if not fewest:
        return _Test(None, math.nan, None, False)
    if contrast.ranks or _diverged(first) or _diverged(second):
        if fewest < MIN_SEEDS_RANKS:
            return _Test(None, math.nan, None, False)
        p = rank_permutation_p(first, second)
        return _Test("rank permutation", p, None, superiority(first, second)[0] > 0.5)
    difference = paired(first, second) if contrast.paired else welch(first, second)
    if fewest < (MIN_PAIRS if contrast.paired else MIN_SEEDS):
        return _Test(None, math.nan, difference, bool(difference.estimate < 0))
    name = "paired t" if contrast.paired else "Welch's t"
    return _Test(name, float(difference.p), difference, bool(difference.estimate < 0))


def _comparison(
    contrast: Contrast, test: _Test, p_adjusted: float, delta: float | None, planned: int | None, log: bool
) -> Comparison:
    first, second = contrast.first_values, contrast.second_values
    fewest, difference = min(len(first), len(second)), test.difference
    interval = equivalence = None
    if difference is not None and test.name and not math.isnan(difference.low):
        interval = Interval(float(difference.low), float(difference.high))
        equivalence = Interval(float(difference.low90), float(difference.high90))
    estimate = None if difference is None else float(difference.estimate)
    known = test.name is not None and not math.isnan(test.p)
    both_finite = difference is not None
    order = superiority(first, second) if fewest >= MIN_SEEDS_SUPERIORITY else None
    return Comparison(
        first=_side(contrast.first, first),
        second=_side(contrast.second, second),
        difference=estimate,
        interval=interval,
        equivalence_interval=equivalence,
        ratio=_exp(estimate) if log and estimate is not None else None,
        ratio_interval=Interval(_exp(interval.low), _exp(interval.high)) if log and interval else None,
        test=test.name if known else None,
        p=test.p if known else None,
        p_adjusted=p_adjusted if known else None,
        permutation_p=(
            mean_permutation_p(first, second)
            if both_finite
            and _may_permute(first, second)
            and not contrast.paired
            and not _is_unfinished(contrast, planned)
            else None
        ),
        superiority=order[0] if order else None,
        superiority_interval=Interval(order[1], order[2]) if order else None,
        detectable_sd=detectable_sd(fewest) if both_finite and fewest >= MIN_SEEDS and not contrast.paired else None,
        verdict=Verdict.UNFINISHED if _is_unfinished(contrast, planned) else _verdict(test, p_adjusted, delta),
    )


def _is_unfinished(contrast: Contrast, planned: int | None) -> bool:
    return planned is not None and min(len(contrast.first_values), len(contrast.second_values)) < planned


def _verdict(test: _Test, p_adjusted: float, delta: float | None) -> Verdict:
    if test.name is None:
        return Verdict.DESCRIPTION
    if delta is not None and test.difference is not None and bool(test.difference.within(delta)):
        return Verdict.EQUIVALENT
    if p_adjusted <= ALPHA:
        return Verdict.LOWER if test.first_is_lower else Verdict.HIGHER
    return Verdict.INCONCLUSIVE


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _may_permute(first: Sequence[float], second: Sequence[float]) -> bool:
    return min(len(first), len(second)) >= MIN_SEEDS_RANKS and max(len(first), len(second)) <= MAX_SEEDS_PERMUTATION


def _median(values: Sequence[float]) -> float | None:
    median = float(np.median(values)) if values else math.inf
    return median if math.isfinite(median) else None


def _diverged(values: Sequence[float]) -> int:
    return sum(not math.isfinite(value) for value in values)


def _side(name: str, values: Sequence[float]) -> Side:
    diverged = _diverged(values)
    array = np.asarray(values, dtype=np.float64)
    return Side(
        name=name,
        seeds=len(values),
        diverged=diverged,
        diverged_share=Interval(*share_interval(diverged, len(values))) if values else Interval(0.0, 1.0),
        mean=None if diverged or not values else float(array.mean()),
        sd=None if diverged or len(values) < 2 else float(array.std(ddof=1)),
        median=_median(values),
    )
