"""The order of the experiments table."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lmconsole.tui.rows import COLUMNS, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Sort:
    """The column that the table is sorted by, and the direction."""

    column: int = 1
    descending: bool = False

    def by(self, column: int) -> "Sort":
        """Sort by ``column``, in the other direction if the table is sorted by it already."""
        return Sort(column=column, descending=not self.descending if column == self.column else False)

    def by_next_column(self, absent: Collection[str] = ()) -> "Sort":
        """Sort by the next column that is not the checkbox, and not ``absent``."""
        order = [*range(self.column + 1, len(COLUMNS)), *range(1, self.column + 1)]
        return Sort(column=next(column for column in order if COLUMNS[column] not in absent))


def sort_rows(rows: Iterable[Row], sort: Sort) -> list[Row]:
    """Return the rows sorted; runs stay below their experiment, unreadable runs at the end."""
    families: dict[int, list[Row]] = {}
    unreadable: list[Row] = []
    for row in rows:
        (families.setdefault(row.experiment.id, []) if row.experiment else unreadable).append(row)
    ordered = sorted(
        families.items(), key=lambda item: _family_order(item[1][0], item[0], sort), reverse=sort.descending
    )
    return [*(row for _, family in ordered for row in family), *unreadable]


def _family_order(row: Row, number: int, sort: Sort) -> tuple[float, str, float]:
    """Return the sort key of an experiment: unknown values come last in either direction, ties go by id."""
    value, text = row.sort_keys[sort.column]
    if math.isinf(value) and value > 0 and sort.descending:
        value = -math.inf
    return value, text, -number if sort.descending else number
