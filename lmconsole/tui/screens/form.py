"""Forms: fields, what is wrong with them, and two buttons."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen, ScreenResultType
from textual.widgets import Button, Label

from lmconsole.errors import LmconsoleError
from lmconsole.tui.keys import KeyMap, first_key
from lmconsole.tui.widgets.field import Field


class Form(ModalScreen[ScreenResultType | None]):
    """Returns ``result()``, or None if it was canceled. Subclasses yield the fields and make the result of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="form.cancel", tooltip="Forms: cancel"),
        Binding("ctrl+s", "accept", "Accept", id="form.accept", priority=True, tooltip="Forms: accept"),
    ]

    def __init__(self, title: str, keymap: KeyMap, *, button: str, note: str) -> None:
        """Show ``note`` below the fields, and ``button`` on the button that accepts them."""
        super().__init__()
        self._title, self._keymap, self._button, self._note_below = title, keymap, button, note

    def compose(self) -> ComposeResult:
        """Yield title, fields, note, problem and buttons."""
        with VerticalScroll(classes="box", can_focus=False):
            yield Label(self._title, classes="title", markup=False)
            for field in self.fields():
                with Horizontal(classes="row"):
                    yield Label(str(field.id).replace("_", " "))
                    yield field
            yield Label(self._note_below, classes="note", markup=False)
            yield Label("", classes="problem", id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel")
                key = first_key(Form, "form.accept", self._keymap)
                yield Button(f"{self._button} ({key})", id="accept", variant="success")

    def fields(self) -> list[Field]:
        """Return the fields. Their ids are their names."""
        raise NotImplementedError

    def result(self) -> ScreenResultType:
        """Return the result. Raises LmconsoleError if a value is wrong: the form shows the message and stays open."""
        raise NotImplementedError

    def value(self, name: str) -> str:
        """Return what is in the field of this name, without spaces around it."""
        return self.query_one(f"#{name}", Field).value.strip()

    def show_note(self, text: str) -> None:
        """Show another note below the fields."""
        self.query_one(".note", Label).update(text)

    def on_input_submitted(self) -> None:
        """Accept the form when Enter is pressed in a field."""
        self.action_accept()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Accept or cancel the form."""
        if event.button.id == "accept":
            self.action_accept()
        else:
            self.dismiss(None)

    def action_accept(self) -> None:
        """Close the form if its values are valid."""
        try:
            result = self.result()
        except LmconsoleError as error:
            self.query_one("#problem", Label).update(str(error))
            return
        self.dismiss(result)

    def action_leave(self) -> None:
        """Close without a result."""
        self.dismiss(None)
