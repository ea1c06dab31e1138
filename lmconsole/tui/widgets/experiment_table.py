"""The table of experiments: a data table that repaints only the cells that have changed."""

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

RIGHT = frozenset({"ID", "L", "Train", "Valid", "Time"})
MOODS = {
    "running": "bold $primary",
    "queued": "$text-muted",
    "finished": "$text-success",
    "diverged": "$text-warning",
    "stopped": "$text-warning",
    "failed": "bold $text-error",
    "lost": "bold $text-error",
    "problem": "bold $text-error",
}
WIDTHS = {"": 2, "ID": 3, "Model": 7, "L": 2, "Optimizer": 9, "Train": 7, "Valid": 7, "Time": 8, "Trend": 10}
"""Columns' widths; the status takes what is left."""
NARROW = 64
"""Screens below this have no cells to spare between columns."""
NARROW_WIDTHS = WIDTHS | {"ID": 2, "Optimizer": 10, "Train": 8, "Valid": 8}
"""Without cells between columns."""
INDENTED = frozenset({"Model", "Optimizer"})
"""Columns that follow one whose texts end at its right edge."""
DROPPED = ("Trend", "Time", "Train", "L")
"""What narrow screens go without, first to last."""
LEAST_STATUS = 15
LEAST_NARROW_STATUS = 7
PADDING = 1


