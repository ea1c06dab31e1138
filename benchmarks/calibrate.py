"""Calibrate the verdicts of ``lmconsole compare`` by simulation, and write the table for the documentation.

    python benchmarks/calibrate.py [--experiments N] [--csv FILE] [--tables | --check]

Every rate is written to ``results/calibration.csv``, and from it ``docs/calibration.md`` and the section in
``docs/method.md`` are generated. ``--tables`` generates them without a new simulation; ``--check`` changes nothing and
exits with code 1 if they do not match the file. A bound that is not kept is marked in the tables and does not change
the exit code.
"""

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from calibration import EXPERIMENTS, FAMILIES, NORMAL, SIZES, Row, calibrate, is_stress

HERE = Path(__file__).resolve().parent
CSV = HERE / "results" / "calibration.csv"
PAGE = HERE.parent / "docs" / "calibration.md"
METHOD = HERE.parent / "docs" / "method.md"
BEGIN, END = "<!-- calibration: begin, made by benchmarks/calibrate.py -->\n", "<!-- calibration: end -->"
COLUMNS = tuple(Row.__dataclass_fields__)


def to_csv(rows: Sequence[Row]) -> str:
    """Return one line for each rate, with six digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (getattr(row, name) for name in COLUMNS)
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values)
    return out.getvalue()


def from_csv(text: str) -> list[Row]:
    """Return the rows of ``to_csv``."""
    kinds = {name: field.type for name, field in Row.__dataclass_fields__.items()}
    readers = {int: int, float: float, bool: lambda text: text == "True"}
    return [
        Row(**{name: readers.get(kinds[name], str)(value) for name, value in row.items()})  # type: ignore[call-overload]
        for row in csv.DictReader(io.StringIO(text))
    ]


class Table:
    """Rates by cell, as text for the tables."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def find(self, measure: str, **fields: object) -> list[Row]:
        """Return the rows of a measure with these values."""
        return [
            row
            for row in self.rows
            if row.measure == measure and all(getattr(row, name) == value for name, value in fields.items())
        ]

    def worst(self, measure: str, **fields: object) -> str:
        """Return the rate that is furthest out of all rows found; bold if it misses its bound."""
        found = self.find(measure, **fields)
        if not found:
            return "–"
        choose = min if found[0].relation == "at least" else max
        return percent(choose(found, key=lambda row: row.value))


def percent(row: Row) -> str:
    """Return ``4.9 %``, bold if it misses its bound."""
    text = f"{100 * row.value:.1f} %"
    return text if row.met else f"**{text}**"


def seeds(row: Row) -> str:
    return f"{row.first_seeds} and {row.second_seeds}"


def error_table(table: Table) -> str:
    """Return the errors of every population and number of seeds."""
    lines = ["| values | seeds | error of 1 | of 6 | of 12 | coverage | equivalence at δ |", "|---|---|---|---|---|---|---|"]
    for first in table.find("family-wise error", contrasts=1):
        cell = {"population": first.population, "first_seeds": first.first_seeds, "second_seeds": first.second_seeds}
        errors = [table.worst("family-wise error", contrasts=family, **cell) for family in FAMILIES]
        others = [table.worst(measure, **cell) for measure in ("coverage", "equivalence at delta")]
        lines.append(f"| {' | '.join((first.population, seeds(first), *errors, *others))} |")
    return "\n".join(lines)


def look_table(table: Table) -> str:
    """Return the errors of looking at results before all runs are there."""
    lines = ["| values | contrasts | verdict at the planned ten | verdict at each look |", "|---|---|---|---|"]
    for row in table.find("error over all looks, planned"):
        cell = {"population": row.population, "contrasts": row.contrasts}
        naive = table.worst("error over all looks, not planned", **cell)
        lines.append(f"| {row.population} | {row.contrasts} | {percent(row)} | {naive} |")
    return "\n".join(lines)


