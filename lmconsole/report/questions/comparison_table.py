"""Comparisons of one question as a table, and the sentences that belong to it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lmconsole.claims.verdict import MIN_SEEDS
from lmconsole.report.comparing import Comparison
from lmconsole.report.comparison_text import (
    DIGITS,
    describe_power,
    describe_superiority,
    fewest_seeds,
    format_ratio_of_ppl,
    has_diverged,
    p_digits,
    signed,
    unsigned,
)
from lmconsole.report.experiment_result import Endpoint
from lmconsole.report.markup import DASH
from lmconsole.report.table import Cell, Column, Table

TEXT_SE = "SE (text)"
"""Header of the standard error of a difference as a sample of text."""


def is_listed(comparison: Comparison) -> bool:
    """Return whether a comparison fits a table: it has losses, and none of them diverged."""
    return comparison.contrast is not None and not has_diverged(comparison.contrast)


def describe_table(comparisons: Sequence[Comparison]) -> str:
    """Return what ``comparison_table`` shows, with the unit."""
    endpoints = [each for each in Endpoint if any(found.endpoint is each for found in comparisons)]
    losses = " or ".join(each.value for each in endpoints)
    at_best = " at the best epoch" if endpoints == [Endpoint.VALIDATION] else ""
    return f"{losses.capitalize()}{at_best}, in {comparisons[0].unit}."


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a row for each comparison that is listed. Columns in which no row has a value are left out."""
    rows = [{header: text(each) for header, text in _COLUMNS.items()} for each in comparisons]
    if len({each.endpoint for each in comparisons}) == 1:
        rows = [row | {"Loss": None} for row in rows]
    headers = [header for header in _COLUMNS if any(row[header] is not None for row in rows)]
    return Table(
        columns=[Column(header=header, numeric=header not in _NAMES) for header in headers],
        rows=[{header: Cell(row[header] or DASH) for header in headers} for row in rows],
    )


def _name(comparison: Comparison, *, first: bool) -> str:
    result = comparison.pair.first if first else comparison.pair.second
    assert result is not None
    return result.label_with_id


def _seeds(comparison: Comparison) -> str | None:
    one, other = (len(values) for values in _values(comparison))
    return None if one == other == 1 else str(one) if one == other else f"{one}, {other}"


def _losses(comparison: Comparison, *, first: bool) -> str | None:
    """Return the losses of one or two seeds; more have an interval instead."""
    values = _values(comparison)[0 if first else 1]
    return ", ".join(unsigned(value, DIGITS) for value in values) if len(values) < MIN_SEEDS else None


def _difference(comparison: Comparison) -> str | None:
    nats = comparison.difference_nats
    return None if nats is None else signed(nats)


def _text_se(comparison: Comparison) -> str | None:
    se = comparison.text_se_nats
    return None if se is None else f"{se:.{DIGITS}f}"


def _interval(comparison: Comparison) -> str | None:
    interval = comparison.result.interval if comparison.result else None
    return None if interval is None else f"{signed(interval.low)} to {signed(interval.high)}"


def _ratio(comparison: Comparison) -> str | None:
    nats = comparison.difference_nats
    return None if nats is None else format_ratio_of_ppl(math.exp(nats))


def _p_value(comparison: Comparison) -> str | None:
    p = comparison.result.p_adjusted if comparison.result else None
    return None if p is None else p_digits(p)


def _permutation_p(comparison: Comparison) -> str | None:
    p = comparison.result.permutation_p if comparison.result else None
    return None if p is None else p_digits(p)


def _values(comparison: Comparison) -> tuple[Sequence[float], Sequence[float]]:
    assert comparison.contrast is not None
    return comparison.contrast.first_values, comparison.contrast.second_values


_COLUMNS: Mapping[str, Callable[[Comparison], str | None]] = {
    "First": lambda each: _name(each, first=True),
    "Second": lambda each: _name(each, first=False),
    "Loss": lambda each: each.endpoint.value.removesuffix(" loss"),
    "Seeds": _seeds,
    "Loss of first": lambda each: _losses(each, first=True),
    "Loss of second": lambda each: _losses(each, first=False),
    "Difference": _difference,
    TEXT_SE: _text_se,
    "95% interval": _interval,
    "PPL ratio": _ratio,
    "p (Holm)": _p_value,
    "Permutation p": _permutation_p,
}
"""Text of a cell by the header of its column; None if it has no value."""

_NAMES = ("First", "Second", "Loss")


def describe_listed(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what is known of the uncertainty in a table of comparisons, and what else may explain its differences."""
    fewest = [fewest_seeds(each.contrast) for each in comparisons if each.contrast]
    sentences = []
    if 1 in fewest:
        unknown = "the variation between seeds is unknown"
        if any(each.text_se_nats is not None for each in comparisons):
            unknown += f"; {TEXT_SE} covers only the choice of the test text"
        sentences.append(f"{_subject(fewest, 1, comparisons)}: {unknown}.")
    if 2 in fewest:
        sentences.append(f"{_subject(fewest, 2, comparisons)}: description only.")
    detectable = {
        (seeds, each.result.detectable_sd)
        for seeds, each in zip(fewest, comparisons, strict=True)
        if each.result is not None and each.result.detectable_sd is not None
    }
    sentences += [describe_power(seeds, sd) for seeds, sd in sorted(detectable)]
    sentences += _group(
        (describe_superiority(found.superiority, found.superiority_interval).removesuffix("."), each)
        for each in comparisons
        if (found := each.result) and found.superiority is not None and found.superiority_interval is not None
    )
    return sentences + _group((each.remarks.removesuffix("."), each) for each in comparisons if each.remarks)


def _subject(fewest: Sequence[int], seeds: int, comparisons: Sequence[Comparison]) -> str:
    count = "One seed" if seeds == 1 else "Two seeds"
    if set(fewest) == {seeds}:
        return f"{count} each"
    return f"{count} in {_pairs(each for each, few in zip(comparisons, fewest, strict=True) if few == seeds)}"


def _group(texts: Iterable[tuple[str, Comparison]]) -> list[str]:
    """Return each text once, with the pairs that it is about unless it is about all that have one."""
    by_text: dict[str, list[Comparison]] = {}
    for text, comparison in texts:
        by_text.setdefault(text, []).append(comparison)
    if len(by_text) == 1:
        return [f"{text}." for text in by_text]
    return [f"{_pairs(found)}: {text}." for text, found in by_text.items()]


def _pairs(comparisons: Iterable[Comparison]) -> str:
    """Return pairs by the numbers of their experiments: ``2 against 1, 6 against 5``."""
    pairs = [(each.pair.first, each.pair.second) for each in comparisons]
    return ", ".join(f"{first.id} against {second.id}" for first, second in pairs if first and second)
