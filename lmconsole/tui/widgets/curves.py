"""The curves of the selected runs, with their legend."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from textwrap import wrap
from typing import ClassVar, Literal, TypeVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click

from lmconsole.errors import escape_control_characters
from lmconsole.formatting import UNKNOWN, perplexity, rate, seconds
from lmconsole.tui.plot.axes import XAxis
from lmconsole.tui.plot.chart import CURSOR, CellRole, Drawing, draw
from lmconsole.tui.plot.glyphs import ANSI_PALETTE, DARK_PALETTE, PALETTE, Glyphs, rich_style
from lmconsole.tui.plot.series import SMOOTHING, ChartOptions, Series, ShownCurves
from lmconsole.tui.widgets.grid import Grid, GridCell, text_cells

LEGEND_WIDTH, NARROW_LEGEND_WIDTH = 37, 25
"""Least width of the legend, with both values of a run and with one."""
LEAST_PLOT_WIDTH = 30
WIDE = 100
"""Width from which the legend has both values."""
MAX_DRAWING_SHARE = 0.02
"""Share of the time that may go into drawing curves: many curves are drawn less often."""
QUICK_S = 0.01
"""Curves that take less time than this are drawn at once."""
MAX_RUNS = 24

T = TypeVar("T")
ChartOption = Literal["x", "log", "shown", "smoothing"]


def choose_fairly(series: Sequence[Series], most: int = MAX_RUNS) -> list[Series]:
    """Return at most this many series in their order, as evenly from every experiment as possible, the first of each
    first. If some are left out, colors and markers are assigned again, so that they differ."""
    if len(series) <= most:
        return list(series)
    ranks: Counter[int] = Counter()
    ranked = []
    for place, each in enumerate(series):
        ranked.append((ranks[each.experiment], place))
        ranks[each.experiment] += 1
    places = sorted(place for _, place in sorted(ranked)[:most])
    return [replace(series[place], slot=slot) for slot, place in enumerate(places)]


def shorten(label: str, room: int) -> str:
    """Return a label in at most ``room`` characters. Its last word, the seed if there are several, stays if it fits."""
    if len(label) <= room:
        return label
    last = label.rpartition(" ")[2]
    end = f"… {last}" if len(last) <= room // 2 else "…"
    return f"{label[: room - len(end)].rstrip()}{end}"


class Curves(Grid, can_focus=True):
    """Draws ``Series``; keys and clicks move a cursor that reads off values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "right",
            "move(1)",
            "Cursor right",
            id="curves.right",
            show=False,
            tooltip="Read values further to the right",
        ),
        Binding(
            "left", "move(-1)", "Cursor left", id="curves.left", show=False, tooltip="Read values further to the left"
        ),
        Binding("home", "move(-10000)", "Cursor to the start", id="curves.start", show=False),
        Binding("end", "move(10000)", "Cursor to the end", id="curves.end", show=False),
    ]

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__("curves")
        self._glyphs = glyphs
        self.series: tuple[Series, ...] = ()
        self._omitted = 0
        """Runs beyond ``MAX_RUNS``."""
        self._hint = ""
        self.options = ChartOptions()
        self.cursor: int | None = None
        """Column inside the axes, from 0; None to show the last values."""
        self.drawing = Drawing(rows=[])
        self._drawn_at = -1e9
        self._drawing_s = 0.0
        """Time that the last drawing took."""
        self._in_progress = False

    def show(self, series: Sequence[Series], hint: str = "", *, immediately: bool = False) -> None:
        """Draw ``series``, or ``hint`` if they have no points. Curves that take long to draw are drawn later, in a
        thread, unless ``immediately``."""
        chosen = choose_fairly(series)
        same_runs = [each.run for each in self.series] == [each.run for each in chosen]
        self._omitted = len(series) - len(chosen)
        self.series, self._hint = tuple(chosen), hint
        if immediately or not same_runs or self._drawing_s < QUICK_S:
            self.redraw()
        elif not self._in_progress and time.monotonic() - self._drawn_at >= self._drawing_s / MAX_DRAWING_SHARE:
            self._in_progress = True
            self.run_worker(self._draw_in_thread(), exit_on_error=False)

    async def _draw_in_thread(self) -> None:
        """Compute the drawing in a thread, so that keys are answered meanwhile, and show it if it is still wanted."""
        series, options = self.series, self.options
        width, height, legend = self._layout()
        began = time.monotonic()
        try:
            drawing = await asyncio.to_thread(draw, series, options, width - legend, height - 1, self._glyphs)
        finally:
            self._in_progress = False
        if (series, options) == (self.series, self.options) and (width, height, legend) == self._layout():
            self._drawing_s, self._drawn_at = time.monotonic() - began, time.monotonic()
            self._show_drawing(drawing)

    def redraw(self) -> None:
        """Draw at once."""
        width, height, legend = self._layout()
        if width and height:
            began = time.monotonic()
            self._show_drawing(draw(self.series, self.options, width - legend, height - 1, self._glyphs))
            self._drawn_at = time.monotonic()
            self._drawing_s = self._drawn_at - began

    def _layout(self) -> tuple[int, int, int]:
        """Return width and height of the widget, and the width of the legend: up to half of it for long labels."""
        width, height = self.size
        legend = LEGEND_WIDTH if width >= WIDE else NARROW_LEGEND_WIDTH
        if width - legend < LEAST_PLOT_WIDTH:
            return width, height, 0
        if self._has_line_per_run(height - 1):
            longest = max((len(series.label) for series in self.series), default=0)
            legend = max(legend, min(longest + 4 + (15 if self._shows_both else 7), width // 2))
        return width, height, legend

    @property
    def _shows_both(self) -> bool:
        """Whether the legend has train and validation values."""
        return self.size.width >= WIDE and self.options.shown is ShownCurves.BOTH

    def _has_line_per_run(self, height: int) -> bool:
        """Return whether a legend of ``height`` lines has one for each run."""
        return len(self.series) + (self._omitted > 0) <= height - 1

    def _show_drawing(self, drawing: Drawing) -> None:
        width, height, legend_width = self._layout()
        self.drawing = drawing
        if self.cursor is not None and drawing.columns:
            self.cursor = max(0, min(self.cursor, drawing.columns - 1))
        rows = [self._heading(width)]
        legend = self._legend(legend_width, height - 1)
        for y, cells in enumerate(self._styled()):
            rows.append(cells + (legend[y] if y < len(legend) else []))
        if not drawing.columns:
            hint = self._hint_rows(width)
            rows = [rows[0], *([[] for _ in range(max((height - 2 - len(hint)) // 2, 0))]), *hint]
        self.put(rows)

    def _heading(self, width: int) -> list[GridCell]:
        options = self.options
        position = "" if self.cursor is None else f"  at {self._cursor_text()}"
        scale = "log" if options.log else "linear"
        smooths = options.smoothing and options.shown is not ShownCurves.VALIDATION  # only train curves are smoothed
        smoothing = f", smoothing {options.smoothing:g}" if smooths else ""
        long = f"Perplexity ({scale}, {options.shown.value}{smoothing}) over {options.x.value}{position}"
        short = f"{options.shown.value}, {scale}, over {options.x.value}{position}"
        line = text_cells(long if len(long) <= width else short, rich_style("", bold=True))
        if options.shown is ShownCurves.BOTH and width - len(line) > 40:
            curve = "⠒⠒●" if self._glyphs.unicode else f"{self._glyphs.markers[0] * 3}"
            dots = self._glyphs.train * 3
            published = any(series.published_ppl for series in self.series)
            dashes = f"   {self._glyphs.published * 3} published" if published else ""
            band = f"   {self._glyphs.band * 3} min to max of seeds" if any(s.seeds for s in self.series) else ""
            key = f"{curve} validation   {dots} train{dashes}{band}"
            if len(line) + len(key) + 2 > width:
                key = key.removesuffix(" of seeds")
            line += text_cells(" " * (width - len(line) - len(key)) + key, rich_style("", dim=True))
        return line

    def _hint_rows(self, width: int) -> list[list[GridCell]]:
        lines = wrap(escape_control_characters(self._hint or "No measurements yet."), max(width - 4, 1))
        return [text_cells(" " * ((width - len(line)) // 2) + line, rich_style("", dim=True)) for line in lines]

    def _styled(self) -> list[list[GridCell]]:
        """Return the cells of the drawing in their styles, with the cursor."""
        drawing, cursor = self.drawing, self.cursor
        column = None if cursor is None else drawing.first_column + cursor
        styles: dict[CellRole, Style] = {}
        rows = []
        for y, row in enumerate(drawing.rows):
            cells = []
            for x, (text, role) in enumerate(row):
                if x == column and text == " " and y < len(drawing.rows) - 2:
                    text, role = self._glyphs.cursor, CURSOR
                if role not in styles:
                    styles[role] = self._role_style(role)
                cells.append((text, styles[role] if text != " " else Style.null()))
            rows.append(cells)
        return rows

    def _role_style(self, role: CellRole) -> Style:
        if role.kind == "axis":
            return rich_style("", dim=True)
        if role.kind == "cursor":
            return rich_style("", bold=True)
        return rich_style(self._color(role.slot), bold=role.kind == "valid", dim=role.kind in ("published", "band"))

    def _color(self, slot: int) -> str:
        return self._palette()[slot % len(PALETTE)]

    def _palette(self) -> tuple[str, ...]:
        if self.app.no_color:
            return ("",) * len(PALETTE)
        if self.app.console.color_system in ("standard", "windows"):
            return ANSI_PALETTE
        return DARK_PALETTE if self.app.current_theme.dark else PALETTE

    def _marker(self, slot: int) -> str:
        return self._glyphs.markers[slot % len(self._glyphs.markers)]

    def _legend(self, width: int, height: int) -> list[list[GridCell]]:
        """Return the legend, which is next to the plot so that it hides no curve: a run per line, or several of them
        where there are more runs than lines."""
        if not width or not self.series:
            return []
        if self._has_line_per_run(height):
            one = "train" if self.options.shown is ShownCurves.TRAIN else "valid"
            headings = f"{'train':>7} {'valid':>7}" if self._shows_both else f"{one:>7}"
            lines = [text_cells(f"{headings:>{width}}", rich_style("", dim=True))]
            lines += [self._entry(series, width) for series in self.series]
        else:
            per_line = max(width // 12, 1)
            entries = [self._short_entry(series) for series in self.series]
            lines = [list(chain(*entries[i : i + per_line])) for i in range(0, len(entries), per_line)]
            if len(lines) > height:
                lines[height - 1 :] = [text_cells(f" and {len(self.series) - (height - 1) * per_line} more")]
        if self._omitted:
            omitted = text_cells(f" {self._omitted:,} more runs not drawn", rich_style("", dim=True))
            lines = [*lines[: height - 1], omitted]
        return lines

    def _values(self, series: Series) -> tuple[str, str]:
        """Return train and validation perplexity at the cursor, or the last ones."""
        trace = next((t for t in self.drawing.traces if t.series is series), None)
        if trace is None:
            return UNKNOWN, UNKNOWN
        x = self.drawing.x_limits[1] if self.cursor is None else self._cursor_x()
        train, valid = self.drawing.reading(trace, x)
        texts = []
        for value, points in ((train, trace.train), (valid, trace.valid)):
            last = trace.off_scale[-1] if trace.off_scale else None
            diverged = last is not None and last <= x and (not points or last > points[-1][0])
            texts.append("nan/inf" if diverged else perplexity(value))
        if trace.valid and not trace.train and not trace.off_scale:
            texts[0] = ""  # an imported run whose source has no train losses
        return texts[0], texts[1]

    def _entry(self, series: Series, width: int) -> list[GridCell]:
        train, valid = self._values(series)
        one = train if self.options.shown is ShownCurves.TRAIN else valid
        values = f"{train:>7} {valid:>7}" if self._shows_both else f"{one:>7}"
        room = width - len(values) - 4
        label = shorten(series.label, room)
        marker = text_cells(f" {self._marker(series.slot)} ", rich_style(self._color(series.slot), bold=True))
        return [*marker, *text_cells(f"{label:<{room}} {values}")]

    def _short_entry(self, series: Series) -> list[GridCell]:
        train, valid = self._values(series)
        value = train if self.options.shown is ShownCurves.TRAIN else valid
        number = series.label.split(" ")[0]
        marker = text_cells(f" {self._marker(series.slot)}", rich_style(self._color(series.slot), bold=True))
        return [*marker, *text_cells(f"{number:>2} {value:>7}")]

    def _cursor_x(self) -> float:
        return self.drawing.x_at(self.drawing.first_column + (self.cursor or 0))

    def _cursor_text(self) -> str:
        x = self._cursor_x()
        if self.options.x is XAxis.TIME:
            return seconds(x)
        return f"{rate(x)} tokens" if self.options.x is XAxis.TOKENS else f"epoch {x:.2f}"

    def action_move(self, columns: int) -> None:
        """Move the cursor."""
        self.move_cursor(columns)

    def move_cursor(self, columns: int) -> None:
        """Move the cursor; without one, start from the right end."""
        if self.drawing.columns:
            start = self.drawing.columns - 1 if self.cursor is None else self.cursor
            self.cursor = max(0, min(start + columns, self.drawing.columns - 1))
            self.redraw()

    def remove_cursor(self) -> None:
        """Remove the cursor."""
        self.cursor = None
        self.redraw()

    async def on_click(self, event: Click) -> None:
        """Put the cursor into the column that was clicked."""
        column = event.x - self.drawing.first_column
        if 0 <= column < self.drawing.columns and event.y > 0:
            self.cursor = column
            self.redraw()

    def cycle(self, option: ChartOption) -> None:
        """Change one of the chart's options to its next value."""
        options = self.options
        if option == "x":
            self.options = replace(options, x=_next(list(XAxis), options.x))
        elif option == "log":
            self.options = replace(options, log=not options.log)
        elif option == "shown":
            self.options = replace(options, shown=_next(list(ShownCurves), options.shown))
        else:
            self.options = replace(options, smoothing=_next(list(SMOOTHING), options.smoothing))
        self.redraw()


def _next(values: list[T], value: T) -> T:
    return values[(values.index(value) + 1) % len(values)]
