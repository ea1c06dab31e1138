"""Perplexity curves as a grid of characters, drawn by plotext. Pure: the same values give the same grid.

plotext 5 breaks on values that are not finite, on logarithmic axes with limits, and on equal limits. So it is given
finite points on linear axes, with limits and ticks computed beforehand.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from lmconsole.tui.plot.axes import Limits, XAxis, log_limits, step_above, x_ticks, y_ticks
from lmconsole.tui.plot.glyphs import Glyphs
from lmconsole.tui.plot.plotext_internals import new_figure, render
from lmconsole.tui.plot.series import XY, ChartOptions, Series, ShownCurves, Trace, interpolated, to_y, traces

AXIS_ROWS = 2
"""Rows of the x axis and of its labels."""
CurveKind = Literal["valid", "train", "published", "band"]


class CellRole(NamedTuple):
    """The part of the chart that a cell belongs to, which decides its style. A tuple, because each cell is hashed."""

    kind: CurveKind | Literal["axis", "cursor"]
    slot: int = 0


AXIS = CellRole(kind="axis")
CURSOR = CellRole(kind="cursor")
Cell = tuple[str, CellRole]

_KINDS: tuple[CurveKind, ...] = get_args(CurveKind)
_SLOTS = 64
_FIRST_COLOR = 16
"""plotext numbers its own colors up to here; higher numbers encode a kind of curve and a slot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A grid of cells, the top row first, and the x values of its columns."""

    rows: list[list[Cell]]
    first_column: int = 0
    """First column inside the axes."""
    columns: int = 0
    """Columns inside the axes; 0 if nothing is drawn."""
    x_limits: Limits = (0.0, 1.0)
    traces: tuple[Trace, ...] = ()
    log: bool = True

    def x_at(self, column: int) -> float:
        """Return the x value of a column of the grid."""
        low, high = self.x_limits
        share = (column - self.first_column) / max(self.columns - 1, 1)
        return low + max(0.0, min(share, 1.0)) * (high - low)

    def reading(self, trace: Trace, x: float) -> tuple[float | None, float | None]:
        """Return train and validation perplexity at the last points up to ``x``; None before the first one."""
        return self._last_ppl(trace.train, x), self._last_ppl(trace.valid, x)

    def _last_ppl(self, points: Sequence[XY], x: float) -> float | None:
        y = next((y for point_x, y in reversed(points) if point_x <= x + 1e-9), None)
        return 10.0**y if self.log and y is not None else y


def _fill_bands(
    rows: list[list[Cell]],
    found: Sequence[Trace],
    first: int,
    columns: int,
    x_limits: Limits,
    y_limits: Limits,
    glyph: str,
) -> None:
    """Shade the blank cells of ``rows`` whose middle is between the lowest and the highest validation of the seeds.

    ``first`` is the first of the ``columns`` inside the axes.
    """
    height = len(rows) - AXIS_ROWS
    step = (x_limits[1] - x_limits[0]) / max(columns - 1, 1)
    for trace in found:
        if len(trace.band) < 2:
            continue
        lows, highs = [(x, low) for x, low, _ in trace.band], [(x, high) for x, _, high in trace.band]
        inside = [c for c in range(columns) if lows[0][0] <= x_limits[0] + c * step <= lows[-1][0]]
        grid = [x_limits[0] + c * step for c in inside]
        for c, low, high in zip(inside, interpolated(lows, grid), interpolated(highs, grid), strict=True):
            bottom, top = [(y - y_limits[0]) / (y_limits[1] - y_limits[0]) * (height - 1) for y in (low, high)]
            for level in range(max(math.ceil(bottom), 0), min(math.floor(top), height - 1) + 1):
                if rows[height - 1 - level][first + c][0] == " ":
                    rows[height - 1 - level][first + c] = (glyph, CellRole(kind="band", slot=trace.series.slot))


def draw(series: Sequence[Series], options: ChartOptions, width: int, height: int, glyphs: Glyphs) -> Drawing:
    """Draw ``series`` in ``height`` rows of ``width`` cells, axes and labels included."""
    blank = Drawing(rows=[[(" ", AXIS)] * width for _ in range(height)])
    found = traces(series, options)
    if width < 16 or height < 4 or not any(trace.train or trace.valid or trace.off_scale for trace in found):
        return blank
    x_limits = _x_limits(found, options)
    y_limits = _y_limits(found, options)
    figure = new_figure(width, height)
    columns = x_ticks(x_limits[1], options.x, max(width // 14, 2))
    rows = y_ticks(y_limits, options.log, max(height // 3, 2))
    figure.xlim(*x_limits)
    figure.ylim(*y_limits)
    figure.xticks([x for x, _ in columns], [label for _, label in columns])
    figure.yticks([y for y, _ in rows], [label for _, label in rows])
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    # The most important curves last: they hide the others where they cross.
    for trace in found:
        _draw_published(figure, trace, options, x_limits, y_limits, width, glyphs)
    for trace in found:
        if options.shown is not ShownCurves.VALIDATION:
            _draw_train(figure, trace, x_limits, y_limits, width, glyphs)
    for trace in found:
        if options.shown is not ShownCurves.TRAIN:
            _draw_valid(figure, trace, y_limits, width, glyphs)
        _draw_off_scale(figure, trace, y_limits, glyphs)
    grid = render(figure)
    if grid is None:
        return blank
    cells = [
        [(_axis_character(text, glyphs), _role(color)) for text, color in zip(characters, colors, strict=True)]
        for characters, colors in zip(grid.characters, grid.colors, strict=True)
    ]
    if options.shown is not ShownCurves.TRAIN:
        _fill_bands(cells, found, grid.plot_columns.start, len(grid.plot_columns), x_limits, y_limits, glyphs.band)
    return Drawing(
        rows=cells,
        first_column=grid.plot_columns.start,
        columns=len(grid.plot_columns),
        x_limits=x_limits,
        traces=tuple(found),
        log=options.log,
    )


def _color(kind: CurveKind, slot: int) -> int:
    return _FIRST_COLOR + _SLOTS * _KINDS.index(kind) + slot % _SLOTS


def _role(color: Any) -> CellRole:
    if not isinstance(color, int) or color < _FIRST_COLOR:
        return AXIS
    kind, slot = divmod(color - _FIRST_COLOR, _SLOTS)
    return CellRole(kind=_KINDS[kind], slot=slot)


def _axis_character(text: str, glyphs: Glyphs) -> str:
    if glyphs.unicode or text.isascii():
        return text
    return {"│": "|", "─": "-", "┤": "+", "┬": "+", "└": "+"}.get(text, "?")


def _draw_train(figure: Any, trace: Trace, x_limits: Limits, y_limits: Limits, width: int, glyphs: Glyphs) -> None:
    """Draw one mean for each column of cells, as fine as a dotted line can be."""
    columns: dict[int, list[XY]] = {}
    scale = width / (x_limits[1] - x_limits[0])
    for x, y in trace.train:
        columns.setdefault(int(x * scale), []).append((x, y))
    points = [(p[-1][0], min(sum(y for _, y in p) / len(p), y_limits[1])) for p in columns.values()]
    if points:
        figure.plot(*_unzip(points), marker=glyphs.train, color=_color("train", trace.series.slot))


def _draw_valid(figure: Any, trace: Trace, y_limits: Limits, width: int, glyphs: Glyphs) -> None:
    """Draw a line through the validations, with markers that do not touch, one of them on the last."""
    points = [(x, min(y, y_limits[1])) for x, y in trace.valid]
    if not points:
        return
    color = _color("valid", trace.series.slot)
    marker = glyphs.markers[trace.series.slot % len(glyphs.markers)]
    if len(points) > 1:
        figure.plot(*_unzip(_decimated(points, width)), marker=glyphs.line or marker, color=color)
    every = max(1, math.ceil(len(points) / max(width // 6, 1)))
    figure.scatter(*_unzip(points[::-every][::-1]), marker=marker, color=color)


def _decimated(points: list[XY], width: int) -> list[XY]:
    """Return the lowest and the highest point of each half column, which look the same as all of them."""
    if len(points) <= 4 * width:
        return points
    per = math.ceil(len(points) / (2 * width))
    kept = []
    for i in range(0, len(points), per):
        group = points[i : i + per]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def _draw_published(
    figure: Any, trace: Trace, options: ChartOptions, x_limits: Limits, y_limits: Limits, width: int, glyphs: Glyphs
) -> None:
    """Draw the published result as a horizontal line."""
    ppl = trace.series.published_ppl
    if ppl is None or options.shown is ShownCurves.TRAIN:
        return
    y = to_y(math.log(ppl), options.log)
    if y_limits[0] <= y <= y_limits[1]:
        xs = [x_limits[0] + (x_limits[1] - x_limits[0]) * i / (width - 1) for i in range(width)]
        figure.scatter(xs, [y] * width, marker=glyphs.published, color=_color("published", trace.series.slot))


def _draw_off_scale(figure: Any, trace: Trace, y_limits: Limits, glyphs: Glyphs) -> None:
    """Mark values that are not finite or too high at the upper edge."""
    if trace.off_scale:
        ys = [y_limits[1]] * len(trace.off_scale)
        figure.scatter(trace.off_scale, ys, marker=glyphs.diverged, color=_color("valid", trace.series.slot))


def _unzip(points: Iterable[XY]) -> tuple[list[float], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _x_limits(found: Sequence[Trace], options: ChartOptions) -> Limits:
    """Return 0 and the end of the longest plan, or for time the step above the longest estimate."""
    if options.x is XAxis.TIME:
        ends = [t.series.expected_s or 0.0 for t in found] + [x for t in found for x, _ in t.train[-1:] + t.valid[-1:]]
        return 0.0, step_above(max(ends) or 1.0)
    factors = [(t.series.tokens_per_epoch or 0) if options.x is XAxis.TOKENS else 1 for t in found]
    ends = [t.series.planned_epochs * factor for t, factor in zip(found, factors, strict=True)]
    return 0.0, float(max(ends) or 1)


def _y_limits(found: Sequence[Trace], options: ChartOptions) -> Limits:
    """Return the steps around the values drawn. On a linear axis the start of training, far above everything that
    follows, may be cut off at the top."""
    with_train = options.shown is not ShownCurves.VALIDATION
    with_valid = options.shown is not ShownCurves.TRAIN
    train = [y for t in found for _, y in t.train] if with_train else []
    valid = [y for t in found for _, y in t.valid] if with_valid else []
    valid += [y for t in found for _, low, high in t.band for y in (low, high)] if with_valid else []
    published = [to_y(math.log(t.series.published_ppl), options.log) for t in found if t.series.published_ppl]
    ys = train + valid + (published if with_valid and (train or valid) else [])
    if not ys:
        ys = [to_y(0.0, options.log), to_y(math.log(10.0), options.log)]
    if options.log:
        return log_limits(min(ys), max(ys))
    top = max(valid) * 1.5 if valid else max(ys)
    return 0.0, step_above(max(min(max(ys), top), 1e-9))
