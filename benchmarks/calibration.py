"""Simulate whole comparisons whose truth is known, and count how often their verdicts are wrong.

A comparison is a family of contrasts with independent samples. Contrasts that share a setting tend to err together, so
their family errs less often. p-values, intervals and the correction are computed
by ``lmconsole.claims``, for all experiments at once; ``differs_from_shipped`` compares the verdicts with those of
``lmconsole.claims.verdict.compare`` on the same data.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lmconsole.claims.difference import Array, welch
from lmconsole.claims.power import detectable_sd, half_width_sd, power
from lmconsole.claims.ranks import RESAMPLES, SEED, is_exact
from lmconsole.claims.verdict import ALPHA, MIN_SEEDS, MIN_SEEDS_RANKS, Contrast, Verdict, compare, holm

EXPERIMENTS = 20_000
VERDICTS = tuple(Verdict)
"""Verdicts by their code in an ``Outcome``."""
LOWER, HIGHER, EQUIVALENT, INCONCLUSIVE, UNFINISHED, DESCRIPTION = range(len(VERDICTS))

STRESS_ERROR = 0.075
"""Largest error of a family that is accepted where an assumption of the test does not hold."""
LEAST_COVERAGE = 0.93
MC_ERRORS = 3
"""Monte Carlo standard errors by which a bound may be missed."""
DELTA_SE = 8.0
"""Delta of the equivalence cells in standard errors of the difference: the error is largest where only one of both
one-sided tests is in doubt."""
SIZES = ((3, 3), (5, 5), (10, 10), (3, 10))
FAMILIES = (1, 6, 12)
LOOKS = tuple(range(3, 11))
"""Numbers of seeds at which results are seen before the planned ten are there, and at ten."""
POWER_SD = (1.0, 2.0, 3.0)
CHECKED_CONTRASTS = 24
"""Contrasts of each cell whose verdict is compared with the one that ships."""

Codes = NDArray[np.int8]


# Populations


@dataclass(frozen=True, slots=True)
class Population:
    """Results of the runs of two settings that do not differ in their mean."""

    name: str
    draw: Callable[[Generator, tuple[int, ...]], Array]
    """Values with mean 0 and variance 1."""
    sds: tuple[float, float] = (1.0, 1.0)
    diverged: float = 0.0
    """Probability that a run diverges."""

    def samples(self, random: Generator, shape: tuple[int, ...], m: int, n: int) -> tuple[Array, Array]:
        """Return values of the shapes (\\*shape, m) and (\\*shape, n)."""
        sides = []
        for size, sd in zip((m, n), self.sds, strict=True):
            values = sd * self.draw(random, (*shape, size))
            if self.diverged:
                values[random.random(values.shape) < self.diverged] = math.inf
            sides.append(values)
        return sides[0], sides[1]

    def standard_error(self, m: int, n: int) -> float:
        return math.sqrt(self.sds[0] ** 2 / m + self.sds[1] ** 2 / n)


def _normal(random: Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_normal(shape)


def _log_normal(random: Generator, shape: tuple[int, ...]) -> Array:
    return (np.exp(random.standard_normal(shape)) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def _t3(random: Generator, shape: tuple[int, ...]) -> Array:
    return random.standard_t(3, shape) / math.sqrt(3)


NORMAL = Population("normal", _normal)
STRESS = (
    Population("sd 1:4", _normal, (1.0, 4.0)),
    Population("sd 4:1", _normal, (4.0, 1.0)),
    Population("log-normal", _log_normal),
    Population("t₃", _t3),
    Population("10% diverged", _normal, diverged=0.1),
)


# Verdicts on many experiments at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdicts and 95% intervals of contrasts, of the shape (experiments, contrasts)."""

    verdicts: Codes
    low: Array
    """NaN where a contrast has no interval."""
    high: Array

    @property
    def decided(self) -> NDArray[np.bool_]:
        return np.isin(self.verdicts, (LOWER, HIGHER))


Method = Callable[[Array, Array, float | None, int], Outcome]
"""Function of both samples, of the shapes (experiments, contrasts, m) and (experiments, contrasts, n), of delta and of
the planned number of seeds."""


