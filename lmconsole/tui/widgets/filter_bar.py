"""The filter of the table: its field, and below it the part of the filter that is wrong."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static

from lmconsole.errors import escape_control_characters
from lmconsole.tui.filter import Filter, parse_filter
from lmconsole.tui.row_filter import Values, matching_rows
from lmconsole.tui.rows import Row
from lmconsole.tui.widgets.field import Field

MAX_FILTER = 500
"""Characters of the longest filter."""


class FilterBar(Vertical):
    """Hidden unless the field is in use or has a filter."""

    class Changed(Message):
        """The filter was changed."""

    class Submitted(Message):
        """The field was left with Enter."""

    def __init__(self, clear_key: str) -> None:
        """Show the key that clears the filter as part of a hint."""
        super().__init__()
        self._filter: Filter | None = None
        """None to show all rows."""
        self._hint = f"words  !not  a|b  /regex/  lr>1e-3  tag:x   {clear_key} clears"

    def compose(self) -> ComposeResult:
        """Yield the field and the line below it."""
        yield Field(placeholder=self._hint, id="filter", max_length=MAX_FILTER, compact=True)
        yield Static("", id="filter-problem", markup=False)

    @property
    def _field(self) -> Field:
        return self.query_one(Field)

    def open(self) -> None:
        """Show the field and focus it."""
        self.add_class("shown")
        self._field.focus()

    def close(self) -> bool:
        """Clear and hide the field. Return False if it was hidden."""
        was_shown = self.has_class("shown")
        self._field.value = ""
        self.remove_class("shown")
        return was_shown

    def matching(self, rows: Sequence[Row], planned: Values) -> Sequence[Row]:
        """Return the rows that the filter shows, and show the part that is wrong. ``planned`` as in ``row_filter``."""
        if self._filter is not None:
            rows, self._filter = matching_rows(rows, self._filter, planned)
        problem = escape_control_characters(self._filter.problem) if self._filter else ""
        label = self.query_one("#filter-problem", Static)
        if label.content != problem:
            label.update(problem)
            label.set_class(bool(problem), "shown")
        return rows

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter while typing."""
        message.stop()
        self._filter = parse_filter(message.value) if message.value.strip() else None
        self.post_message(self.Changed())

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Keep the filter, or hide the field if it is empty."""
        message.stop()
        self.set_class(bool(message.value), "shown")
        self.post_message(self.Submitted())
