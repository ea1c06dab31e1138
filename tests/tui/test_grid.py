"""A grid that repaints only the cells that have changed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rich.style import Style
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.pilot import Pilot
from tui.stage import eventually, screen

from lmconsole.tui.widgets.grid import Grid, text_cells

SIZE = (40, 5)
BOLD = Style(bold=True)


class RecordingGrid(Grid):
    """A grid that records the regions it repaints."""

    def __init__(self) -> None:
        super().__init__("grid")
        self.regions: list[Region] = []

    def refresh(self, *regions: Region, **more: bool) -> "RecordingGrid":
        """Record the regions."""
        self.regions += regions
        super().refresh(*regions, **more)
        return self


class GridApp(App[None]):
    """An app with nothing but a grid."""

    CSS = "Grid { width: 100%; height: 100%; }"

    def compose(self) -> ComposeResult:
        """Yield the grid."""
        yield RecordingGrid()


@asynccontextmanager
async def grid(*lines: str) -> AsyncIterator[tuple[RecordingGrid, Pilot[None]]]:
    """Yield a grid that has painted ``lines``."""
    async with GridApp().run_test(size=SIZE) as pilot:
        shown = pilot.app.query_one(RecordingGrid)
        shown.put([text_cells(line) for line in lines])
        await pilot.pause()
        shown.regions.clear()
        yield shown, pilot


async def test_cells_beyond_the_rows_are_blank() -> None:
    async with grid("first line", "", "x" * 60, "4", "5", "6") as (_, pilot):
        assert screen(pilot).splitlines() == ["first line", "", "x" * 40, "4", "5"]


async def test_the_same_rows_repaint_nothing() -> None:
    async with grid("first line", "second line") as (shown, _):
        before = shown.repainted_cells
        shown.put([text_cells("first line"), text_cells("second line")])
        assert shown.repainted_cells == before
        assert shown.regions == []


async def test_only_changed_cells_are_repainted() -> None:
    async with grid("loss 5.31 after 100 steps", "nothing new here") as (shown, pilot):
        before = shown.repainted_cells
        shown.put([text_cells("loss 5.29 after 100 steps"), text_cells("nothing new here")])
        assert shown.regions == [Region(7, 0, 2, 1)]
        assert shown.repainted_cells == before + 2
        await pilot.pause()
        assert screen(pilot).splitlines()[0] == "loss 5.29 after 100 steps"


@pytest.mark.parametrize(
    ("new", "regions"),
    [
        ("XaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaX", [(0, 1), (39, 1)]),
        ("XaaaaaXaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", [(0, 7)]),
        ("XaaaaaaaXaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", [(0, 1), (8, 1)]),
        ("XXXX", [(0, 40)]),
    ],
)
async def test_changes_close_together_are_one_region(new: str, regions: list[tuple[int, int]]) -> None:
    async with grid("a" * 40) as (shown, _):
        shown.put([text_cells(new)])
        assert shown.regions == [Region(x, 0, width, 1) for x, width in regions]


async def test_a_change_of_style_is_a_change() -> None:
    async with grid("plain") as (shown, _):
        shown.put([text_cells("pl") + text_cells("ai", BOLD) + text_cells("n")])
        assert shown.regions == [Region(2, 0, 2, 1)]


async def test_every_row_is_repainted_after_a_resize() -> None:
    async with grid("one", "two") as (shown, pilot):
        shown.regions.clear()
        await pilot.resize_terminal(20, 3)
        await eventually(pilot, lambda: shown.size == (20, 3))
        assert shown.regions == [Region(0, y, 20, 1) for y in range(3)]
        await pilot.pause()
        assert screen(pilot).split() == ["one", "two"]
