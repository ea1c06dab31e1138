"""Calibrate the verdicts of ``lmconsole compare`` by simulation, and write the table for the documentation.

    python benchmarks/calibrate.py [--experiments N] [--tables | --check]

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
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from calibration import EXPERIMENTS, FAMILIES, NORMAL, SIZES, Row, calibrate

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
    return [msgspec.convert(row, Row, strict=False) for row in csv.DictReader(io.StringIO(text))]


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
    """Return ``4.9%``, bold if it misses its bound."""
    text = f"{100 * row.value:.1f}%"
    return text if row.met else f"**{text}**"


def seeds(row: Row) -> str:
    return f"{row.first_seeds} and {row.second_seeds}"


def error_table(table: Table) -> str:
    """Return the errors of every population and number of seeds."""
    lines = [
        "| values | seeds | error of 1 | of 6 | of 12 | coverage | equivalence at δ |",
        "|---|---|---|---|---|---|---|",
    ]
    for first in table.find("family-wise error", contrasts=1):
        cell = {"population": first.population, "first_seeds": first.first_seeds, "second_seeds": first.second_seeds}
        errors = [table.worst("family-wise error", contrasts=family, **cell) for family in FAMILIES]
        others = [table.worst(measure, **cell) for measure in ("coverage", "equivalence at delta")]
        lines.append(f"| {' | '.join((first.population, seeds(first), *errors, *others))} |")
    return "\n".join(lines)


def look_table(table: Table) -> str:
    """Return the errors of comparisons whose results are seen before all runs are there."""
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
            cells = (f"{percent(each)} ({100 * each.bound:.1f}%)" for each in found)
            lines.append(f"| {n} and {n} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def width_table(table: Table) -> str:
    """Return half widths of intervals, and the differences that seeds detect."""
    lines = [
        "| seeds | half width, equal sample variances | median half width | detected with 80% power | simulated |",
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
            f"{100 * row.value:.3f}%, {row.relation} {100 * row.bound:.3f}%"
        )
    return "\n".join(lines) or "None."


def page(rows: Sequence[Row]) -> str:
    """Return ``docs/calibration.md``."""
    table, experiments = Table(rows), rows[0].experiments
    error = 100 * math.sqrt(0.05 * 0.95 / experiments)
    return f"""<!-- Made by `make calibrate` from benchmarks/results/calibration.csv. Changes here are lost. -->
# Calibration of the verdicts

`make calibrate` simulates whole comparisons whose truth is known, and counts how often a verdict of
[`lmconsole compare`](method.md) is wrong. Each cell has {experiments:,} experiments, so the standard error of a rate of
5% is {error:.2f}%. The p-values, intervals and correction are those of the command, and in each cell the verdicts of
some experiments are compared with those of the command itself.

The values of a setting are normal with equal standard deviations; normal with standard deviations of 1 and 4, or of 4
and 1; log-normal, where the logarithm has a standard deviation of 1; Student's t with three degrees of freedom; or
normal with 10% diverged runs, which count as infinite. The contrasts of a family are independent.

**{kept(rows)} bounds are kept.** Rates that are not within their bound are bold in the tables:

{failures(table)}

## Wrong verdicts

Nothing differs. *Error*: share of families of 1, 6 and 12 contrasts with at least one verdict of lower or higher.
Bound: 5% for normal values with equal numbers of seeds, plus three Monte Carlo errors; 7.5% for all others.
*Coverage*: share of the 95% intervals that contain the true difference, in the worst of the three families; bound: at
least 93%. *Equivalence at δ*: share of verdicts of equivalence if the true difference is exactly +δ or −δ, whichever
is more often wrong; δ is eight standard errors of the difference; bound: 5% plus three Monte Carlo errors.

{error_table(table)}

With diverged runs, three seeds on a side get no verdict, and a contrast has an interval only if all its runs are
finite; coverage is that of these intervals.

## Results seen before all runs are there

Nothing differs, ten seeds are planned, and the results are seen at 3, 4, … 10. Before ten, a comparison with a planned
number gives intervals and no verdict, so its error is that of one look. For comparison: the error of asking for a
verdict at each look, and stopping at the first one that is not inconclusive.

{look_table(table)}

## Power

One contrast of the family differs, with normal values. Measured share of verdicts that say so, and in parentheses the
power of Welch's test at 5% divided by the number of contrasts. Bound: they differ by at most three Monte Carlo errors,
and the share does not fall with more seeds.

{power_table(table)}

## Widths of intervals

Half widths of the 95% interval of a difference, in standard deviations of a run, if both samples have the same
variance; simulated: mean of the hundredth with the most similar variances. Next to it the median of all intervals, in
which the variances of the samples differ. Detected: the true difference that is found with 80% power, and how often a
simulation finds it.

