"""Every use of a private name of Textual, in this one file. Checked against Textual 8.2.8.

When Textual is upgraded, this is the file to read: each function and import says why the public interface does not do.
"""

from collections.abc import Collection
from io import TextIOWrapper
from typing import Any, TypeVar, cast

from textual._compositor import ChopsUpdate as ChopsUpdate  # what a partial update of the screen is made of
from textual._compositor import Compositor as Compositor  # the only place where partial updates are made
from textual._compositor import LayoutUpdate as LayoutUpdate  # what a full update of the screen is made of
from textual.app import App
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter
from textual.screen import Screen
from textual.widgets import DataTable
from textual.widgets.data_table import ColumnKey, RowKey

Cell = TypeVar("Cell")

CHECKED_VERSIONS = ("8.2.8",)
"""Textual versions in which these names were read and tested."""


def set_compositor(screen: Screen[Any], compositor: Compositor) -> None:
    """Replace the compositor of ``screen``. A screen always makes its own and takes no other."""
    screen._compositor = compositor


def add_line_filter(app: App[Any], line_filter: LineFilter) -> None:
    """Add a filter for every line that is drawn. Only Textual's own filters can be chosen publicly."""
    app._filters.append(line_filter)


def current_driver(app: App[Any]) -> Driver | None:
    """Return the driver of ``app``, None before it runs. The class of the driver is public, the object is not."""
    return app._driver


def set_output(driver: LinuxDriver, output: object) -> None:
    """Let ``driver`` write to ``output`` (``write``, ``flush``, ``fileno``, ``isatty``). It always writes to stderr."""
    driver._file = cast("TextIOWrapper", output)


def set_cell(table: DataTable[Cell], row_key: RowKey, column_key: ColumnKey, value: Cell) -> None:
    """Change one cell without a repaint. ``DataTable.update_cell`` repaints the whole table: 46 kB/s in place of 3."""
    table._data[row_key][column_key] = value


def discard_cached_cells(table: DataTable[Any], changed: Collection[tuple[RowKey, ColumnKey]]) -> None:
    """Render the ``changed`` cells again and keep the others. The table's own way is to render all of its cells, which
    takes four times as long as everything else that happens in a tick."""
    for key in list(table._cell_render_cache.keys()):
        if key[:2] in changed:
            table._cell_render_cache.discard(key)
    table._row_renderable_cache.clear()
    table._row_render_cache.clear()
    table._line_cache.clear()


def invalidate_headings(table: DataTable[Any]) -> None:
    """Render the headings again after a label was changed; every cache of the table is keyed by this count."""
    table._update_count += 1
