"""Comparisons that need only an order, for runs that diverged: their loss counts as infinite."""

import math

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 9_999
"""Random permutations if there are more than this many; otherwise every one counts, and the p-value is exact."""
SEED = 20_260_101
"""Seed of the random permutations, so that the same results always give the same p-value."""


def rank_permutation_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p-value of a permutation test of the rank sum; ties, such as two infinities, share ranks.

    ``first`` has the shape (m,) and ``second`` (n,). Where the p-value is not exact, it counts the observed order as
    one of the permutations (Phipson and Smyth 2010), so it is never 0.
    """
    from scipy.stats import rankdata

    a = np.asarray(first, dtype=np.float64)
    ranks = rankdata(np.concatenate([a, np.asarray(second, dtype=np.float64)]))
    return _permutation_p(ranks[: len(a)], ranks[len(a) :])


def mean_permutation_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p-value of a permutation test of the difference of means.

    ``first`` has the shape (m,) and ``second`` (n,), with finite values.
    """
    return _permutation_p(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))


def _permutation_p(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import permutation_test

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(a.mean(axis) - b.mean(axis))

    result = permutation_test(
        (first, second), difference, vectorized=True, n_resamples=RESAMPLES, alternative="two-sided", rng=SEED
    )
    return float(result.pvalue)


def is_exact(m: int, n: int) -> bool:
    """Return whether a permutation test of ``m`` and ``n`` seeds goes through every permutation."""
    return math.comb(m + n, n) <= RESAMPLES


def superiority(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float]:
    """Return P(first < second), where ties count half, and the ends of its 95% interval.

    The interval is Newcombe's method 5 (Statistics in Medicine 25, 2006), which stays within 0 and 1.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm, rankdata

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    m, n, z = len(a), len(b), float(norm.ppf(0.975))
    estimate = float((rankdata(np.concatenate([a, b]))[m:].sum() - n * (n + 1) / 2) / (m * n))

    def excess(theta: float) -> float:
        middle = (m + n) / 2 - 1
        spread = 1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - estimate) ** 2 - z**2 * theta * (1 - theta) * spread / (m * n)

    low = 0.0 if estimate == 0 else float(brentq(excess, 0.0, estimate))
    high = 1.0 if estimate == 1 else float(brentq(excess, estimate, 1.0))
    return estimate, low, high


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95% interval of a probability, of ``count`` cases in ``total`` (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)
