"""Form for running experiments with other settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.message import Message
from textual.widgets import Input

from lmconsole.engine.run_options import OPTIONS, Option, RunRequest
from lmconsole.tui.keys import KeyMap
from lmconsole.tui.screens.form import Form
from lmconsole.tui.widgets.field import Field

NOTE = "Finished runs with the same settings are not repeated."


class RunForm(Form[RunRequest]):
    """Asks for the settings of runs, and returns the request for them.

    ``check`` makes the request from the values as typed, by field. It raises LmconsoleError if a value is wrong.
    ``sketch`` says what the seeds as typed will show, in a thread: its first call imports scipy.
    """

    @dataclass
    class SeedsDescribed(Message):
        """The seeds as typed show this."""

        text: str

    FIELDS: ClassVar[dict[str, Option]] = {name: option for name, option in OPTIONS.items() if option.form_placeholder}
    """Options of the form, by field of the request."""

    def __init__(
        self,
        title: str,
        values: dict[str, str],
        check: Callable[[dict[str, str]], RunRequest],
        sketch: Callable[[str], str],
        keymap: KeyMap,
    ) -> None:
        super().__init__(title, keymap, button="Run", note=NOTE)
        self._values, self._check, self._sketch = values, check, sketch

    def fields(self) -> list[Field]:
        """Return a field for each option."""
        return [
            Field(
                self._values.get(name, ""),
                placeholder=option.form_placeholder or "",
                id=name,
                tooltip=option.help,
                compact=True,
            )
            for name, option in self.FIELDS.items()
        ]

    @on(Input.Changed, "#seeds")
    def _describe_seeds(self) -> None:
        """Say below the fields what the seeds will show."""
        self._describe(self.value("seeds"))

    @work(thread=True, exclusive=True)
    def _describe(self, seeds: str) -> None:
        self.post_message(self.SeedsDescribed(self._sketch(seeds)))

    @on(SeedsDescribed)
    def _show_seeds(self, message: SeedsDescribed) -> None:
        self.show_note(f"{NOTE} {message.text}".strip())

    def result(self) -> RunRequest:
        """Return the request. Raises LmconsoleError if a value is wrong."""
        return self._check({name: self.value(name) for name in self.FIELDS})
