"""The curves and their legend."""

import asyncio
import time
from collections.abc import Sequence
from itertools import chain
from textwrap import wrap
from typing import ClassVar, TypeVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, perplexity, rate, seconds
from lmconsole.tui.plot.chart import SMOOTHING, Drawing, Ink, Series, Shown, View, XAxis, draw
from lmconsole.tui.plot.glyphs import ANSI_PALETTE, DARK_PALETTE, PALETTE, Glyphs, rich_style
from lmconsole.tui.widgets.grid import Grid, GridCell, text_cells

LEGEND_WIDTH = 37
NARROW_LEGEND_WIDTH = 25
LEAST_PLOT = 30
COST_SHARE = 0.02
"""Of the time, at most so much goes into drawing curves; when there are many, they are drawn less often."""
QUICK_S = 0.01
"""What takes less is drawn at once."""
MOST_RUNS = 24

T = TypeVar("T")


class Curves(Grid, can_focus=True):
    """Draws ``Series``; keys and clicks move a cursor that reads values off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "move(1)", "Cursor right", show=False, tooltip="Read values further to the right"),
        Binding("left", "move(-1)", "Cursor left", show=False, tooltip="Read values further to the left"),
        Binding("home", "move(-10000)", "Cursor to the start", show=False),
        Binding("end", "move(10000)", "Cursor to the end", show=False),
    ]

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__("curves")
        self._glyphs = glyphs
        self.series: tuple[Series, ...] = ()
        self._left_out = 0
        self._hint = ""
        self.view = View()
        self.cursor: int | None = None
        """Column of the plot's own, from 0; None if values at the end are shown."""
        self.drawing = Drawing([])
        self._drawn = -1e9
        self._cost_s = 0.0
        self._drawing = False

    def show(self, series: Sequence[Series], hint: str = "") -> None:
        """Draw these runs; ``hint`` is what to say where there is nothing to draw."""
        known = [each.run for each in self.series] == [each.run for each in series[:MOST_RUNS]]
        self._left_out = max(len(series) - MOST_RUNS, 0)
        self.series, self._hint = tuple(series[:MOST_RUNS]), hint
        if not known or self._cost_s < QUICK_S:
            self.redraw()
        elif not self._drawing and time.monotonic() - self._drawn >= self._cost_s / COST_SHARE:
            self._drawing = True
            self.run_worker(self._draw_aside(), exit_on_error=False)

    async def _draw_aside(self) -> None:
        """Draw in another thread, so that keys need not wait for many curves."""
        width, height, legend = self._measure()
        asked = (self.series, self.view, width - legend, height - 1, self._glyphs)
        began = time.monotonic()
        try:
            drawing = await asyncio.to_thread(draw, *asked)
        finally:
            self._drawing = False
        if asked[:2] == (self.series, self.view) and (width, height, legend) == self._measure():
            self._cost_s, self._drawn = time.monotonic() - began, time.monotonic()
            self._show_drawing(drawing)

    def redraw(self) -> None:
        """Draw now."""
        width, height, legend = self._measure()
        if width and height:
            began = time.monotonic()
            self._show_drawing(draw(self.series, self.view, width - legend, height - 1, self._glyphs))
            self._drawn = time.monotonic()
            self._cost_s = self._drawn - began

    def _measure(self) -> tuple[int, int, int]:
        """Width and height of the widget, and the width of the legend."""
        width, height = self.size
        legend = (
            LEGEND_WIDTH if width >= 100 else NARROW_LEGEND_WIDTH if width - NARROW_LEGEND_WIDTH >= LEAST_PLOT else 0
        )
        return width, height, legend

    def _show_drawing(self, drawing: Drawing) -> None:
        width, height, legend = self._measure()
        self.drawing = drawing
        if self.cursor is not None and drawing.columns:
            self.cursor = max(0, min(self.cursor, drawing.columns - 1))
        rows = [self._title(width)]
        side = self._legend(legend, height - 1)
        for y, cells in enumerate(self._styled()):
            rows.append(cells + (side[y] if y < len(side) else []))
        if not drawing.columns:
            nothing = self._nothing(width)
            rows = [rows[0], *([[] for _ in range(max((height - 2 - len(nothing)) // 2, 0))]), *nothing]
        self.put(rows)

    def _on_resize(self, _event: Resize) -> None:
        self.redraw()

    def _title(self, width: int) -> list[GridCell]:
        view = self.view
        where = "" if self.cursor is None else f"  at {self._x_text()}"
        scale = "log" if view.log else "linear"
        smooth = f", smoothing {view.smoothing:g}" if view.smoothing else ""
        long = f"Perplexity ({scale}, {view.shown.value}{smooth}) over {view.x.value}{where}"
        short = f"{view.shown.value}, {scale}, over {view.x.value}{where}"
        line = text_cells(long if len(long) <= width else short, rich_style("", bold=True))
        if view.shown is Shown.BOTH and width - len(line) > 40:
            curve = "⠒⠒●" if self._glyphs.unicode else f"{self._glyphs.markers[0] * 3}"
            dots = self._glyphs.train * 3
            dashes = f"   {self._glyphs.published * 3} published" if any(s.published_ppl for s in self.series) else ""
            key = f"{curve} validation   {dots} train{dashes}"
            line += text_cells(" " * (width - len(line) - len(key)) + key, rich_style("", dim=True))
        return line

    def _nothing(self, width: int) -> list[list[GridCell]]:
        lines = wrap(escape_control_characters(self._hint or "No measurements yet."), max(width - 4, 1))
        return [text_cells(" " * ((width - len(line)) // 2) + line, rich_style("", dim=True)) for line in lines]

    def _styled(self) -> list[list[GridCell]]:
        drawing, cursor = self.drawing, self.cursor
        column = None if cursor is None else drawing.first_column + cursor
        styles: dict[Ink, Style] = {}
        rows = []
        for y, row in enumerate(drawing.rows):
            cells = []
            for x, (text, ink) in enumerate(row):
                if x == column and text == " " and y < len(drawing.rows) - 2:
                    text, ink = self._glyphs.cursor, Ink("cursor")
                if ink not in styles:
                    styles[ink] = self._style(ink)
                cells.append((text, styles[ink] if text != " " else Style.null()))
            rows.append(cells)
        return rows

    def _style(self, ink: Ink) -> Style:
        if ink.what == "axis":
            return rich_style("", dim=True)
        if ink.what == "cursor":
            return rich_style("", bold=True)
        return rich_style(
            self._palette()[ink.slot % len(PALETTE)], bold=ink.what == "valid", dim=ink.what == "published"
        )

    def _palette(self) -> tuple[str, ...]:
        if self.app.no_color:
            return ("",) * len(PALETTE)
        if self.app.console.color_system in ("standard", "windows"):
            return ANSI_PALETTE
        return DARK_PALETTE if self.app.current_theme.dark else PALETTE

    def _legend(self, width: int, height: int) -> list[list[GridCell]]:
        """Beside the plot, so that it never hides a curve: a line a run, or with little room several runs a line."""
        if not width or not self.series:
            return []
        if len(self.series) + (self._left_out > 0) <= height - 1:
            both = width >= LEGEND_WIDTH and self.view.shown is Shown.BOTH
            values = (
                f"{'train':>7} {'valid':>7}"
                if both
                else f"{'valid' if self.view.shown is not Shown.TRAIN else 'train':>7}"
            )
            lines = [text_cells(f"{values:>{width}}", rich_style("", dim=True))]
            lines += [self._entry(series, width, both) for series in self.series]
        else:
            per_line = max(width // 12, 1)
            entries = [self._short_entry(series) for series in self.series]
            lines = [list(chain(*entries[i : i + per_line])) for i in range(0, len(entries), per_line)]
            hidden = len(lines) - height
            if hidden > 0:
                lines[height - 1 :] = [text_cells(f" and {len(self.series) - (height - 1) * per_line} more")]
        if self._left_out:
            lines = [
                *lines[: height - 1],
                text_cells(f" {self._left_out} more are not drawn", rich_style("", dim=True)),
            ]
        return lines

    def _values(self, series: Series) -> tuple[str, str]:
        trace = next((t for t in self.drawing.traces if t.series is series), None)
        if trace is None:
            return UNKNOWN, UNKNOWN
        x = self.drawing.x_limits[1] if self.cursor is None else self._x()
        train, valid = self.drawing.reading(trace, x)
        texts = []
        for value, at in ((train, trace.train), (valid, trace.valid)):
            lost = trace.astray and trace.astray[-1] <= x and (not at or trace.astray[-1] > at[-1][0])
            texts.append("nan/inf" if lost else perplexity(value))
        return texts[0], texts[1]

    def _entry(self, series: Series, width: int, both: bool) -> list[GridCell]:
        colour = self._palette()[series.slot % len(PALETTE)]
        train, valid = self._values(series)
        values = f"{train:>7} {valid:>7}" if both else f"{train if self.view.shown is Shown.TRAIN else valid:>7}"
        room = width - len(values) - 4
        label = series.label if len(series.label) <= room else series.label[: room - 1] + "…"
        marker = self._glyphs.markers[series.slot % len(self._glyphs.markers)]
        return [*text_cells(f" {marker} ", rich_style(colour, bold=True)), *text_cells(f"{label:<{room}} {values}")]

    def _short_entry(self, series: Series) -> list[GridCell]:
        colour = self._palette()[series.slot % len(PALETTE)]
        train, valid = self._values(series)
        marker = self._glyphs.markers[series.slot % len(self._glyphs.markers)]
        value = train if self.view.shown is Shown.TRAIN else valid
        number = series.label.split(" ")[0]
        return [*text_cells(f" {marker}", rich_style(colour, bold=True)), *text_cells(f"{number:>2} {value:>7}")]

    def _x(self) -> float:
        return self.drawing.x_at(self.drawing.first_column + (self.cursor or 0))

    def _x_text(self) -> str:
        x = self._x()
        if self.view.x is XAxis.TIME:
            return seconds(x)
        return f"{rate(x)} tokens" if self.view.x is XAxis.TOKENS else f"epoch {x:.2f}"

    def action_move(self, columns: int) -> None:
        """Move the cursor; from its place at the end it steps in."""
        if self.drawing.columns:
            start = self.drawing.columns - 1 if self.cursor is None else self.cursor
            self.cursor = max(0, min(start + columns, self.drawing.columns - 1))
            self.redraw()

    def drop_cursor(self) -> bool:
        """Take the cursor away, if there is one."""
        had, self.cursor = self.cursor is not None, None
        if had:
            self.redraw()
        return had

    async def _on_click(self, event: Click) -> None:
        at = event.x - self.drawing.first_column
        if 0 <= at < self.drawing.columns and event.y > 0:
            self.cursor = at
            self.redraw()

    def turn(self, what: str) -> None:
        """The next of several ways: ``x`` axis, ``log`` scale, ``shown`` curves, ``smoothing``."""
        view = self.view
        if what == "x":
            self.view = View(_next(list(XAxis), view.x), view.log, view.shown, view.smoothing)
        elif what == "log":
            self.view = View(view.x, not view.log, view.shown, view.smoothing)
        elif what == "shown":
            self.view = View(view.x, view.log, _next(list(Shown), view.shown), view.smoothing)
        else:
            self.view = View(view.x, view.log, view.shown, _next(list(SMOOTHING), view.smoothing))
        self.redraw()


def _next(values: list[T], value: T) -> T:
    return values[(values.index(value) + 1) % len(values)]
