"""The table of experiments: a ``DataTable`` that repaints only the cells that have changed."""

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.events import Click
from textual.geometry import Offset
from textual.message import Message
from textual.widgets import DataTable
from textual.widgets.data_table import ColumnKey, RowKey

from lmconsole.tui.rows import COLUMNS, Row
from lmconsole.tui.sorting import Sort
from lmconsole.tui.terminal.textual_internals import discard_cached_cells, invalidate_headings, set_cell

RIGHT_ALIGNED = frozenset({"ID", "L", "Train", "Valid", "Change", "Time"})
STATUS_STYLES = {
    "running": "bold $primary",
    "queued": "$text-muted",
    "finished": "$text-success",
    "diverged": "$text-warning",
    "damaged": "$text-warning",
    "stopped": "$text-warning",
    "failed": "bold $text-error",
    "lost": "bold $text-error",
    "problem": "bold $text-error",
}
"""Rich styles with theme variables, by ``Row.status_style``."""
WIDTHS = {
    "": 2,
    "ID": 3,
    "Model": 7,
    "L": 2,
    "Optimizer": 9,
    "Train": 7,
    "Valid": 7,
    "Change": 8,
    "Time": 8,
    "Trend": 10,
}
"""Widths of columns; the status takes the rest, and shares it with the notes if there are any."""
NARROW = 64
"""Screens below this width have no padding between columns."""
NARROW_WIDTHS = WIDTHS | {"ID": 2, "Optimizer": 10, "Train": 8, "Valid": 8}
"""Widths of columns without padding."""
INDENTED = frozenset({"Model", "Optimizer"})
"""Columns to the right of a right-aligned one, which need a space where there is no padding."""
OPTIONAL_COLUMNS = ("Trend", "Time", "Train", "L")
"""Columns that narrow screens leave out, the first one first."""
LEAST_STATUS = 15
LEAST_NARROW_STATUS = 7
MOST_STATUS = 44
WIDE_STATUS = 34
"""Width of the status column from which on it has room for details."""
LEAST_NOTES, MOST_NOTES = 12, 60
STATUS_NEXT_TO_NOTES = 22
"""Width of the status column in a screen where the notes need the rest."""
PADDING = 1