{width_table(table)}
"""


def kept(rows: Sequence[Row]) -> str:
    """Return ``201 of 209``."""
    bounds = [row for row in rows if row.relation]
    return f"{sum(row.met for row in bounds)} of {len(bounds)}"


def section(rows: Sequence[Row]) -> str:
    """Return the generated part of ``docs/method.md``."""
    lines = [
        "| values and seeds of both settings | error of 1 | of 6 | of 12 | coverage | equivalence at δ |",
        "|---|---|---|---|---|---|",
    ]
    normal = [row for row in rows if row.population == NORMAL.name]
    others = [row for row in rows if row.population != NORMAL.name]
    groups = {
        f"normal, {m} and {n}": [row for row in normal if (row.first_seeds, row.second_seeds) == (m, n)]
        for m, n in SIZES
    }
    groups["others, equal numbers: worst"] = [row for row in others if row.first_seeds == row.second_seeds]
    groups["others, 3 and 10: worst"] = [row for row in others if row.first_seeds != row.second_seeds]
    for name, group in groups.items():
        part = Table(group)
        errors = [part.worst("family-wise error", contrasts=family) for family in FAMILIES]
        lines.append(f"| {' | '.join((name, *errors, part.worst('coverage'), part.worst('equivalence at delta')))} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(map(wrap, _findings(rows))) + "\n"


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    """Return paragraphs about what the table shows, and what it does not."""
    table = Table(rows)
    unequal = {"first_seeds": 3, "second_seeds": 10}
    (usual,) = table.find("family-wise error", population=NORMAL.name, contrasts=12, **unequal)
    worst = max(table.find("family-wise error", contrasts=12, **unequal), key=lambda row: row.value)
    equal = [row for row in rows if row.first_seeds == row.second_seeds and row.measure == "family-wise error"]
    yield (
        f"{kept(rows)} bounds are kept; bold rates are not. **Plan the same number of seeds for each setting.** With "
        f"equal numbers, the error of a family is at most {plain(max(equal, key=lambda row: row.value))} in all cells. "
        f"With 3 and 10 seeds, one contrast errs in up to {table.worst('family-wise error', contrasts=1, **unequal)}, "
        f"but a family of twelve in {plain(usual)} with normal values and up to {plain(worst)} ({worst.population}). "
        "The approximation of Welch's test is too coarse there at the small levels that the correction asks for."
    )
    equivalence = [row for row in table.find("equivalence at delta") if row.first_seeds == row.second_seeds]
    skewed = max(table.find("equivalence at delta", **unequal), key=lambda row: row.value)
    yield (
        f"Equivalence errs in up to {plain(max(equivalence, key=lambda row: row.value))} with equal numbers, and in "
        f"{plain(skewed)} with 3 and 10 seeds of {skewed.population} values."
    )
    (planned,) = table.find("error over all looks, planned", population=NORMAL.name, contrasts=1)
    (naive,) = table.find("error over all looks, not planned", population=NORMAL.name, contrasts=1)
    yield (
        f"A verdict at the planned ten seeds errs in {plain(planned)}, however often the intervals were seen before. "
        f"Asking for a verdict at each of 3 to 10 seeds and stopping at the first one would err in {plain(naive)}."
    )
    found = {n: table.find("power", first_seeds=n, contrasts=1, difference_sd=2.0)[0] for n in (3, 5, 10)}
    yield (
        "A true difference of two standard deviations is found in "
        + ", ".join(f"{plain(row)} ({n} seeds)" for n, row in found.items())
        + " of the comparisons, as the power of Welch's test says. With fewer seeds, inconclusive is the usual verdict."
    )


def wrap(text: str) -> str:
    """Break a paragraph into lines, but not between a number and its percent sign."""
    filled = textwrap.fill(text.replace(" %", "\N{NO-BREAK SPACE}%"), 120, break_on_hyphens=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def plain(row: Row) -> str:
    return f"{100 * row.value:.1f}%"


def write(path: Path, text: str, check: bool) -> bool:
    """Write a file, or with ``check`` only compare it. Return whether it has this text."""
    if check:
        return path.is_file() and path.read_text(encoding="utf-8") == text
    path.write_text(text, encoding="utf-8")
    return True


def documents(rows: Sequence[Row]) -> dict[Path, str]:
    """Return the documents that the rates belong in, complete."""
    return {PAGE: page(rows), METHOD: with_section(METHOD.read_text(encoding="utf-8"), section(rows), BEGIN, END)}


def with_section(text: str, generated: str, begin: str, end: str) -> str:
    """Return a document with a new text between two markers."""
    before, rest = text.split(begin)
    return before + begin + generated + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibrate the verdicts of lmconsole compare.")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS, help=f"in each cell; default {EXPERIMENTS:,}")
    parser.add_argument("--tables", action="store_true", help="generate the documentation from the recorded rates")
    parser.add_argument("--check", action="store_true", help="only check that the documentation has these rates")
    arguments = parser.parse_args()
    if not (arguments.tables or arguments.check):
        start = time.monotonic()
        rows = []
        for row in calibrate(arguments.experiments):
            rows.append(row)
            if not row.met:
                print(f"not kept: {row.measure}, {row.population}, {seeds(row)} seeds: {plain(row)}", file=sys.stderr)
        CSV.write_text(to_csv(rows), encoding="utf-8")
        print(f"{kept(rows)} bounds are kept; {time.monotonic() - start:.0f} s", file=sys.stderr)
    rows = from_csv(CSV.read_text(encoding="utf-8"))
    stale = [path.name for path, text in documents(rows).items() if not write(path, text, arguments.check)]
    if stale:
        sys.exit(f"{', '.join(stale)}: not generated from {CSV.name}. Run benchmarks/calibrate.py --tables.")


if __name__ == "__main__":
    main()
