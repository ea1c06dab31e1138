"""The difference between two settings over their seeds: its estimate, its interval and its p-value.

All functions work on arrays whose last axis has the seeds; leading axes are independent experiments, as in a
simulation. scipy takes half a second to import, so it is imported where it is used.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
"""Coverage of intervals that are shown."""

NEGLIGIBLE_SD = 1e-12
"""Standard deviations up to this share of the largest value are rounding errors of identical values."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two means, first − second. Every field has the leading shape of the samples, () for one experiment.

    Without an estimate of the variance, which takes two seeds on each side and values that differ, all but ``estimate``
    are NaN.
    """

    estimate: Array
    """In the unit of the values, nats per token for losses."""
    p: Array
    """Two-sided p-value of no difference."""
    low: Array
    """Lower end of the 95% interval."""
    high: Array
    low90: Array
    """Lower end of the 90% interval, which decides equivalence."""
    high90: Array

    def within(self, delta: float) -> NDArray[np.bool_]:
        """Whether the 90% interval is inside ±``delta``: two one-sided tests at 5% both reject (Schuirmann 1987)."""
        return (self.low90 > -delta) & (self.high90 < delta)


def welch(first: ArrayLike, second: ArrayLike) -> Difference:
    """Return the difference of two independent samples, with unequal variances (Welch 1947).

    ``first`` has the shape (…, m) and ``second`` (…, n), with the same leading shape and finite values.
    """
    from scipy.stats import ttest_ind

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = (_variance(a) > 0) | (_variance(b) > 0)
    if min(a.shape[-1], b.shape[-1]) < 2:
        known = np.zeros_like(known)
    return _difference(lambda: ttest_ind(a, b, axis=-1, equal_var=False), a.mean(-1) - b.mean(-1), known)


def paired(first: ArrayLike, second: ArrayLike) -> Difference:
    """Return the mean of the differences of pairs (Student's t).

    ``first`` and ``second`` have the shape (…, n) and finite values; entries at the same place belong together.
    """
    from scipy.stats import ttest_rel

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differences = a - b
    largest = np.maximum(np.abs(a).max(-1), np.abs(b).max(-1))
    known = differences.std(-1) > NEGLIGIBLE_SD * largest
    if a.shape[-1] < 2:
        known = np.zeros_like(known)
    return _difference(lambda: ttest_rel(a, b, axis=-1), differences.mean(-1), known)


def _variance(values: Array) -> Array:
    """Variance over the seeds, 0 where the values are identical but for rounding."""
    sd = values.std(-1)
    return np.where(sd > NEGLIGIBLE_SD * np.abs(values).max(-1), sd**2, 0.0)


def _difference(test: Any, estimate: Array, known: NDArray[np.bool_]) -> Difference:
    unknown = np.full(np.shape(estimate), math.nan)
    if not known.any():
        return Difference(np.asarray(estimate), *[unknown] * 5)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # about one sample of identical values, which is no obstacle
        result = test()
        wide, narrow = result.confidence_interval(CONFIDENCE), result.confidence_interval(0.9)
    values = (result.pvalue, wide.low, wide.high, narrow.low, narrow.high)
    return Difference(np.asarray(estimate), *(np.where(known, each, math.nan) for each in values))