def shipped(first: Array, second: Array, delta: float | None, planned: int) -> Outcome:
    """Decide as ``lmconsole.claims.verdict.compare`` does."""
    m, n = first.shape[-1], second.shape[-1]
    diverged = np.asarray(~(np.isfinite(first).all(-1) & np.isfinite(second).all(-1)))
    difference = welch(np.where(diverged[..., None], 0.0, first), np.where(diverged[..., None], 0.0, second))
    tested = np.where(diverged, min(m, n) >= MIN_SEEDS_RANKS, min(m, n) >= MIN_SEEDS)
    p = np.where(diverged | ~tested, math.nan, difference.p)
    first_is_lower = np.asarray(difference.estimate < 0)
    by_ranks = diverged & tested
    if by_ranks.any():
        p[by_ranks], first_is_lower[by_ranks] = rank_tests(first[by_ranks], second[by_ranks])
    verdicts = np.full(p.shape, INCONCLUSIVE, dtype=np.int8)
    found = np.asarray(holm(p) <= ALPHA)
    verdicts[found] = np.where(first_is_lower[found], LOWER, HIGHER)
    if delta is not None:
        verdicts[difference.within(delta) & ~diverged & tested] = EQUIVALENT
    verdicts[~tested] = DESCRIPTION
    if min(m, n) < planned:
        verdicts[:] = UNFINISHED
    shown = tested & ~diverged
    return Outcome(verdicts, np.where(shown, difference.low, math.nan), np.where(shown, difference.high, math.nan))