class ExperimentTable(DataTable[Text]):
    """Shows ``Row`` values. The cursor stays on its row, whatever comes and goes around it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "check", "Select", tooltip="Select: select or unselect this row"),
        Binding("right", "fold(True)", "Unfold", show=False, tooltip="Select: show the runs of this experiment"),
        Binding("home", "scroll_top", "First row", show=False),
        Binding("end", "scroll_bottom", "Last row", show=False),
        Binding("left", "fold(False)", "Fold", show=False, tooltip="Select: hide the runs of this experiment"),
    ]

    class Checked(Message):
        """A row is to be selected or unselected."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Folded(Message):
        """An experiment's runs are to be shown or hidden."""

        def __init__(self, row: Row, unfold: bool) -> None:
            super().__init__()
            self.row = row
            self.unfold = unfold

    class SortAsked(Message):
        """Somebody has clicked on the heading of a column."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    class Opened(Message):
        """Somebody wants to see everything about a row."""

    class Moved(Message):
        """The cursor is on another row."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, cell_padding=PADDING, id="experiments")
        self.rows_shown: list[Row] = []
        self._names: tuple[str, ...] = ()
        self._sorted: tuple[int, bool] = (1, False)
        self._status_width = 0
        self._widths = WIDTHS

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows_shown[self.cursor_row] if 0 <= self.cursor_row < len(self.rows_shown) else None

    @property
    def wide(self) -> bool:
        """Whether the status has room for more than a few words."""
        return self._status_width >= 34

    def fit(self, width: int) -> None:
        """Choose columns for a screen of ``width`` cells, one of which may go to the scroll bar."""
        padding = PADDING if width >= NARROW else 0
        widths = WIDTHS if padding else NARROW_WIDTHS
        names = [name for name in COLUMNS if name != "Status"]

        def room() -> int:
            return width - 2 - sum(widths[name] + 2 * padding for name in names) - 2 * padding

        least = LEAST_STATUS if padding else LEAST_NARROW_STATUS
        for name in DROPPED:
            if room() >= least:
                break
            names.remove(name)
        status = max(min(room(), 44), 8)
        chosen = tuple(name for name in COLUMNS if name in names or name == "Status")
        if (chosen, status) != (self._names, self._status_width):
            self._names, self._status_width, self._widths = chosen, status, widths
            place, offset = self.cursor_row, self.scroll_offset
            self.clear(columns=True)
            self.cell_padding = padding
            for name in chosen:
                self.add_column(self._heading(name), width=widths.get(name, status), key=name or "check")
            self._fill(self.rows_shown, place, offset)

    def show(self, rows: Sequence[Row], sort: tuple[int, bool] | None = None) -> None:
        """Show ``rows``. ``sort``: the column they are sorted by, and whether downwards, for the headings."""
        if not self._names:
            self.rows_shown = list(rows)
            return
        if sort is not None and sort != self._sorted:
            self._sorted = sort
            for column in self.columns.values():
                column.label = self._heading("" if column.key.value == "check" else str(column.key.value))
            self._update_count += 1
            self.refresh()
        if [row.key for row in rows] != [row.key for row in self.rows_shown] or len(rows) != self.row_count:
            self._rebuild(rows)
            return
        changed = [
            cell
            for index, (old, new) in enumerate(zip(self.rows_shown, rows, strict=True))
            if (old.cells, old.mood) != (new.cells, new.mood)
            for cell in self._update(index, old, new)
        ]
        if changed:
            self._forget(frozenset(changed))
        self.rows_shown = list(rows)

    def _rebuild(self, rows: Sequence[Row]) -> None:
        keys = [row.key for row in rows]
        place = keys.index(self.row.key) if self.row and self.row.key in keys else self.cursor_row
        offset = self.scroll_offset
        self.clear()
        self._fill(rows, place, offset)

    def _fill(self, rows: Sequence[Row], place: int, offset: Offset) -> None:
        """Put ``rows`` into the empty table, the cursor on the one at ``place``."""
        self.rows_shown = list(rows)
        for row in rows:
            self.add_row(*(self._cell(row, name) for name in self._names), key=row.key)
        if rows:
            self.move_cursor(row=min(place, len(rows) - 1), animate=False)
            self.scroll_to(y=offset.y, animate=False)

    def _update(self, index: int, old: Row, new: Row) -> list[tuple[RowKey, ColumnKey]]:
        """Put the cells that differ in place, and name them. The data table's own update would repaint all of it."""
        row_key, changed = RowKey(new.key), []
        for at, name in enumerate(self._names):
            i = COLUMNS.index(name)
            if old.cells[i] != new.cells[i] or (name == "Status" and old.mood != new.mood):
                key = ColumnKey(name or "check")
                self._data[row_key][key] = self._cell(new, name)
                changed.append((row_key, key))
                self.refresh_coordinate(Coordinate(index, at))
        return changed

    def _forget(self, changed: frozenset[tuple[RowKey, ColumnKey]]) -> None:
        """Render these cells anew and keep the others. The data table's own way is to render all of them, which takes
        four times as long as everything else that happens in a tick."""
        for key in list(self._cell_render_cache.keys()):
            if key[:2] in changed:
                self._cell_render_cache.discard(key)
        self._row_renderable_cache.clear()
        self._row_render_cache.clear()
        self._line_cache.clear()

    def _cell(self, row: Row, name: str) -> Text:
        text = self._indented(name) + row.cells[COLUMNS.index(name)]
        style = ""
        if name == "Status" and row.mood:
            style = self._styles_of_moods().get(row.mood, "")
        elif name == "Valid":
            style = "bold"
        elif row.child:
            style = "dim"
        width = self._widths.get(name, self._status_width)
        if len(text) > width:
            text = text[: width - 1] + "…"
        return Text(text, style=style, justify="right" if name in RIGHT else "left", no_wrap=True)

    def _styles_of_moods(self) -> dict[str, str]:
        variables = self.app.theme_variables
        styles = {}
        for mood, words in MOODS.items():
            parts = [variables.get(word[1:], "") if word.startswith("$") else word for word in words.split()]
            styles[mood] = " ".join(part for part in parts if part and not part.startswith("auto"))
        return styles

    def _heading(self, name: str) -> Text:
        column, down = self._sorted
        arrow = ("↓" if down else "↑") if name and COLUMNS[column] == name and (column, down) != (1, False) else ""
        label = f"{arrow}{name}" if name in RIGHT else f"{self._indented(name)}{name}{arrow}"
        return Text(label, justify="right" if name in RIGHT else "left", no_wrap=True)

    def _indented(self, name: str) -> str:
        return " " if name in INDENTED and not self.cell_padding else ""

    def restyle(self) -> None:
        """Take over the colours of another theme."""
        self._rebuild(self.rows_shown)

    def action_check(self) -> None:
        """Select or unselect the row under the cursor."""
        if self.row:
            self.post_message(self.Checked(self.row.key))

    def action_fold(self, unfold: bool) -> None:
        """Show or hide the runs of the experiment under the cursor."""
        if self.row:
            self.post_message(self.Folded(self.row, unfold))

    def action_select_cursor(self) -> None:
        """Open the row under the cursor."""
        self.post_message(self.Opened())

    async def _on_click(self, event: Click) -> None:
        """A click on the checkbox selects, one on a heading sorts, another moves the cursor, a second one opens."""
        meta = event.style.meta
        row, column = meta.get("row", -1), meta.get("column", -1)
        if row == -1 and 0 <= column < len(self._names):
            self.post_message(self.SortAsked(COLUMNS.index(self._names[column])))
        elif 0 <= row < len(self.rows_shown):
            self.move_cursor(row=row)
            if column == 0:
                self.post_message(self.Checked(self.rows_shown[row].key))
            elif event.chain == 2:
                self.post_message(self.Opened())
        event.stop()
        event.prevent_default()

    def watch_cursor_coordinate(self, old_coordinate: Coordinate, new_coordinate: Coordinate) -> None:
        """Tell the screen that another row is highlighted."""
        super().watch_cursor_coordinate(old_coordinate, new_coordinate)
        if old_coordinate.row != new_coordinate.row:
            self.post_message(self.Moved())