class ExperimentTable(DataTable[Text], inherit_bindings=False):
    """Shows ``Row`` values. The cursor stays on its row when rows above it come and go.

    Its keys are all its own, since those that a ``DataTable`` has cannot be changed by a key map.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "check", "Select", id="table.select", tooltip="Select: select or unselect this row"),
        Binding(
            "right",
            "fold(True)",
            "Unfold",
            id="table.unfold",
            show=False,
            tooltip="Select: show the runs of this experiment",
        ),
        Binding(
            "left",
            "fold(False)",
            "Fold",
            id="table.fold",
            show=False,
            tooltip="Select: hide the runs of this experiment",
        ),
        Binding("up", "cursor_up", "Up", id="table.up", show=False),
        Binding("down", "cursor_down", "Down", id="table.down", show=False),
        Binding("pageup", "page_up", "Page up", id="table.page-up", show=False),
        Binding("pagedown", "page_down", "Page down", id="table.page-down", show=False),
        Binding("home,ctrl+home", "scroll_top", "First row", id="table.first", show=False),
        Binding("end,ctrl+end", "scroll_bottom", "Last row", id="table.last", show=False),
    ]

    class CheckToggled(Message):
        """The checkbox of a row was toggled."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class FoldRequested(Message):
        """The runs of an experiment should be shown or hidden."""

        def __init__(self, row: Row, unfold: bool) -> None:
            super().__init__()
            self.row = row
            self.unfold = unfold

    class HeadingClicked(Message):
        """The heading of a column was clicked."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    class RowOpened(Message):
        """The row under the cursor should be shown in detail."""

    class RowChanged(Message):
        """The cursor has moved to another row."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, cell_padding=PADDING, id="experiments")
        self.rows_shown: list[Row] = []
        self._names: tuple[str, ...] = ()
        """Columns shown."""
        self._sort = Sort()
        self._status_width = 0
        self._screen_width = 0
        self._id_width = 0
        """Width of the longest id."""
        self._widths = WIDTHS
        self._has_notes = False
        self._baseline = ""
        """Label of the baseline; empty if none is pinned."""
        self._baseline_heading = ""
        """Label in the heading of its column."""

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows_shown[self.cursor_row] if 0 <= self.cursor_row < len(self.rows_shown) else None

    @property
    def wide(self) -> bool:
        """Whether the status column has room for details."""
        return self._status_width >= WIDE_STATUS

    @property
    def shows_notes(self) -> bool:
        """Whether there is a column of notes."""
        return "Notes" in self._names

    @property
    def empty_columns(self) -> frozenset[str]:
        """Columns that have no text in any row."""
        present = {"Change": bool(self._baseline), "Notes": self._has_notes}
        return frozenset(name for name, text in present.items() if not text)

    def fit(self, width: int) -> None:
        """Choose the columns for a screen of ``width`` cells, one of which a scroll bar may need."""
        self._screen_width = width
        padding = PADDING if width >= NARROW else 0
        widths = WIDTHS if padding else NARROW_WIDTHS
        widths = widths | {"ID": max(widths["ID"], self._id_width)}
        names = [name for name in COLUMNS if name not in ("Status", "Notes") and (name != "Change" or self._baseline)]

        def room() -> int:
            return width - 2 - sum(widths[name] + 2 * padding for name in names) - 2 * padding

        least = LEAST_STATUS if padding else LEAST_NARROW_STATUS
        for name in OPTIONAL_COLUMNS:
            if room() >= least:
                break
            names.remove(name)
        status = max(min(room(), MOST_STATUS), 8)
        notes = min(room() - min(status, STATUS_NEXT_TO_NOTES) - 2 * padding, MOST_NOTES)
        if self._has_notes and padding and notes >= LEAST_NOTES:
            if room() - WIDE_STATUS - 2 * padding >= 2 * LEAST_NOTES:
                notes = min(room() - WIDE_STATUS - 2 * padding, MOST_NOTES)
            status = min(room() - notes - 2 * padding, MOST_STATUS)
            names.append("Notes")
            widths = widths | {"Notes": notes}
        chosen = tuple(name for name in COLUMNS if name in names or name == "Status")
        layout = (chosen, status, widths, self._baseline)
        if layout != (self._names, self._status_width, self._widths, self._baseline_heading):
            self._names, self._status_width, self._widths, self._baseline_heading = layout
            cursor_row, offset = self.cursor_row, self.scroll_offset
            self.clear(columns=True)
            self.cell_padding = padding
            for name in chosen:
                self.add_column(self._heading(name), width=widths.get(name, status), key=_column_key(name).value)
            self._fill(self.rows_shown, cursor_row, offset)

    def show(self, rows: Sequence[Row], sort: Sort, baseline: str = "") -> None:
        """Show ``rows``, which are sorted by ``sort``, with differences to a ``baseline`` of this label."""
        id_width = max((len(row.cells[COLUMNS.index("ID")]) for row in rows), default=0)
        has_notes = any(row.cells[COLUMNS.index("Notes")] for row in rows)
        if (id_width, has_notes, baseline) != (self._id_width, self._has_notes, self._baseline):
            self._id_width, self._has_notes, self._baseline = id_width, has_notes, baseline
            if self._names:
                self.fit(self._screen_width)
        if not self._names:
            self.rows_shown = list(rows)
            return
        if sort != self._sort:
            self._sort = sort
            for name in self._names:
                self.columns[_column_key(name)].label = self._heading(name)
            invalidate_headings(self)
            self.refresh()
        if [row.key for row in rows] != [row.key for row in self.rows_shown] or len(rows) != self.row_count:
            self._rebuild(rows)
            return
        changed = [
            cell
            for index, (old, new) in enumerate(zip(self.rows_shown, rows, strict=True))
            if (old.cells, old.status_style, old.damaged) != (new.cells, new.status_style, new.damaged)
            for cell in self._update_row(index, old, new)
        ]
        if changed:
            discard_cached_cells(self, frozenset(changed))
        self.rows_shown = list(rows)

    def _rebuild(self, rows: Sequence[Row]) -> None:
        keys = [row.key for row in rows]
        index = keys.index(self.row.key) if self.row and self.row.key in keys else self.cursor_row
        offset = self.scroll_offset
        self.clear()
        self._fill(rows, index, offset)

    def _fill(self, rows: Sequence[Row], cursor_row: int, offset: Offset) -> None:
        """Add ``rows`` to the empty table."""
        self.rows_shown = list(rows)
        for row in rows:
            self.add_row(*(self._cell(row, name) for name in self._names), key=row.key)
        if rows:
            self.move_cursor(row=min(cursor_row, len(rows) - 1), animate=False)
            self.scroll_to(y=offset.y, animate=False)

    def _update_row(self, index: int, old: Row, new: Row) -> list[tuple[RowKey, ColumnKey]]:
        """Update and repaint the cells that differ. Return their keys."""
        row_key, changed = RowKey(new.key), []
        for at, name in enumerate(self._names):
            i = COLUMNS.index(name)
            styles = {"Status": old.status_style != new.status_style, "Valid": old.damaged != new.damaged}
            if old.cells[i] != new.cells[i] or styles.get(name):
                set_cell(self, row_key, _column_key(name), self._cell(new, name))
                changed.append((row_key, _column_key(name)))
                self.refresh_coordinate(Coordinate(index, at))
        return changed

    def _cell(self, row: Row, name: str) -> Text:
        text = self._indented(name) + row.cells[COLUMNS.index(name)]
        style = ""
        if name == "Status" and row.status_style:
            style = self._status_style(row.status_style)
        elif name == "Valid":
            style = "" if row.damaged else "bold"
        elif row.child:
            style = "dim"
        cell = Text(text, style=style, justify="right" if name in RIGHT_ALIGNED else "left", no_wrap=True)
        cell.truncate(self._widths.get(name, self._status_width), overflow="ellipsis")
        return cell

    def _status_style(self, name: str) -> str:
        """Return the Rich style of a status in the present theme."""
        variables = self.app.theme_variables
        words = STATUS_STYLES.get(name, "").split()
        parts = [variables.get(word[1:], "") if word.startswith("$") else word for word in words]
        return " ".join(part for part in parts if part and not part.startswith("auto"))

    def _heading(self, name: str) -> Text:
        sort = self._sort
        arrow = ("↓" if sort.descending else "↑") if name and COLUMNS[sort.column] == name and sort != Sort() else ""
        shown = f"vs {self._baseline}"[: WIDTHS["Change"] - len(arrow)] if name == "Change" else name
        label = f"{arrow}{shown}" if name in RIGHT_ALIGNED else f"{self._indented(name)}{shown}{arrow}"
        return Text(label, justify="right" if name in RIGHT_ALIGNED else "left", no_wrap=True)

    def _indented(self, name: str) -> str:
        return " " if name in INDENTED and not self.cell_padding else ""

    def restyle(self) -> None:
        """Use the colors of the present theme."""
        self._rebuild(self.rows_shown)

    def action_check(self) -> None:
        """Select or unselect the row under the cursor."""
        if self.row:
            self._toggle(self.row)

    def _toggle(self, row: Row) -> None:
        if not row.unreadable:
            self.post_message(self.CheckToggled(row.key))

    def action_fold(self, unfold: bool) -> None:
        """Show or hide the runs of the experiment under the cursor."""
        if self.row:
            self.post_message(self.FoldRequested(self.row, unfold))

    def action_select_cursor(self) -> None:
        """Open the row under the cursor."""
        self.post_message(self.RowOpened())

    async def on_click(self, event: Click) -> None:
        """Toggle a checkbox, sort by a heading, move the cursor; a double click opens a row."""
        meta = event.style.meta
        row, column = meta.get("row", -1), meta.get("column", -1)
        if row == -1 and 0 <= column < len(self._names):
            self.post_message(self.HeadingClicked(COLUMNS.index(self._names[column])))
        elif 0 <= row < len(self.rows_shown):
            self.move_cursor(row=row)
            if column == 0:
                self._toggle(self.rows_shown[row])
            elif event.chain == 2:
                self.post_message(self.RowOpened())
        event.stop()
        event.prevent_default()  # the data table would select the cell

    def watch_cursor_coordinate(self, old_coordinate: Coordinate, new_coordinate: Coordinate) -> None:
        """Post ``RowChanged`` when the cursor moves to another row."""
        super().watch_cursor_coordinate(old_coordinate, new_coordinate)
        if old_coordinate.row != new_coordinate.row:
            self.post_message(self.RowChanged())


def _column_key(name: str) -> ColumnKey:
    return ColumnKey(name or "check")