def power_table(table: Table) -> str:
    """Return measured and computed power."""
    rows = table.find("power")
    differences = sorted({row.difference_sd for row in rows if row.difference_sd.is_integer()})
    lines = [
        f"| seeds | contrasts | {' | '.join(f'{each:g} sd' for each in differences)} |",
        "|---|---|" + "---|" * len(differences),
    ]
    for n in sorted({row.first_seeds for row in rows}):
        for family in FAMILIES:
            found = [
                each
                for difference in differences
                for each in table.find("power", first_seeds=n, contrasts=family, difference_sd=difference)
            ]
            cells = (f"{percent(each)} ({100 * each.bound:.1f} %)" for each in found)
            lines.append(f"| {n} and {n} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def width_table(table: Table) -> str:
    """Return half widths of intervals, and the differences that seeds detect."""
    lines = [
        "| seeds | half width, equal sample variances | median half width | detected with 80 % power | measured power |",
        "|---|---|---|---|---|",
    ]
    for row in table.find("half width in sd"):
        (median,) = table.find("median half width in sd", first_seeds=row.first_seeds)
        value = f"{row.bound:.2f} sd (simulated {row.value:.2f})"
        value = value if row.met else f"**{value}**"
        detected = [
            each
            for each in table.find("power", first_seeds=row.first_seeds, contrasts=1)
            if not each.difference_sd.is_integer()
        ]
        detects = (f"{detected[0].difference_sd:.1f} sd", percent(detected[0])) if detected else ("–", "–")
        lines.append(f"| {seeds(row)} | {value} | {median.value:.2f} sd | {detects[0]} | {detects[1]} |")
    return "\n".join(lines)


def failures(table: Table) -> str:
    """Return one item for each bound that is not kept."""
    missed = [row for row in table.rows if not row.met]
    lines = []
    for row in missed:
        contrasts = "one contrast" if row.contrasts == 1 else f"{row.contrasts} contrasts"
        at = f", difference {row.difference_sd:.2g} sd" if row.difference_sd else ""
        lines.append(
            f"- {row.measure}, {row.population}, {seeds(row)} seeds, {contrasts}{at}: "
            f"{100 * row.value:.1f} %, {row.relation} {100 * row.bound:.1f} %"
        )
    return "\n".join(lines) or "None."


def page(rows: Sequence[Row]) -> str:
    """Return ``docs/calibration.md``."""
    table, experiments = Table(rows), rows[0].experiments
    error = 100 * math.sqrt(0.05 * 0.95 / experiments)
    return f"""<!-- Made by `make calibrate` from benchmarks/results/calibration.csv. Changes here are lost. -->
# Calibration of the verdicts

`make calibrate` simulates whole comparisons whose truth is known and counts how often a verdict of
[`lmconsole compare`](method.md) is wrong. Each cell has {experiments:,} experiments, so the standard error of a rate of
5 % is {error:.2f} %. p-values, intervals and correction are computed by the code that ships, and a sample of each
cell is compared with the verdicts of the command.

The values of a setting are normal with equal standard deviations; normal with standard deviations of 1 and 4, or 4 and
1; log-normal, with a standard deviation of the logarithm of 1; Student's t with three degrees of freedom; or normal
with 10 % diverged runs, which count as infinite. The contrasts of a family are independent.

**{sum(row.met for row in rows if row.relation)} of {sum(bool(row.relation) for row in rows)} bounds are kept.** Bold
rates are not within their bound. They are:

{failures(table)}

## Wrong verdicts

Nothing differs. *Error*: share of families of 1, 6 and 12 contrasts with at least one verdict of lower or higher.
Bound: 5 % for normal values with equal numbers of seeds, plus three Monte Carlo errors; 7.5 % for all others.
*Coverage*: share of the 95 % intervals that contain the true difference; bound: at least 93 %. *Equivalence at δ*:
share of verdicts of equivalence if the true difference is exactly +δ or −δ, whichever is more often wrong; δ is eight
standard errors of the difference; bound: 5 % plus three Monte Carlo errors.

{error_table(table)}

With diverged runs, three seeds on a side get no verdict, and the interval of a contrast is shown only if all its runs
are finite; its coverage is that of these intervals.

## Looking before all runs are there

Nothing differs, ten seeds are planned, and the results are seen at 3, 4, … 10. Before ten, a comparison with a planned
number gives intervals and no verdict, so its error is that of one look. For comparison: the error of taking every look
for the last one, and stopping at the first verdict.

{look_table(table)}

## Power

One contrast of the family differs, with normal values. Measured share of verdicts of lower, and in parentheses the
power of Welch's test at 5 % divided by the number of contrasts, from which it should differ by at most three Monte
Carlo errors. It must not fall with more seeds.

{power_table(table)}

## Widths of intervals

Half widths of the 95 % interval of a difference, in standard deviations of a run, if both samples have the same
variance; simulated: mean of the hundredth with the most similar variances. If the sample variances differ, the interval
is wider, so the median is larger.

{width_table(table)}
"""


def section(rows: Sequence[Row]) -> str:
    """Return the section for ``docs/method.md``."""
    table = Table(rows)
    usual = {"population": NORMAL.name}
    lines = [
        "| | error of 1 | of 6 | of 12 | bound | coverage | equivalence at δ |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {
        f"normal, {m} and {n} seeds": [
            row for row in rows if (row.population, row.first_seeds, row.second_seeds) == (NORMAL.name, m, n)
        ]
        for m, n in SIZES
    }
    stress = [row for row in rows if row.population != NORMAL.name]
    equal = [row for row in stress if row.first_seeds == row.second_seeds]
    groups["other values, equal numbers, worst"] = equal
    groups["other values, 3 and 10 seeds, worst"] = [row for row in stress if row not in equal]
    for name, group in groups.items():
        part = Table(group)
        errors = [part.worst("family-wise error", contrasts=family) for family in FAMILIES]
        bound = "7.5 %" if any(is_stress(NORMAL, row.first_seeds, row.second_seeds) for row in group) else "5 %"
        if group is equal:
            bound = "7.5 %"
        others = (part.worst("coverage"), part.worst("equivalence at delta"))
        lines.append(f"| {' | '.join((name, *errors, bound, *others))} |")
    (planned,) = table.find("error over all looks, planned", contrasts=1, **usual)
    (naive,) = table.find("error over all looks, not planned", contrasts=1, **usual)
    missed = [row for row in rows if not row.met]
    unequal = [row for row in missed if row.first_seeds != row.second_seeds]
    (largest,) = sorted(unequal, key=lambda row: row.value)[-1:] or (None,)
    kept = f"{sum(row.met for row in rows if row.relation)} of {sum(bool(row.relation) for row in rows)}"
    text = "\n".join(lines) + f"\n\n{kept} bounds are kept; bold rates are not."
    return text + f" {naive.value} {planned.value} {largest}\n"


def write(path: Path, text: str, check: bool) -> bool:
    """Write a file, or only compare it. Return whether it matches."""
    if check:
        return path.is_file() and path.read_text(encoding="utf-8") == text
    path.write_text(text, encoding="utf-8")
    return True
