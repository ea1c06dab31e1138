"""Rules that say which of two settings is better, and how often they are wrong and right on real runs."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from calibration import HIGHER, LOWER, shipped
from numpy.random import Generator
from numpy.typing import NDArray

from lmconsole.claims.difference import Array
from lmconsole.claims.verdict import MIN_SEEDS

SIZES = range(1, 11)
"""Numbers of runs of each setting."""
SGD_SIZES = (3, 5, 10)
SHIFT_SD = 2.0
"""Difference in standard deviations that is added to the runs to measure what the rules find."""
NO_DIFFERENCE, SHIFT = "no difference", f"{SHIFT_SD:g} sd"
SPLITS = 50_000
RESAMPLES, RESAMPLED_SPLITS = 200, 5_000
SEED = 17

Codes = NDArray[np.int8]
"""−1 if the first setting is found to be lower, 1 if higher, 0 without a finding."""


# Rules


def lowest_mean(first: Array, second: Array) -> Codes:
    """Find the setting with the lower mean: the one in bold in many tables."""
    return _codes(first.mean(-1) - second.mean(-1))


def sd_apart(first: Array, second: Array) -> Codes:
    """Find a difference if mean ± standard deviation of both settings do not overlap; nothing for single runs."""
    if first.shape[-1] < 2:
        return np.zeros(len(first), dtype=np.int8)
    difference = first.mean(-1) - second.mean(-1)
    apart = np.abs(difference) > first.std(-1, ddof=1) + second.std(-1, ddof=1)
    return _codes(np.where(apart, difference, 0.0))


def verdict(first: Array, second: Array) -> Codes:
    """Find what ``lmconsole compare`` finds with the planned number of runs."""
    verdicts = shipped(first[:, None], second[:, None], None, first.shape[-1]).verdicts[:, 0]
    return _codes(np.isin(verdicts, HIGHER) * 1.0 - np.isin(verdicts, LOWER))


def _codes(difference: NDArray[np.floating]) -> Codes:
    codes: Codes = np.sign(difference).astype(np.int8)
    return codes


RULES: dict[str, Callable[[Array, Array], Codes]] = {
    "bold the lowest": lowest_mean,
    "mean ± sd apart": sd_apart,
    "lmconsole": verdict,
}


SMALLEST = {"bold the lowest": 1, "mean ± sd apart": 2, "lmconsole": MIN_SEEDS}
"""Smallest number of runs of each setting with which a rule can find anything."""


# Rates


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of random splits in which a rule has a finding."""

    rule: str
    runs: int
    """Runs of each setting."""
    truth: str
    """Either "no difference", where every finding is false, or "2 sd", where the right one is counted."""
    share: float
    low: float
    """Lower end of the 95% percentile interval over runs."""
    high: float


def draw_splits(random: Generator, pool: NDArray[np.intp], size: int, count: int) -> NDArray[np.intp]:
    """Return ``count`` splits, (count, size): places in the list of runs, none of them twice in a split.

    ``pool`` has the place of a run as often as it was resampled.
    """
    kept: list[NDArray[np.intp]] = []
    while sum(map(len, kept)) < count:
        drawn = pool[random.integers(len(pool), size=(count, size))]
        ordered = np.sort(drawn, axis=1)
        kept.append(drawn[(ordered[:, 1:] != ordered[:, :-1]).all(axis=1)])
    return np.concatenate(kept)[:count]


def split_shares(
    values: Array, pool: NDArray[np.intp], n: int, count: int, random: Generator, shift: float
) -> dict[tuple[str, str], float]:
    """Return, by rule and truth, the share of ``count`` splits in which a rule has a finding."""
    drawn = values[draw_splits(random, pool, 2 * n, count)]
    adam, placebo = drawn[:, :n], drawn[:, n:]
    shares = {}
    for name, rule in RULES.items():
        shares[name, NO_DIFFERENCE] = float((rule(adam, placebo) != 0).mean())
        shares[name, SHIFT] = float((rule(adam, placebo - shift) == 1).mean())
    return shares


def rates(
    values: Array,
    sizes: Sequence[int] = SIZES,
    splits: int = SPLITS,
    resamples: int = RESAMPLES,
    resampled_splits: int = RESAMPLED_SPLITS,
) -> list[Rate]:
    """Return the rates of all rules and their intervals.

    Splits share runs, so the intervals are those of a bootstrap over runs: the runs are resampled, and the splits drawn
    again from what was resampled, without a run twice in one split. Drawing only some of the splits makes the intervals
    slightly wider.
    """
    shift = SHIFT_SD * float(values.std(ddof=1))
    every = np.arange(len(values))
    found = []
    for n in sizes:
        random = np.random.default_rng([SEED, n])
        shares = split_shares(values, every, n, splits, random, shift)
        resampled = [
            split_shares(values, random.choice(every, len(every)), n, resampled_splits, random, shift)
            for _ in range(resamples)
        ]
        for (rule, truth), share in shares.items():
            low, high = np.quantile([each[rule, truth] for each in resampled], [0.025, 0.975])
            found.append(Rate(rule, n, truth, share, min(float(low), share), max(float(high), share)))
    return sorted(found, key=lambda rate: (rate.truth != NO_DIFFERENCE, list(RULES).index(rate.rule), rate.runs))


@dataclass(frozen=True, slots=True)
class SgdFinding:
    """Findings of a rule on SGD and Adam in all subsets of their seeds."""

    rule: str
    runs: int
    """Runs of each setting in a subset."""
    subsets: int
    adam_lower: float
    """Share of the subsets in which the rule finds Adam lower."""
    sgd_lower: float


def sgd_findings(adam: Array, sgd: Array) -> list[SgdFinding]:
    """Apply the rules to every subset of n seeds of Adam and of n seeds of SGD."""
    found = []
    for n in SGD_SIZES:
        sides = [np.array([*itertools.combinations(side, n)]) for side in (adam, sgd)]
        first = np.repeat(sides[0], len(sides[1]), axis=0)
        second = np.tile(sides[1], (len(sides[0]), 1))
        for name, rule in RULES.items():
            codes = rule(first, second)
            found.append(SgdFinding(name, n, len(codes), float((codes == -1).mean()), float((codes == 1).mean())))
    return found
