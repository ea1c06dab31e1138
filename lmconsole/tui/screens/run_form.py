"""Form for running experiments with other settings."""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label

from lmconsole.engine.run_options import OPTIONS, Option, RunRequest
from lmconsole.errors import LmconsoleError
from lmconsole.tui.keys import KeyMap, first_key


class RunForm(ModalScreen[RunRequest | None]):
    """Asks for the settings of runs, and returns the request for them. None: canceled.

    ``check`` makes the request from the values as typed, by field. It raises LmconsoleError if a value is wrong; the
    form shows the message and stays open.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="form.cancel", tooltip="Forms: cancel"),
        Binding("ctrl+s", "accept", "Run", id="form.accept", priority=True, tooltip="Forms: accept"),
    ]
    FIELDS: ClassVar[dict[str, Option]] = {name: option for name, option in OPTIONS.items() if option.form_placeholder}
    """Options of the form, by field of the request."""

    def __init__(
        self, title: str, values: dict[str, str], check: Callable[[dict[str, str]], RunRequest], keymap: KeyMap
    ) -> None:
        super().__init__()
        self._keymap = keymap
        self._title, self._values, self._check = title, values, check

    def compose(self) -> ComposeResult:
        """Yield a row for each setting."""
        with VerticalScroll(classes="box", can_focus=False):
            yield Label(self._title, classes="title", markup=False)
            for name, option in self.FIELDS.items():
                with Horizontal(classes="row"):
                    yield Label(name.replace("_", " "))
                    yield Input(
                        self._values.get(name, ""),
                        placeholder=option.form_placeholder or "",
                        id=name,
                        tooltip=option.help,
                        compact=True,
                    )
            yield Label("Finished runs with the same settings are not repeated.", classes="note")
            yield Label("", classes="problem", id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel")
                yield Button(f"Run ({first_key(RunForm, 'form.accept', self._keymap)})", id="run", variant="success")

    def on_input_submitted(self) -> None:
        """Accept the form when Enter is pressed in a field."""
        self.action_accept()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Accept or cancel the form."""
        if event.button.id == "run":
            self.action_accept()
        else:
            self.dismiss(None)

    def action_accept(self) -> None:
        """Close the form if its values are valid."""
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in self.FIELDS}
        try:
            request = self._check(values)
        except LmconsoleError as error:
            self.query_one("#problem", Label).update(str(error))
            return
        self.dismiss(request)

    def action_leave(self) -> None:
        """Close without running anything."""
        self.dismiss(None)
