"""`lmconsole compare`: a verdict on the results in anyone's CSV file."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.table import Table
from rich.text import Text

from lmconsole.claims.table import Samples, read_samples
from lmconsole.claims.verdict import Comparison, Contrast, Verdict, compare
from lmconsole.claims.wording import decimals, describe, interval, number, p_value
from lmconsole.commands.output import console, plain_table, print_json
from lmconsole.errors import ExitCode, LmconsoleError, escape_control_characters
from lmconsole.formatting import UNKNOWN

MAX_GROUPS = 20
"""More groups are only compared with a baseline: all pairs would be hundreds."""

CONDITION = (
    "A verdict holds if contrasts, number of seeds and metric were fixed before the results were seen; "
    "otherwise this is exploratory."
)


class CompareResult(msgspec.Struct, frozen=True, kw_only=True):
    """Comparisons of the rows of a file, as `compare --json` prints them."""

    file: str
    """File that was read."""
    by: str
    """Column that names the setting of a row."""
    metric: str
    """Column that is compared."""
    log: bool
    """Whether logarithms of the column are compared."""
    where: dict[str, str]
    """Values that columns of the compared rows have."""
    rows: int
    """Number of compared runs."""
    delta: float | None
    """Largest difference that does not matter; null if none was given."""
    planned: int | None
    """Planned seeds of each setting; null if those in the file count as planned."""
    comparisons: list[Comparison]
    """One for each pair of settings, or for each setting and the baseline."""
    notes: list[str]
    """Warnings about these rows."""


def compare_table(
    path: Path,
    by: str,
    metric: str,
    *,
    where: Sequence[str] = (),
    baseline: str | None = None,
    pair_by: str | None = None,
    delta: float | None = None,
    planned: int | None = None,
    higher_is_better: bool = False,
    log: bool = False,
    json: bool = False,
) -> ExitCode:
    """Compare the groups of a CSV file with each other, or each with ``baseline``.

    Return 0 if every comparison has a verdict (lower, higher or equivalent), else 3. Raises LmconsoleError for a file
    or options that cannot be used.
    """
    conditions = [_condition(text) for text in where]
    if delta is not None and not (math.isfinite(delta) and delta > 0):
        raise LmconsoleError("--delta must be positive")
    samples = read_samples(
        path,
        by,
        metric,
        where=conditions,
        pair_by=pair_by,
        diverged=-math.inf if higher_is_better else math.inf,
        log=log,
    )
    pairs = _pairs(path, by, list(samples.values), baseline)
    contrasts = [_contrast(path, samples, first, second, pair_by) for first, second in pairs]
    result = CompareResult(
        file=str(path),
        by=by,
        metric=metric,
        log=log,
        where=dict(conditions),
        rows=samples.rows,
        delta=delta,
        planned=planned,
        comparisons=compare(contrasts, delta=delta, planned=planned, log=log),
        notes=_notes(samples),
    )
    if json:
        print_json(result)
    else:
        _print(result)
    shown = (Verdict.LOWER, Verdict.HIGHER, Verdict.EQUIVALENT)
    return ExitCode.OK if all(each.verdict in shown for each in result.comparisons) else ExitCode.INCONCLUSIVE


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals:
        raise LmconsoleError(f"--where {text}: expected COLUMN=VALUE")
    return column.strip(), value.strip()


def _pairs(path: Path, by: str, groups: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Return the groups to compare. Raises LmconsoleError if there is nothing to compare, or too much."""
    if len(groups) < 2:
        raise LmconsoleError(f"{path}: {by} is {groups[0]!r} in every row, so there is nothing to compare")
    if baseline is not None:
        if baseline not in groups:
            raise LmconsoleError(
                f"{path}: no row has {by} {baseline!r}", hint=f"It is one of {', '.join(groups[:MAX_GROUPS])}."
            )
        return [(group, baseline) for group in groups if group != baseline]
    if len(groups) > MAX_GROUPS:
        raise LmconsoleError(
            f"{path}: {by} has {len(groups):,} values, which make {math.comb(len(groups), 2):,} pairs",
            hint="Name one of them with --baseline, or choose rows with --where.",
        )
    return list(itertools.combinations(groups, 2))


def _contrast(path: Path, samples: Samples, first: str, second: str, pair_by: str | None) -> Contrast:
    if pair_by is None:
        return Contrast(first, second, samples.values[first], samples.values[second])
    one, other = (dict(zip(samples.pairs[name], samples.values[name], strict=True)) for name in (first, second))
    if alone := sorted(one.keys() ^ other.keys()):
        raise LmconsoleError(
            f"{path}: {pair_by} {', '.join(alone[:MAX_GROUPS])} occurs in only one of {first} and {second}",
            hint="Pairs need a partner in both; without --pair-by, the groups are independent.",
        )
    return Contrast(first, second, tuple(one.values()), tuple(other[key] for key in one), paired=True)


def _notes(samples: Samples) -> list[str]:
    notes = []
    diverged = {name: sum(not math.isfinite(value) for value in values) for name, values in samples.values.items()}
    if any(diverged.values()):
        counts = ", ".join(f"{name} {n} of {len(samples.values[name])}" for name, n in diverged.items() if n)
        notes.append(f"Runs diverged: {counts}. They count as the worst, so their settings are compared by ranks.")
    if samples.mixed:
        columns = ", ".join(samples.mixed)
        notes.append(f"Rows of one group also differ in {columns}; --where compares only some of them.")
    if len({len(values) for values in samples.values.values()}) > 1:
        notes.append(
            "The groups have different numbers of seeds, with which Welch's test errs more often than 5%, above all in "
            "many comparisons (docs/calibration.md). Train equally many of each."
        )
    return notes


def _print(result: CompareResult) -> None:
    out = console()
    compared = f"log {result.metric}" if result.log else result.metric
    out.print(f"{compared} by {result.by}: difference of means, 95% interval per comparison", style="dim")
    out.print()
    columns: Mapping[str, str] = {"Contrast": "left", "Seeds": "right", "Difference": "right"}
    table = plain_table(**columns, **{"95%_interval": "left", "p_(Holm)": "right", "Verdict": "left"})  # type: ignore[arg-type]
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"  # all numbers are shown, however narrow the terminal is
    for each in result.comparisons:
        table.add_row(
            Text(escape_control_characters(f"{each.first.name} − {each.second.name}")),
            f"{each.first.seeds}, {each.second.seeds}",
            number(each.difference, decimals(each.interval)),
            interval(each.interval, decimals(each.interval)),
            p_value(each.p_adjusted),
            Text(describe(each), style="" if each.verdict is Verdict.INCONCLUSIVE else "bold"),
        )
    out.print(table)
    out.print()
    out.print(_sides_table(result.comparisons))
    out.print()
    for note in [*result.notes, CONDITION]:
        out.print(Text(note, style="dim"), soft_wrap=True)


def _sides_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table of the settings themselves, each once, in their order."""
    sides = {side.name: side for each in comparisons for side in (each.first, each.second)}
    table = plain_table(Setting="left", Seeds="right", Mean="right", SD="right", Diverged="right")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for side in sides.values():
        share = side.diverged_share
        table.add_row(
            Text(escape_control_characters(side.name)),
            f"{side.seeds:,}",
            UNKNOWN if side.mean is None else f"{side.mean:.5g}",
            UNKNOWN if side.sd is None else f"{side.sd:.2g}",
            f"{side.diverged}  [{share.low:.0%}, {share.high:.0%}]" if side.diverged else "0",
        )
    return table