def rank_tests(first: Array, second: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return the p-values of ``lmconsole.claims.ranks.rank_permutation_p``, and whether the first tends to be lower.

    ``first`` has the shape (experiments, m) and ``second`` (experiments, n). All experiments share the permutations,
    since those that ship depend on m and n only; sums of ranks are multiples of 1/2, so they are compared exactly.
    """
    from scipy.stats import rankdata

    m, n = first.shape[-1], second.shape[-1]
    ranks = rankdata(np.concatenate([first, second], -1), axis=-1).astype(np.float32)
    observed, chosen = ranks[:, :m].sum(-1), _permutations(m, n)
    added = 0 if is_exact(m, n) else 1
    p = np.empty(len(ranks))
    for start in range(0, len(ranks), 500):
        part = slice(start, start + 500)
        sums = ranks[part] @ chosen
        below, above = (
            (np.count_nonzero(each, axis=1) + added) / (chosen.shape[1] + added)
            for each in (sums <= observed[part, None], sums >= observed[part, None])
        )
        p[part] = np.minimum(2 * np.minimum(below, above), 1.0)
    return p, observed < m * (m + n + 1) / 2


@cache
def _permutations(m: int, n: int) -> NDArray[np.float32]:
    """Return the permutations of the test that ships, (m + n, permutations): 1 for the values of the first sample."""
    from scipy.stats import permutation_test

    seen: list[NDArray[np.float64]] = []

    def record(first: Array, second: Array, axis: int) -> Array:
        seen.append(np.atleast_2d(first))
        return np.asarray(first.mean(axis) - second.mean(axis))

    labels = np.arange(m + n, dtype=np.float64)
    permutation_test((labels[:m], labels[m:]), record, vectorized=True, n_resamples=RESAMPLES, rng=SEED)
    permuted = max(seen, key=len).astype(np.intp)  # the statistic of the samples as they are is computed too
    chosen = np.zeros((len(permuted), m + n), dtype=np.float32)
    np.put_along_axis(chosen, permuted, 1.0, axis=1)
    return np.ascontiguousarray(chosen.T)


def differs_from_shipped(
    first: Array, second: Array, delta: float | None, planned: int, outcome: Outcome, experiments: int
) -> str | None:
    """Compare the first experiments with ``lmconsole.claims.verdict.compare``. Return the first that differs."""
    for number in range(min(experiments, len(first))):
        contrasts = [
            Contrast("first", "second", tuple(map(float, a)), tuple(map(float, b)))
            for a, b in zip(first[number], second[number], strict=True)
        ]
        for place, each in enumerate(compare(contrasts, delta=delta, planned=planned)):
            ends = (each.interval.low, each.interval.high) if each.interval else (math.nan, math.nan)
            own = outcome.low[number, place], outcome.high[number, place]
            same_ends = np.allclose(own, ends, rtol=1e-12, atol=0.0, equal_nan=True)
            if VERDICTS[outcome.verdicts[number, place]] is not each.verdict or not same_ends:
                return f"experiment {number}, contrast {place}: {outcome.verdicts[number, place]}, {own}, not {each}"
    return None


# Cells


@dataclass(frozen=True, slots=True)
class Row:
    """A measured rate and the bound that it should keep."""

    measure: str
    population: str
    first_seeds: int
    second_seeds: int
    contrasts: int
    difference_sd: float
    """True difference of one contrast, in standard deviations of a run; 0 if nothing differs."""
    experiments: int
    value: float
    mc_error: float
    """Monte Carlo standard error of the value."""
    relation: Literal["", "at most", "at least", "equal to"]
    """Required relation of the value to the bound; empty if nothing is required."""
    bound: float
    """Includes the Monte Carlo errors that are allowed for; NaN if nothing is required."""
    met: bool


def _rate(hits: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share and its standard error over experiments, the first axis."""
    by_experiment = hits.reshape(len(hits), -1).mean(-1)
    return float(hits.mean()), float(by_experiment.std() / math.sqrt(len(hits)))


def _random(*cell: object) -> Generator:
    """Return a generator for one cell, so that its result does not depend on the other cells."""
    return np.random.default_rng([SEED, zlib.crc32(repr(cell).encode())])


def _checked(
    method: Method,
    first: Array,
    second: Array,
    delta: float | None = None,
    planned: int | None = None,
    contrasts: int = CHECKED_CONTRASTS,
) -> Outcome:
    """Apply the method. If it is the shipped one, raise AssertionError where a verdict differs from ``compare``."""
    planned = min(first.shape[-1], second.shape[-1]) if planned is None else planned
    outcome = method(first, second, delta, planned)
    if method is shipped:
        sample = max(1, contrasts // first.shape[1])
        different = differs_from_shipped(first, second, delta, planned, outcome, sample)
        assert different is None, different
    return outcome


def is_stress(population: Population, m: int, n: int) -> bool:
    return population.name != NORMAL.name or m != n


def mc_margin(bound: float, experiments: int) -> float:
    """Return the Monte Carlo errors by which a share with the true value ``bound`` may miss it."""
    return MC_ERRORS * math.sqrt(bound * (1 - bound) / experiments)


def error_rows(
    population: Population, m: int, n: int, family: int, experiments: int, method: Method = shipped
) -> list[Row]:
    """Measure families in which no setting differs: the share with a verdict of lower or higher, and the share of 95%
    intervals that contain 0."""
    random = _random("error", population.name, m, n, family)
    outcome = _checked(method, *population.samples(random, (experiments, family), m, n))
    limit = STRESS_ERROR if is_stress(population, m, n) else ALPHA + mc_margin(ALPHA, experiments)
    value, error = _rate(np.asarray(outcome.decided.any(-1)))
    cell = (population.name, m, n, family, 0.0, experiments)
    rows = [Row("family-wise error", *cell, value, error, "at most", limit, value <= limit)]
    known = np.asarray(~np.isnan(outcome.low))
    if known.any() and not known.all():  # intervals without a diverged run
        rows.append(
            Row("without a verdict", *cell, *_rate(np.asarray(outcome.verdicts == DESCRIPTION)), "", math.nan, True)
        )
    if known.any():
        covered = (outcome.low[known] <= 0) & (outcome.high[known] >= 0)
        value, error = _rate(np.asarray(covered))
        rows.append(Row("coverage", *cell, value, error, "at least", LEAST_COVERAGE, value >= LEAST_COVERAGE))
    return rows


def equivalence_rows(
    population: Population, m: int, n: int, experiments: int, method: Method = shipped
) -> Iterator[Row]:
    """Measure the share of verdicts of equivalence at a true difference of exactly delta, above and below 0."""
    limit = ALPHA + mc_margin(ALPHA, experiments)
    delta = DELTA_SE * population.standard_error(m, n)
    for sign in (1, -1):
        first, second = population.samples(_random("equivalence", population.name, m, n, sign), (experiments, 1), m, n)
        outcome = _checked(method, first + sign * delta, second, delta)
        value, error = _rate(np.asarray(outcome.verdicts == EQUIVALENT))
        cell = (population.name, m, n, 1, sign * delta, experiments)
        yield Row("equivalence at delta", *cell, value, error, "at most", limit, value <= limit)


def power_rows(
    difference_sd: float, sizes: Sequence[int], family: int, experiments: int, method: Method = shipped
) -> Iterator[Row]:
    """Measure the share of verdicts of lower for the one contrast of a family that differs, with normal values.

    It should be the power of Welch's test at the level that Holm's method gives to the smallest p-value, and grow with
    the number of seeds.
    """
    before = 0.0
    for n in sizes:
        random = _random("power", difference_sd, n, family)
        first, second = NORMAL.samples(random, (experiments, family), n, n)
        first[:, 0] -= difference_sd
        value, error = _rate(_checked(method, first, second).verdicts[:, 0] == LOWER)
        expected = power(n, difference_sd, ALPHA / family)
        margin = max(mc_margin(expected, experiments), MC_ERRORS / experiments)
        met = abs(value - expected) <= margin and value >= before - margin
        before = value
        yield Row(
            "power", NORMAL.name, n, n, family, difference_sd, experiments, value, error, "equal to", expected, met
        )


def look_rows(population: Population, family: int, experiments: int, method: Method = shipped) -> Iterator[Row]:
    """Measure families whose results are seen at each of ``LOOKS`` while runs finish, and in which nothing differs.

    With the planned number of seeds, only the last look gives verdicts. To stop at the first significant result errs
    far more often, which is measured for comparison.
    """
    most = LOOKS[-1]
    first, second = population.samples(_random("looks", population.name, family), (experiments, family), most, most)
    for measure, planned in (("error over all looks, planned", most), ("error over all looks, not planned", None)):
        wrong = np.zeros(experiments, dtype=bool)
        for n in LOOKS:
            outcome = _checked(method, first[..., :n], second[..., :n], planned=planned, contrasts=2)
            wrong |= outcome.decided.any(-1)
        limit = STRESS_ERROR if is_stress(population, most, most) else ALPHA + mc_margin(ALPHA, experiments)
        value, error = _rate(wrong)
        bound = ("at most", limit, value <= limit) if planned else ("", math.nan, True)
        yield Row(measure, population.name, most, most, family, 0.0, experiments, value, error, *bound)  # type: ignore[arg-type]


def width_rows(experiments: int) -> Iterator[Row]:
    """Compare simulated intervals with ``half_width_sd``, the half width if both samples have the same variance.

    Welch's interval has fewer degrees of freedom if they differ, so the formula is the smallest half width relative to
    the pooled standard deviation. The hundredth of the experiments with the most similar variances comes close to it.
    """
    for n in (2, 3, 5, 10):
        first, second = NORMAL.samples(_random("width", n), (experiments,), n, n)
        found = welch(first, second)
        variances = first.var(-1, ddof=1), second.var(-1, ddof=1)
        relative = (found.high - found.low) / 2 / np.sqrt(sum(variances) / 2)
        similar = np.abs(np.log(variances[0] / variances[1])).argsort()[: experiments // 100]
        value, formula = float(relative[similar].mean()), half_width_sd(n)
        met = relative.min() >= formula * (1 - 1e-9) and abs(value / formula - 1) < 0.01
        cell = (NORMAL.name, n, n, 1, 0.0, experiments)
        error = float(relative[similar].std() / math.sqrt(len(similar)))
        yield Row("half width in sd", *cell, value, error, "equal to", formula, bool(met))
        yield Row(
            "median half width in sd", *cell, float(np.median(found.high - found.low) / 2), 0.0, "", math.nan, True
        )


def cells() -> Iterator[tuple[Population, int, int]]:
    """All populations and numbers of seeds; equal numbers need only one order of unequal variances."""
    for population in (NORMAL, *STRESS):
        for m, n in SIZES:
            if m != n or population.sds[0] <= population.sds[1]:
                yield population, m, n


def calibrate(experiments: int = EXPERIMENTS) -> Iterator[Row]:
    """Measure every cell."""
    for population, m, n in cells():
        for family in FAMILIES:
            yield from error_rows(population, m, n, family, experiments)
        yield from equivalence_rows(population, m, n, experiments)
    sizes = [m for m, n in SIZES if m == n]
    for family in FAMILIES:
        for difference_sd in POWER_SD:
            yield from power_rows(difference_sd, sizes, family, experiments)
    for n in sizes:
        yield from power_rows(detectable_sd(n), [n], 1, experiments)
    for family in FAMILIES:
        yield from look_rows(NORMAL, family, experiments)
    for population in STRESS:
        if population.sds[0] <= population.sds[1]:
            yield from look_rows(population, 1, experiments)
    yield from width_rows(experiments)
