"""Samples from a CSV file of anyone's results: one row a run."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmconsole.errors import LmconsoleError, listed
from lmconsole.files import read_file

MAX_BYTES = 256 * 2**20
DELIMITERS = ",;\t"
SEED = "seed"
"""Column of the seed, if the file has one: a seed that occurs twice in a group is not a replicate."""
DIVERGED = re.compile(r"[+-]?(inf|infinity|nan)|diverged", re.IGNORECASE)
LARGEST = 1e150
"""Squares of larger values, which variances need, are infinite."""
MAX_KINDS = 20
"""A column of text with more values than this does not look like a setting."""

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Samples:
    """Values of each group, in the order of the file."""

    rows: int
    """Rows that were used."""
    values: Mapping[str, tuple[float, ...]]
    """By group; infinite for a diverged run."""
    pairs: Mapping[str, tuple[str, ...]]
    """By group, what each value is paired by; empty if nothing is paired."""
    mixed: tuple[str, ...]
    """Other columns of text that differ between rows of one group."""


def read_samples(
    path: Path,
    by: str,
    metric: str,
    *,
    where: Sequence[tuple[str, str]] = (),
    pair_by: str | None = None,
    diverged: float = math.inf,
    log: bool = False,
) -> Samples:
    """Read the column ``metric`` of each row of a CSV file, grouped by the column ``by``.

    Args:
        where: columns and the value that they must have in a row.
        pair_by: column whose value names a pair, such as the seed.
        diverged: value of a run whose entry is infinite, not a number, or ``diverged``.
        log: take the natural logarithm of each value.

    Raises:
        LmconsoleError: the file cannot be read, lacks a column, or has a row without a usable value.
    """
    columns, rows = _read_rows(path, [by, metric, *(column for column, _ in where), *([pair_by] if pair_by else [])])
    chosen = [(line, row) for line, row in rows if all(row[column] == value for column, value in where)]
    if not chosen:
        wanted = " and ".join(f"{column}={value}" for column, value in where)
        raise LmconsoleError(f"{path}: no row{f' has {wanted}' if where else 's'}", hint=_values_hint(rows, where))
    values: dict[str, list[float]] = {}
    pairs: dict[str, list[str]] = {}
    problems: list[str] = []
    for line, row in chosen:
        try:
            value = _value(row[metric], diverged, log=log)
        except ValueError as error:
            problems.append(f"{path}, line {line}: {metric} is {row[metric]!r}, {error}")
            continue
        values.setdefault(row[by], []).append(value)
        pairs.setdefault(row[by], []).append(row[pair_by] if pair_by else "")
    if problems:
        raise LmconsoleError(
            listed(problems), hint="Write inf for a diverged run. Every run counts, so leave none out for its result."
        )
    _check_replicates(path, by, pair_by or SEED, chosen, columns)
    return Samples(
        rows=len(chosen),
        values={group: tuple(each) for group, each in values.items()},
        pairs={group: tuple(each) for group, each in pairs.items()} if pair_by else {},
        mixed=tuple(
            column
            for column in columns
            if column not in (by, metric, pair_by, SEED) and _is_mixed([(row[by], row[column]) for _, row in chosen])
        ),
    )


def _read_rows(path: Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, Row]]]:
    """Read the header and all rows with their line numbers. The delimiter is the one with which the header has most of
    the columns that are needed."""
    try:
        text = read_file(path, MAX_BYTES, follow=True).decode("utf-8-sig")
    except OSError as error:
        raise LmconsoleError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LmconsoleError(f"{path}: not UTF-8 text", hint="Export the table as CSV in UTF-8.") from error
    found = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda each: len({*needed} & {*found[each]}))
    columns = found[delimiter]
    for column in needed:
        if column not in columns:
            raise LmconsoleError(
                f"{path}: no column {column!r}", hint=f"The columns are {', '.join(columns) or '(none)'}."
            )
    for column, times in Counter(columns).items():
        if times > 1:
            raise LmconsoleError(f"{path}: {times} columns are called {column!r}", hint="Rename all but one.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Row]] = []
    try:
        next(reader)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(columns):
                raise LmconsoleError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(columns)}"
                )
            rows.append((reader.line_num, dict(zip(columns, (each.strip() for each in fields), strict=True))))
    except csv.Error as error:
        raise LmconsoleError(f"{path}, line {reader.line_num}: {error}") from error
    return columns, rows


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return [each.strip() for each in next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])]
    except csv.Error:
        return []


def _value(text: str, diverged: float, *, log: bool) -> float:
    """Return the value of an entry. Raises ValueError, which says why it has none."""
    if DIVERGED.fullmatch(text):
        return diverged
    if not text:
        raise ValueError("which is no result")
    try:
        value = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not math.isfinite(value):
        return diverged
    if log and value <= 0:
        raise ValueError("which has no logarithm")
    value = math.log(value) if log else value
    if abs(value) > LARGEST:
        raise ValueError("too large to compare; --log compares logarithms")
    return value


def _check_replicates(path: Path, by: str, seed: str, rows: Sequence[tuple[int, Row]], columns: Sequence[str]) -> None:
    """Raise LmconsoleError if a group has a seed twice: rows of one run, such as its epochs, are no replicates."""
    if seed not in columns:
        return
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows:
        first = seen.setdefault((row[by], row[seed]), line)
        if first != line:
            raise LmconsoleError(
                f"{path}, lines {first} and {line}: {by} {row[by]!r} has {seed} {row[seed]!r} twice",
                hint="Each row must be one run with a seed of its own; --where chooses rows.",
            )


def _is_mixed(entries: Sequence[tuple[str, str]]) -> bool:
    """Return whether a column looks like a setting, and differs within a group. ``entries`` has (group, entry)."""
    kinds = {entry for _, entry in entries}
    if not 1 < len(kinds) <= MAX_KINDS or all(_is_number(entry) for entry in kinds):
        return False
    return len(set(entries)) > len({group for group, _ in entries})


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


def _values_hint(rows: Sequence[tuple[int, Row]], where: Sequence[tuple[str, str]]) -> str | None:
    """Return what the columns of ``where`` have instead."""
    found = []
    for column, _ in where:
        kinds = list(dict.fromkeys(row[column] for _, row in rows))
        found.append(f"{column} is {', '.join(kinds[:MAX_KINDS])}{' …' if len(kinds) > MAX_KINDS else ''}")
    return f"In this file, {'; '.join(found)}." if found and rows else None
