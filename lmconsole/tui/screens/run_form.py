"""Form for runs with changed settings."""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label

from lmconsole.engine.run_options import OPTIONS, Option
from lmconsole.errors import LmconsoleError


class RunForm(ModalScreen[dict[str, str] | None]):
    """Asks for the settings of runs and returns them as typed. ``check`` raises LmconsoleError if they are invalid."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel"),
        Binding("ctrl+s", "accept", "Run", priority=True),
    ]
    FIELDS: ClassVar[dict[str, Option]] = {name: option for name, option in OPTIONS.items() if option.hint}

    def __init__(self, title: str, words: dict[str, str], check: Callable[[dict[str, str]], object]) -> None:
        super().__init__()
        self._title, self._words, self._check = title, words, check

    def compose(self) -> ComposeResult:
        """Yield a line for each setting."""
        with VerticalScroll(classes="box", can_focus=False):
            yield Label(self._title, classes="title", markup=False)
            for name, option in self.FIELDS.items():
                with Horizontal(classes="row"):
                    yield Label(name.replace("_", " "))
                    yield Input(
                        self._words.get(name, ""),
                        placeholder=option.hint or "",
                        id=name,
                        tooltip=option.help,
                        compact=True,
                    )
            yield Label("Finished runs with the same settings are not repeated.", classes="note")
            yield Label("", classes="problem", id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel")
                yield Button("Run (ctrl+s)", id="run", variant="success")

    def on_input_submitted(self) -> None:
        """Accept by the enter key."""
        self.action_accept()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Accept or cancel by a button."""
        if event.button.id == "run":
            self.action_accept()
        else:
            self.dismiss(None)

    def action_accept(self) -> None:
        """Close the form if the settings are valid; otherwise show the problem."""
        words = {name: self.query_one(f"#{name}", Input).value.strip() for name in self.FIELDS}
        try:
            self._check(words)
        except LmconsoleError as error:
            self.query_one("#problem", Label).update(str(error))
            return
        self.dismiss(words)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)
