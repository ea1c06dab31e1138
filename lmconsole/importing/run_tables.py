"""Runs in a CSV file, with one row per epoch."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from lmconsole.errors import StoreError
from lmconsole.importing.sources import (
    MAX_EPOCHS,
    Candidate,
    EpochNumbers,
    ImportSourceError,
    Source,
    normalize,
    one_line,
    parse_float,
    read_text,
    stated_value,
)

_REQUIRED_COLUMNS = (
    ("model", "architecture"),
    ("layers",),
    ("optimizer",),
    ("epoch",),
    ("valid_ppl", "valid_loss_nats"),
)
"""Columns of a CSV file; one of each tuple is required."""


def table_runs(path: Path) -> Iterator[Candidate]:
    """Group the rows of a CSV file by ``run`` or, without that column, by experiment and seed."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
    except ImportSourceError as error:
        raise StoreError(f"{path}: {error}") from None
    except csv.Error as error:
        raise StoreError(f"{path}: not CSV: {error}") from None
    columns = {normalize(name) for name in (rows[0] if rows else {}) if name}
    missing = [
        first + (f" (or {' or '.join(others)})" if others else "")
        for first, *others in _REQUIRED_COLUMNS
        if columns.isdisjoint((first, *others))
    ]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise StoreError(
            f"{path}: missing column{plural}: {'; '.join(missing)}", hint="docs/importing.md lists the columns."
        )
    by_run: dict[tuple[str, ...], list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(rows, 2):
        cells = {normalize(name): value.strip() for name, value in row.items() if name and isinstance(value, str)}
        key = (
            cells.get("run", ""),
            *(str(stated_value(cells, setting) or "") for setting in ("model", "layers", "optimizer", "seed")),
        )
        by_run.setdefault((key[0],) if key[0] else key, []).append((number, cells))
    for key, run_rows in by_run.items():
        name = " ".join(part[:40] for part in key if part)
        yield Candidate(
            location=one_line(f"{path}: {name}"),
            place=one_line(f"{os.path.abspath(path)}: {name}"),
            read_stated=partial(_stated_by_row, run_rows),
            read=partial(_read_rows, run_rows),
        )


def _stated_by_row(rows: Sequence[tuple[int, Mapping[str, str]]]) -> Mapping[str, str]:
    return {key: value for key, value in rows[0][1].items() if value and key != "epoch"}


def _read_rows(rows: Sequence[tuple[int, Mapping[str, str]]]) -> Source:
    epochs: dict[int, EpochNumbers] = {}
    test_ppls = set()
    for line, cells in rows:
        where = f"line {line}"
        epoch = parse_float(cells.get("epoch", ""), f"{where}, epoch")
        if not epoch.is_integer() or int(epoch) in epochs:
            raise ImportSourceError(f"{where}: epoch {cells['epoch'][:40]} is not a whole number, or is repeated")
        non_finite = dict(pair.split("=", 1) for pair in cells.get("non_finite", "").split() if "=" in pair)
        epochs[int(epoch)] = EpochNumbers(
            **{
                field.name: parse_float(text, f"{where}, {field.name}")
                for field in fields(EpochNumbers)
                if (text := cells.get(field.name) or non_finite.get(field.name, ""))
            }
        )
        if test_ppl := cells.get("test_ppl"):
            test_ppls.add(parse_float(test_ppl, f"{where}, test_ppl"))
    if len(epochs) > MAX_EPOCHS:
        raise ImportSourceError(f"more than {MAX_EPOCHS:,} epochs")
    if sorted(epochs) != list(range(1, len(epochs) + 1)):
        given = ", ".join(f"{epoch:.6g}" for epoch in sorted(epochs)[:8])
        more = ", …" if len(epochs) > 8 else ""
        raise ImportSourceError(f"epochs are not 1 to {len(epochs)}: {given}{more}")
    if len(test_ppls) > 1:
        raise ImportSourceError("several different values of test_ppl")
    return Source(
        stated=_stated_by_row(rows),
        epochs=[epochs[epoch] for epoch in sorted(epochs)],
        test_ppl=next(iter(test_ppls), None),
    )
