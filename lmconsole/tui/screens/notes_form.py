"""Form for the note and the tags of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmconsole.errors import escape_control_characters
from lmconsole.runs.notes import MAX_NOTE, Notes, parse_tag
from lmconsole.tui.keys import KeyMap
from lmconsole.tui.screens.form import Form
from lmconsole.tui.widgets.field import Field


@dataclass(frozen=True, kw_only=True, slots=True)
class NotesChange:
    """Changes that were made in the form, for every run."""

    note: str | None = None
    """None if it is as before: runs keep the notes that differ."""
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class NotesForm(Form[NotesChange]):
    """Edits what all of the runs have in common: their note, if it is the same, and the tags that all of them have."""

    def __init__(self, title: str, notes: Sequence[Notes], keymap: KeyMap) -> None:
        super().__init__(
            title, keymap, button="Save", note="They change no result. The filter finds tags (tag:good) and words."
        )
        self._differ = len({each.note for each in notes}) > 1
        self._note = "" if self._differ else escape_control_characters(" ".join(notes[0].note.split()))
        """The note as it is shown, on one line."""
        self._tags = tuple(tag for tag in notes[0].tags if all(tag in each.tags for each in notes))

    def fields(self) -> list[Field]:
        """Return a field for the note and one for the tags."""
        hint = "the notes differ; a new one replaces them" if self._differ else "free text"
        return [
            Field(self._note, placeholder=hint, id="note", max_length=MAX_NOTE, compact=True),
            Field(" ".join(self._tags), placeholder="words such as good or baseline", id="tags", compact=True),
        ]

    def result(self) -> NotesChange:
        """Return what was changed. Raises LmconsoleError if a tag cannot be one."""
        note, tags = self.value("note"), [parse_tag(word) for word in self.value("tags").replace(",", " ").split()]
        return NotesChange(
            note=None if note == self._note else note,
            add=tuple(tag for tag in tags if tag not in self._tags),
            remove=tuple(tag for tag in self._tags if tag not in tags),
        )
