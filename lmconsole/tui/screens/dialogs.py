"""What opens over the console: questions, forms, help, comparisons, and what was exported."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Label, Static

from lmconsole.tui.screens.pictures import browse


class Question(ModalScreen[bool]):
    """Asks before something is lost; ``False`` is the default."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
    ]

    def __init__(self, title: str, lines: Sequence[str], yes: str) -> None:
        super().__init__()
        self._title, self._lines, self._yes = title, lines, yes

    def compose(self) -> ComposeResult:
        """A title, what would happen, and two buttons."""
        with Vertical(classes="box"):
            yield Label(self._title, classes="title", markup=False)
            for line in self._lines:
                yield Label(line, classes="note", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("No (n)", id="no")
                yield Button(f"{self._yes} (y)", id="yes", variant="error")

    def on_mount(self) -> None:
        """The harmless answer has the focus."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Either button."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """A key."""
        self.dismiss(answer)


class Page(ModalScreen[None]):
    """Something to read, and to scroll if it is long."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close"),
        Binding("down,j", "scroll(1)", "Scroll", show=False),
        Binding("up,k", "scroll(-1)", "Scroll up", show=False),
    ]

    def __init__(self, title: str, body: RenderableType) -> None:
        super().__init__()
        self._title, self._body = title, body

    def compose(self) -> ComposeResult:
        """The title, the text, and how to close it."""
        with Vertical(classes="wide-box"):
            yield Label(self._title, classes="title", markup=False)
            with VerticalScroll():
                yield Static(self._body, id="body")
        yield Footer(show_command_palette=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by some lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def help_page(bindings: Iterable[BindingType]) -> Page:
    """Every key that has a tooltip, ``Group: what it does``, groups together."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for binding in bindings:
        if isinstance(binding, Binding) and binding.tooltip:
            group, _, what = binding.tooltip.rpartition(": ")
            groups.setdefault(group, []).append((key_name(binding.key), what))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for i, (group, lines) in enumerate(groups.items()):
        if i:
            table.add_row(Text(""), Text(""))
        table.add_row(Text(group, style="bold underline"), Text(""))
        for key, what in lines:
            table.add_row(Text(key), Text(what[0].upper() + what[1:]))
    return Page("Keys", table)


_KEY_NAMES = {
    "slash": "/",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "right": "→",
    "left": "←",
}


def key_name(keys: str) -> str:
    """Keys as they stand on a keyboard."""
    return ", ".join(_KEY_NAMES.get(key, key) for key in keys.split(","))


def compare_page(lines: Sequence[tuple[str, ...]], note: str) -> Page:
    """Best perplexities side by side; the first line is the headings."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for i, name in enumerate(lines[0]):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*(Text(cell) for cell in line))
    body = Table.grid()
    body.add_row(table)
    body.add_row(Text(f"\n{note}", style="dim"))
    return Page("Comparison", body)


class Exported(Page):
    """What was written and where, with the figures on request."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "figures", "Figures")]

    def __init__(self, paths: Sequence[Path], table: str, figures: Sequence[Path]) -> None:
        body = Table.grid()
        body.add_row(Text(f"{len(paths)} files in {paths[0].parent}", overflow="fold"))
        body.add_row(
            Text(f"The write-up: {', '.join(path.name for path in paths if path.stem == 'report')}", style="dim")
        )
        body.add_row(Text(f"\n{table}", overflow="fold"))
        super().__init__("Exported", body)
        self._figures = figures

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without figures there is nothing to offer."""
        return bool(self._figures) if action == "figures" else super().check_action(action, parameters)

    def action_figures(self) -> None:
        """Show the figures in the terminal, or say why it cannot and where they are."""
        try:
            with self.app.suspend():
                problem = browse(self._figures)
        except SuspendNotSupported:
            problem = "Figures cannot be shown here."
        if problem:
            self.notify(f"{problem}\nThey are in {self._figures[0].parent}.", timeout=10, markup=False)
