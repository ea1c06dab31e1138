"""A field for a line of text."""

from textual.events import Paste
from textual.widgets import Input

from lmconsole.errors import escape_control_characters


class Field(Input):
    """Shows control characters, which files and the clipboard may hold, as escape sequences: an ``Input`` sends them to
    the terminal."""

    def validate_value(self, value: str) -> str:
        """Return the value to show."""
        return escape_control_characters(value)

    def on_paste(self, event: Paste) -> None:
        """Insert all lines as one, as far as there is room. An ``Input`` takes the first one, if it is short enough."""
        event.prevent_default()
        event.stop()
        text = escape_control_characters(" ".join(event.text.split()))
        start, end = sorted(self.selection)
        room = len(text) if self.max_length is None else self.max_length - len(self.value) + end - start
        self.replace(text[: max(room, 0)], start, end)
