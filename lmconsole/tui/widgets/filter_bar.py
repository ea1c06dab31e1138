"""The filter of the table: its field, and what is wrong with what was typed."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static

from lmconsole.errors import escape_control_characters
from lmconsole.tui.widgets.field import Field

MAX_FILTER = 500
"""Characters of the longest filter."""


class FilterBar(Vertical):
    """Hidden unless the field is in use or has a filter."""

    class Changed(Message):
        """The filter was changed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Submitted(Message):
        """The field was left with Enter."""

    def __init__(self, clear_key: str) -> None:
        """Show the key that clears the filter as part of a hint."""
        super().__init__()
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

    def show_problem(self, problem: str) -> None:
        """Show what is wrong with the filter; nothing if ``problem`` is empty."""
        problem = escape_control_characters(problem)
        label = self.query_one("#filter-problem", Static)
        if label.content != problem:
            label.update(problem)
            label.set_class(bool(problem), "shown")

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter while typing."""
        message.stop()
        self.post_message(self.Changed(message.value))

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Keep the filter, or hide the field if it is empty."""
        message.stop()
        self.set_class(bool(message.value), "shown")
        self.post_message(self.Submitted())
