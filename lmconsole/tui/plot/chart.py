"""Perplexity curves as a grid of characters, drawn by plotext. Pure: the same values give the same grid.

plotext 5 breaks on values that are not finite, on logarithmic axes with limits, and on equal limits. So it is given
finite points on linear axes, with limits and ticks computed beforehand.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, get_args

from lmconsole.runs.events import MAX_LOSS_NATS, Epoch
from lmconsole.tui.plot.axes import Limits, XAxis, log_limits, step_above, x_ticks, y_ticks
from lmconsole.tui.plot.glyphs import Glyphs
from lmconsole.tui.plot.plotext_internals import new_figure, render
from lmconsole.tui.plot.series import Point

LEAST_PPL = 1e-3
LARGEST_PPL = 1e6
"""Perplexities are drawn between these. A higher one is marked at the upper edge: a run that has diverged must not
flatten the others."""
AXIS_ROWS = 2
"""Rows of the x axis and of its labels."""
MAX_MEAN_POINTS = 256
"""Points of the mean of train curves."""
SMOOTHING = (0.0, 0.7, 0.95)
"""Weights of the past in the exponential moving average of train losses."""

XY = tuple[float, float]


class ShownCurves(StrEnum):
    """Curves that are drawn."""

    BOTH = "train and validation"
    VALIDATION = "validation"
    TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartOptions:
    """Axes, smoothing and choice of curves."""

    x: XAxis = XAxis.EPOCHS
    log: bool = True
    shown: ShownCurves = ShownCurves.BOTH
    smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """The curves of one run."""

    run: str
    experiment: int
    label: str
    slot: int
    """Index of color and marker."""
    train: Iterable[Point]
    epochs: Sequence[Epoch]
    planned_epochs: int
    tokens_per_epoch: int | None
    """None if unknown, as for an imported run."""
    expected_s: float | None
    """Estimated training time of the whole run, seconds; None if unknown."""
    published_ppl: float | None = None
    seeds: tuple["Series", ...] = ()
    """Seeds of which this series shows the mean and the range; its own ``train`` and ``epochs`` are not used then."""


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


@dataclass(kw_only=True, slots=True)
class Trace:
    """The points of one run in units of the axes: x, and perplexity or its log10."""

    series: Series
    train: list[XY] = field(default_factory=list)
    valid: list[XY] = field(default_factory=list)
    band: list[tuple[float, float, float]] = field(default_factory=list)
    """x, and the lowest and the highest validation value of the seeds."""
    off_scale: list[float] = field(default_factory=list)
    """x of values that are not finite or beyond ``LARGEST_PPL``."""


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


def traces(series: Sequence[Series], options: ChartOptions) -> list[Trace]:
    """Return the points to draw; values that cannot be drawn are listed as ``off_scale``."""
    max_loss_nats = math.log(LARGEST_PPL)
    made = []
    for each in series:
        if each.seeds:
            made.append(_mean_trace(each, options))
            continue
        trace = Trace(series=each)
        to_x = _to_x(each, options.x)
        mean: float | None = None
        for point in each.train:
            x = to_x(point.epochs, point.elapsed_train_s)
            if x is None:
                continue
            loss_nats = point.loss_nats
            if point.non_finite or loss_nats > max_loss_nats:
                trace.off_scale.append(x)
            if math.isfinite(loss_nats) and loss_nats <= max_loss_nats:
                mean = loss_nats if mean is None else options.smoothing * mean + (1 - options.smoothing) * loss_nats
                trace.train.append((x, _to_y(mean, options.log)))
        for epoch_x, y in _validation(each, options).values():
            if y is None:
                trace.off_scale.append(epoch_x)
            else:
                trace.valid.append((epoch_x, y))
        made.append(trace)
    return made


def _validation(series: Series, options: ChartOptions) -> dict[int, tuple[float, float | None]]:
    """Return x and y of each validated epoch by its number; y is None for a value that cannot be drawn."""
    to_x, max_loss_nats = _to_x(series, options.x), math.log(LARGEST_PPL)
    found: dict[int, tuple[float, float | None]] = {}
    for epoch in series.epochs:
        x, valid_nats = to_x(epoch.epoch, epoch.elapsed_train_s), epoch.valid_loss_nats
        if x is not None and valid_nats is not None:
            drawn = math.isfinite(valid_nats) and valid_nats <= max_loss_nats
            found[epoch.epoch] = (x, _to_y(valid_nats, options.log) if drawn else None)
    return found


def _mean_trace(series: Series, options: ChartOptions) -> Trace:
    """Return the mean of the perplexities of several seeds, over what all of them have, and the range of the
    validation."""
    seeds = traces(series.seeds, options)
    trace = Trace(series=series, off_scale=sorted(x for seed in seeds for x in seed.off_scale))
    validations = [_validation(seed, options) for seed in series.seeds]
    for number in sorted(set.intersection(*map(set, validations))):
        points = [validation[number] for validation in validations]
        ys = [y for _, y in points if y is not None]
        if len(ys) == len(points):
            x = sum(x for x, _ in points) / len(points)
            trace.valid.append((x, _mean_y(ys, options.log)))
            trace.band.append((x, min(ys), max(ys)))
    curves = [seed.train for seed in seeds if seed.train]
    if curves:
        end = min(curve[-1][0] for curve in curves)
        grid = [x for x, _ in min(curves, key=len) if x <= end]
        grid = grid[:: max(len(grid) // MAX_MEAN_POINTS, 1)]
        columns = zip(*(_interpolated(curve, grid) for curve in curves), strict=True)
        trace.train += [(x, _mean_y(ys, options.log)) for x, ys in zip(grid, columns, strict=True)]
    return trace


def _mean_y(ys: Sequence[float], log: bool) -> float:
    """Return the mean perplexity, in units of the axis."""
    return math.log10(sum(10.0**y for y in ys) / len(ys)) if log else sum(ys) / len(ys)


def _interpolated(curve: Sequence[XY], grid: Sequence[float]) -> list[float]:
    """Return the values of ``curve`` at the increasing x values of ``grid``, in between linearly."""
    ys, i = [], 0
    for x in grid:
        while i < len(curve) - 1 and curve[i][0] < x:
            i += 1
        (x0, y0), (x1, y1) = curve[max(i - 1, 0)], curve[i]
        share = (x - x0) / (x1 - x0) if x1 > x0 else 1.0
        ys.append(y0 + max(0.0, min(share, 1.0)) * (y1 - y0))
    return ys


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
        for c, low, high in zip(inside, _interpolated(lows, grid), _interpolated(highs, grid), strict=True):
            bottom, top = [(y - y_limits[0]) / (y_limits[1] - y_limits[0]) * (height - 1) for y in (low, high)]
            for level in range(max(math.ceil(bottom), 0), min(math.floor(top), height - 1) + 1):
                if rows[height - 1 - level][first + c][0] == " ":
                    rows[height - 1 - level][first + c] = (glyph, CellRole(kind="band", slot=trace.series.slot))


def _to_x(series: Series, axis: XAxis) -> Callable[[float, float | None], float | None]:
    """Return the function from epochs and training seconds to x, which gives None where x is unknown."""
    if axis is XAxis.TIME:
        return lambda epochs, elapsed_s: elapsed_s
    factor = series.tokens_per_epoch if axis is XAxis.TOKENS else 1
    return lambda epochs, elapsed_s: None if factor is None else epochs * factor


def _to_y(loss_nats: float, log: bool) -> float:
    loss_nats = max(math.log(LEAST_PPL), min(loss_nats, MAX_LOSS_NATS))
    return loss_nats / math.log(10.0) if log else math.exp(loss_nats)


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
    """Draw a line through the epochs, with markers that do not touch, one of them on the last epoch."""
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
    y = _to_y(math.log(ppl), options.log)
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
    published = [_to_y(math.log(t.series.published_ppl), options.log) for t in found if t.series.published_ppl]
    ys = train + valid + (published if with_valid and (train or valid) else [])
    if not ys:
        ys = [_to_y(0.0, options.log), _to_y(math.log(10.0), options.log)]
    if options.log:
        return log_limits(min(ys), max(ys))
    top = max(valid) * 1.5 if valid else max(ys)
    return 0.0, step_above(max(min(max(ys), top), 1e-9))
