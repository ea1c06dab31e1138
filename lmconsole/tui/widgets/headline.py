"""The headline: the name of the app, the store and the preset, and how many runs there are of each status."""

import contextlib
from collections import Counter
from pathlib import Path

from rich.style import Style
from textual.reactive import reactive

from lmconsole.errors import escape_control_characters
from lmconsole.runs.state import Status
from lmconsole.tui.snapshot import Snapshot
from lmconsole.tui.widgets.grid import Grid, text_cells

APP = "lmconsole"
LEAST_WIDTH_WITH_PRESET = 70


class Headline(Grid):
    """One line, drawn when one of its reactive values changes."""

    snapshot = reactive(Snapshot(), init=False, repaint=False)
    checked: reactive[frozenset[str]] = reactive(frozenset(), init=False, repaint=False)
    preset = reactive("", init=False, repaint=False)
    slow = reactive(False, init=False, repaint=False)

    def __init__(self, store_path: Path) -> None:
        super().__init__("headline")
        self._store_path = store_path

    def watch_snapshot(self) -> None:
        """Draw the counts of runs."""
        self.redraw()

    def watch_checked(self) -> None:
        """Draw the count of selected rows."""
        self.redraw()

    def watch_preset(self) -> None:
        """Draw the preset."""
        self.redraw()

    def watch_slow(self) -> None:
        """Draw whether the connection is slow."""
        self.redraw()

    def redraw(self) -> None:
        """Draw as much as the width allows, the counts first."""
        counts, width = self._counts(), self.size.width
        preset = f"  preset {escape_control_characters(self.preset)}" if width >= LEAST_WIDTH_WITH_PRESET else ""
        name = APP if width - len(counts) > len(APP) else ""
        room = width - len(counts) - len(preset) - len(APP) - 4  # two spaces on both sides
        store = _short_path(self._store_path.absolute(), room)
        place = f"  {escape_control_characters(store)}{preset}" if name else ""
        cells = text_cells(name, Style(bold=True)) + text_cells(place, Style(dim=True))
        if len(counts) > width > 0:
            counts = counts[: width - 1] + "…"
        room = width - len(counts)
        cells = cells[: max(room - 2, len(name))]
        self.put([cells + text_cells(" " * (room - len(cells)) + counts)])

    def _counts(self) -> str:
        snapshot = self.snapshot
        by_status = Counter(view.status for view in snapshot.runs.values())
        text = ", ".join(f"{by_status[each]} {each.value}" for each in Status if by_status[each]) or "no runs"
        if not snapshot.number:
            text = "reading the store"
        if snapshot.problems:
            text = f"{len(snapshot.problems)} unreadable, {text}"
        if snapshot.error:
            text = "the store cannot be read"
        if self.checked:
            text = f"{len(self.checked)} selected, {text}"
        return f"slow connection, {text}" if self.slow else text


def _short_path(path: Path, width: int) -> str:
    """Return the path with ``~`` for home, and only its end if it is too long."""
    with contextlib.suppress(ValueError, RuntimeError):
        path = Path("~") / path.relative_to(Path.home())
    text = str(path)
    return text if len(text) <= width else f"…{text[-max(width - 1, 8) :]}"
