"""Power, detectable differences and widths of intervals for a number of seeds.

Differences are in standard deviations of one seed, which are taken to be equal on both sides.
"""

import math
from functools import cache

ALPHA = 0.05
POWER = 0.8


NODES = 64
"""Nodes of the quadrature; twice as many change no power by more than 1e-9."""


@cache
def power(n: int, difference_sd: float, alpha: float = ALPHA) -> float:
    """Return the probability that Welch's two-sided test of ``n`` and ``n`` seeds finds a true difference.

    NaN for fewer than two seeds. With equal variances, the square of the statistic has a noncentral F distribution
    with 1 and 2n − 2 degrees of freedom, and is independent of the share w of the first in the sum of both sample
    variances. The critical value depends only on w, which has a Beta((n − 1) / 2, (n − 1) / 2) distribution, so the
    power is an integral over w.
    """
    from scipy.special import ncfdtr, roots_jacobi
    from scipy.stats import t

    if n < 2:
        return math.nan
    exponent = (n - 1) / 2 - 1
    nodes, weights = roots_jacobi(NODES, exponent, exponent)
    share = (nodes + 1) / 2
    critical = t.ppf(1 - alpha / 2, (n - 1) / (share**2 + (1 - share) ** 2))
    found = 1 - ncfdtr(1, 2 * n - 2, difference_sd**2 * n / 2, critical**2)
    return float((weights * found).sum() / weights.sum())


@cache
def detectable_sd(n: int, alpha: float = ALPHA, wanted: float = POWER) -> float:
    """Return the difference, in standard deviations, that ``n`` seeds on each side detect with power ``wanted``.

    Infinite for fewer than two seeds. With Holm's method over k contrasts, the hardest one has ``alpha`` / k.
    """
    from scipy.optimize import brentq

    if n < 2:
        return math.inf
    high = 1.0
    while power(n, high, alpha) < wanted:
        high *= 2
    return float(brentq(lambda difference: power(n, difference, alpha) - wanted, 0.0, high))


@cache
def seeds_to_detect(difference_sd: float, alpha: float = ALPHA, wanted: float = POWER, most: int = 1_000) -> int | None:
    """Return how many seeds on each side detect a difference with power ``wanted``; None if ``most`` do not."""
    if not difference_sd > 0 or power(most, difference_sd, alpha) < wanted:
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference_sd, alpha) >= wanted else (middle, high)
    return high


def half_width_sd(n: int) -> float:
    """Return half the width of the 95% interval of a difference between ``n`` and ``n`` seeds.

    In standard deviations, which are equal on both sides; infinite for fewer than two seeds.
    """
    from scipy.stats import t

    return float(t.ppf(1 - ALPHA / 2, 2 * n - 2)) * math.sqrt(2 / n) if n > 1 else math.inf
