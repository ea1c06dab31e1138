"""Numbers of a comparison as sentences, as far as its seeds allow them."""

import math
import statistics
from collections.abc import Iterable, Sequence

from lmconsole.claims import verdict
from lmconsole.claims.ranks import is_exact
from lmconsole.claims.verdict import MIN_SEEDS, MIN_SEEDS_RANKS, Contrast, Interval, Side
from lmconsole.report.markup import format_ppl
from lmconsole.runs.events import perplexity

DIGITS = 4
"""Decimals of losses in nats."""


def fewest_seeds(contrast: Contrast) -> int:
    """Return the smaller number of seeds of the two sides."""
    return min(len(contrast.first_values), len(contrast.second_values))


def has_diverged(contrast: Contrast) -> bool:
    """Return whether a run of either side diverged."""
    return not all(map(math.isfinite, (*contrast.first_values, *contrast.second_values)))


def signed(value: float, decimals: int = DIGITS) -> str:
    """Return a number with its sign, and with a minus instead of a hyphen."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def unsigned(value: float, decimals: int = DIGITS) -> str:
    """Return a number, with a minus instead of a hyphen if it is negative."""
    return f"{value:.{decimals}f}".replace("-", "−")


def format_p(p: float) -> str:
    """Return a p-value with two digits, never as 0."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def p_digits(p: float) -> str:
    """Return a p-value as in sentences, without an equals sign."""
    return format_p(p).removeprefix("= ")


def format_ratio_of_ppl(ratio: float) -> str:
    """Return a ratio of perplexities with four digits."""
    return f"{ratio:.4g}"


def format_share(share: float) -> str:
    """Return a probability with two decimals."""
    return f"{share:.2f}"


def describe(
    contrast: Contrast,
    result: verdict.Comparison | None,
    family: int,
    unit: str,
    *,
    log: bool = False,
    digits: int = DIGITS,
) -> str:
    """Return values, difference and uncertainty of a contrast as sentences, as far as its seeds allow them.

    Args:
        family: number of contrasts over which p-values are adjusted.
        log: whether the values are logarithms of perplexities.
        digits: decimals of values and differences.
    """
    first, second = contrast.first_values, contrast.second_values
    fewest = fewest_seeds(contrast)
    if has_diverged(contrast):
        return _describe_diverged(contrast, result, family, unit, digits)
    values = f"{_list_values(first, digits)} and {_list_values(second, digits)} {unit}"
    difference = signed(statistics.fmean(first) - statistics.fmean(second), digits)
    if fewest < 2:
        ppls = " and ".join(format_ppl(perplexity(statistics.fmean(each))) for each in (first, second))
        shown = f" (perplexity {ppls})" if log and len(first) == len(second) == 1 else ""
        return f"{values}{shown}; difference {difference}. No uncertainty known."
    if result is None or fewest < MIN_SEEDS:
        return f"{values}; difference of the means {difference}. Description only."
    sentences = [f"{values}. Difference {difference}, {_interval(result.interval, digits)}."]
    if result.ratio is not None:
        ends = result.ratio_interval
        span = (
            f", 95% interval {format_ratio_of_ppl(ends.low)} to {format_ratio_of_ppl(ends.high)}"
            if ends and math.isfinite(ends.high)
            else ""
        )
        sentences.append(f"Ratio of the geometric means of perplexity: {format_ratio_of_ppl(result.ratio)}{span}.")
    if result.p_adjusted is not None:
        sentences.append(f"Exploratory p {format_p(result.p_adjusted)} ({result.test}, {_adjusted(family)}).")
    if result.permutation_p is not None:
        kind = "Exact permutation" if is_exact(len(first), len(second)) else "Permutation (9,999 draws)"
        sentences.append(f"{kind} p {format_p(result.permutation_p)}, as a check.")
    if result.superiority is not None and result.superiority_interval is not None:
        sentences.append(describe_superiority(result.superiority, result.superiority_interval))
    if result.detectable_sd is not None:
        sentences.append(describe_power(fewest, result.detectable_sd))
    return " ".join(sentences)


def describe_power(seeds: int, detectable_sd: float) -> str:
    """Return which difference so many seeds on each side detect."""
    return (
        f"With 80% power, {seeds} seeds each detect a difference of {detectable_sd:.1f} standard deviations, before "
        "correction."
    )


def _describe_diverged(
    contrast: Contrast, result: verdict.Comparison | None, family: int, unit: str, digits: int
) -> str:
    first, second = contrast.first_values, contrast.second_values
    if result is None:
        counts = " and ".join(f"{_diverged_of(each)} of {len(each)}" for each in (first, second))
    else:
        counts = " and ".join(_diverged_share(side) for side in (result.first, result.second))
    values = " and ".join(_list_values(each, digits, median=True) for each in (first, second))
    sentences = [f"{values} {unit}.", f"Diverged: {counts}."]
    if result is None or result.test is None:
        sentences.append(
            f"A diverged run counts as infinite: no mean, and no test with fewer than {MIN_SEEDS_RANKS} seeds."
        )
    else:
        kind = "exact" if is_exact(len(first), len(second)) else "9,999 draws"
        sentences.append(
            f"A diverged run counts as infinite: no mean. Exploratory p {format_p(result.p_adjusted or 0.0)} "
            f"({result.test}, {kind}, {_adjusted(family)})."
        )
        if result.superiority is not None and result.superiority_interval is not None:
            sentences.append(describe_superiority(result.superiority, result.superiority_interval))
    return " ".join(sentences)


def _list_values(values: Sequence[float], digits: int, *, median: bool = False) -> str:
    """Return one or two values as they are, more as their mean and standard deviation, or as their median."""
    if len(values) < MIN_SEEDS:
        return ", ".join(unsigned(value, digits) if math.isfinite(value) else "diverged" for value in values)
    if median:
        middle = statistics.median(values)
        return f"median {unsigned(middle, digits) if math.isfinite(middle) else '∞'} (n = {len(values)})"
    sd = statistics.stdev(values)
    return f"{unsigned(statistics.fmean(values), digits)} (n = {len(values)}, sd {unsigned(sd, digits)})"


def _diverged_of(values: Iterable[float]) -> int:
    return sum(not math.isfinite(value) for value in values)


def _diverged_share(side: Side) -> str:
    share = side.diverged_share
    return f"{side.diverged} of {side.seeds} (95% interval {share.low:.0%} to {share.high:.0%})"


def _interval(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "without an interval, because the values do not vary"
    return f"95% interval {signed(interval.low, digits)} to {signed(interval.high, digits)} for this comparison alone"


def _adjusted(family: int) -> str:
    return "the only contrast" if family == 1 else f"Holm over {family} contrasts"


def describe_superiority(estimate: float, interval: Interval) -> str:
    """Return the probability that a run of the first is below one of the second."""
    return (
        f"P(first < second) = {format_share(estimate)}, 95% interval {format_share(interval.low)} to "
        f"{format_share(interval.high)}."
    )
