"""Modal screens: questions, and pages to read."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.theme import Theme
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Label, Static

from lmconsole.tui.filter import SYNTAX
from lmconsole.tui.keys import FooterScreen, KeyMap, documented, first_key, key_name, keys_in_force
from lmconsole.tui.screens.pictures import browse


class Question(ModalScreen[bool]):
    """Asks for confirmation. No is the default."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="question.yes"),
        Binding("n,escape", "answer(False)", "No", id="question.no"),
    ]

    def __init__(self, title: str, lines: Sequence[str], yes: str, keymap: KeyMap) -> None:
        super().__init__()
        self._title, self._lines, self._yes = title, lines, yes
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        """Yield a title, the consequences, and two buttons."""
        with Vertical(classes="box"):
            yield Label(self._title, classes="title", markup=False)
            for line in self._lines:
                yield Label(line, classes="note", markup=False)
            with Horizontal(classes="buttons"):
                yes, no = [first_key(Question, f"question.{answer}", self._keymap) for answer in ("yes", "no")]
                yield Button(f"No ({no})", id="no")
                yield Button(f"{self._yes} ({yes})", id="yes", variant="error")

    def on_mount(self) -> None:
        """Focus the safe answer."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer by a button."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answer by a key."""
        self.dismiss(answer)


class Page(FooterScreen[None], ModalScreen[None]):
    """A page to read, which scrolls if it is long."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", id="page.close"),
        Binding("down,j", "scroll(1)", "Scroll", id="page.down"),
        Binding("up,k", "scroll(-1)", "Scroll up", id="page.up", show=False),
    ]

    def __init__(self, title: str, body: RenderableType) -> None:
        super().__init__()
        self._title, self._body = title, body

    def compose(self) -> ComposeResult:
        """Yield the title, the text, and the keys."""
        with Vertical(classes="wide-box"):
            yield Label(self._title, classes="title", markup=False)
            with VerticalScroll():
                yield from self.compose_body()
        yield Footer(show_command_palette=False)

    def compose_body(self) -> ComposeResult:
        """Yield the text."""
        yield Static(self._body, id="body")

    def on_mount(self) -> None:
        """Show in the footer whether the page scrolls, also after a change of its size."""
        self.watch(self.query_one(VerticalScroll), "show_vertical_scrollbar", self.refresh_bindings)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer scrolling only where there is more to see."""
        if action == "scroll":
            return any(each.show_vertical_scrollbar for each in self.query(VerticalScroll))
        return super().check_action(action, parameters)

    def action_scroll(self, lines: int) -> None:
        """Scroll by some lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def help_page(bindings: Iterable[BindingType], keymap: KeyMap) -> Page:
    """Return the page with every documented binding, by group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for binding in documented(bindings):
        group, _, text = binding.tooltip.rpartition(": ")
        groups.setdefault(group, []).append((key_name(keys_in_force(binding, keymap)), text))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for i, (group, lines) in enumerate(groups.items()):
        if i:
            table.add_row(Text(""), Text(""))
        table.add_row(Text(group, style="bold underline"), Text(""))
        for key, text in lines:
            table.add_row(Text(key), Text(text[0].upper() + text[1:]))
    table.add_row(Text(""), Text(""))
    table.add_row(Text("Filter", style="bold underline"), Text(""))
    for example, meaning in SYNTAX:
        table.add_row(Text(example), Text(meaning[0].upper() + meaning[1:]))
    return Page("Keys", table)


class Exported(Page):
    """The exported files and the results table, with the figures on request."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "figures", "Figures", id="exported.figures")]

    def __init__(self, paths: Sequence[Path], table: str, figures: Sequence[Path]) -> None:
        """Show ``paths`` and a caption and table in markdown."""
        body = Table.grid()
        body.add_row(Text(f"{len(paths)} files in {paths[0].parent}", overflow="fold"))
        report = ", ".join(path.name for path in paths if path.stem == "report")
        body.add_row(Text(f"The report: {report}\n", style="dim"))
        super().__init__("Exported", body)
        self._caption, _, self._grid = table.partition("\n\n")
        self._figures = figures

    def compose_body(self) -> ComposeResult:
        """Yield the files, the caption, and the table, which scrolls to the right if it is wider than the page."""
        from rich.markdown import Markdown

        yield from super().compose_body()
        yield Static(Markdown(self._caption, hyperlinks=False))
        grid = Static(Markdown(self._grid, hyperlinks=False))
        grid.styles.width = max(map(cell_len, self._grid.splitlines()), default=0)
        yield grid

    def on_mount(self) -> None:
        """Let wide tables scroll, and use the colors of the page."""
        self.query_one(VerticalScroll).styles.overflow_x = "auto"
        self.app.console.push_theme(Theme({"markdown.table.header": "bold", "markdown.table.border": "dim"}))

    def on_unmount(self) -> None:
        """Return to the usual colors."""
        self.app.console.pop_theme()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer the figures only if there are any."""
        return bool(self._figures) if action == "figures" else super().check_action(action, parameters)

    def action_figures(self) -> None:
        """Show the figures in the terminal, or notify why that is not possible and where they are."""
        try:
            with self.app.suspend():
                problem = browse(self._figures)
        except SuspendNotSupported:
            problem = "Figures cannot be shown here."
        if problem:
            self.notify(f"{problem}\nThey are in {self._figures[0].parent}.", timeout=10, markup=False)
