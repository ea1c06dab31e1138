"""Form for the note and the tags of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label

from lmconsole.errors import LmconsoleError
from lmconsole.runs.notes import MAX_NOTE, Notes, parse_tag
from lmconsole.tui.keys import KeyMap, first_key


@dataclass(frozen=True, kw_only=True, slots=True)
class NotesChange:
    """Changes that were made in the form, for every run."""

    note: str | None
    """None if it is as before: runs keep the notes that differ."""
    add: tuple[str, ...]
    remove: tuple[str, ...]


class NotesForm(ModalScreen[NotesChange | None]):
    """Edits what all of the runs have in common: their note, if it is the same, and the tags that all of them have.

    Returns None if it was canceled.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="form.cancel", tooltip="Forms: cancel"),
        Binding("ctrl+s", "accept", "Save", id="form.accept", priority=True, tooltip="Forms: accept"),
    ]

    def __init__(self, title: str, notes: Sequence[Notes], keymap: KeyMap) -> None:
        super().__init__()
        self._title, self._keymap = title, keymap
        self._note = notes[0].note if len({each.note for each in notes}) == 1 else ""
        self._tags = tuple(tag for tag in notes[0].tags if all(tag in each.tags for each in notes))
        self._differ = len({each.note for each in notes}) > 1

    def compose(self) -> ComposeResult:
        """Yield a field for the note, one for the tags, and two buttons."""
        with Vertical(classes="box"):
            yield Label(self._title, classes="title", markup=False)
            with Horizontal(classes="row"):
                yield Label("note")
                hint = "the notes differ; a new one replaces them" if self._differ else "free text"
                yield Input(
                    " ".join(self._note.split()), placeholder=hint, id="note", max_length=MAX_NOTE, compact=True
                )
            with Horizontal(classes="row"):
                yield Label("tags")
                yield Input(" ".join(self._tags), placeholder="words such as good or baseline", id="tags", compact=True)
            yield Label("They change no result. The filter finds tags (tag:good) and words.", classes="note")
            yield Label("", classes="problem", id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel")
                key = first_key(NotesForm, "form.accept", self._keymap)
                yield Button(f"Save ({key})", id="save", variant="success")

    def on_input_submitted(self) -> None:
        """Save when Enter is pressed in a field."""
        self.action_accept()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Save or cancel."""
        if event.button.id == "save":
            self.action_accept()
        else:
            self.dismiss(None)

    def action_accept(self) -> None:
        """Close the form if the tags are valid."""
        note = self.query_one("#note", Input).value.strip()
        try:
            tags = [parse_tag(word) for word in self.query_one("#tags", Input).value.replace(",", " ").split()]
        except LmconsoleError as error:
            self.query_one("#problem", Label).update(str(error))
            return
        self.dismiss(
            NotesChange(
                note=None if note == " ".join(self._note.split()) else note,
                add=tuple(tag for tag in tags if tag not in self._tags),
                remove=tuple(tag for tag in self._tags if tag not in tags),
            )
        )

    def action_leave(self) -> None:
        """Close without changes."""
        self.dismiss(None)
