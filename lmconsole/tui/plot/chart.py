"""Perplexity curves as a grid of characters, drawn by plotext. Pure: the same values give the same grid.

plotext 5 breaks on values that are not finite, on logarithmic axes with limits, and on limits that are equal; so what
it gets here are finite points on linear axes, with limits and ticks that are worked out before.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from lmconsole.formatting import perplexity as perplexity_text
from lmconsole.runs.events import MAX_LOSS_NATS, Epoch
from lmconsole.tui.plot.glyphs import Glyphs
from lmconsole.tui.plot.series import Point

LEAST_PPL = 1e-3
"""No model has less than 1; whatever a file says is drawn within these."""
LARGEST_PPL = 1e6
"""What lies higher is marked at the upper edge: a run that has gone astray must not flatten the others."""
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Where axes may end, times a power of ten: limits move seldom, and then visibly."""
SMOOTHING = (0.0, 0.7, 0.95)
"""Weights of the past in the running mean of train losses."""


class XAxis(StrEnum):
    """What runs along the x axis."""

    EPOCHS = "epochs"
    TIME = "training time"
    TOKENS = "tokens"


class Shown(StrEnum):
    """Which curves are drawn."""

    BOTH = "train and validation"
    VALIDATION = "validation"
    TRAIN = "train"


class Series(NamedTuple):
    """One run's curves. ``slot`` chooses its colour and marker."""

    run: str
    label: str
    slot: int
    train: Iterable[Point]
    epochs: Sequence[Epoch]
    planned_epochs: int
    tokens_per_epoch: int | None
    """None for an imported run, which does not say."""
    expected_s: float | None
    """Training seconds that the whole run will have taken, as far as that can be told."""
    published_ppl: float | None = None


@dataclass(frozen=True)
class View:
    """How to draw."""

    x: XAxis = XAxis.EPOCHS
    log: bool = True
    shown: Shown = Shown.BOTH
    smoothing: float = 0.0


class Ink(NamedTuple):
    """What a cell shows: ``axis``, ``train``, ``valid``, ``published`` or ``cursor``, of the series in ``slot``."""

    what: str
    slot: int = 0


AXIS = Ink("axis")
CURSOR = Ink("cursor")
_KINDS = ("valid", "train", "published")
_FIRST = 16
"""plotext names colours by number; from here on the numbers stand for our inks, 64 to a kind."""

Cell = tuple[str, Ink]


@dataclass
class Trace:
    """One run's points in the units of the axes: x, and perplexity on a linear or log10 axis."""

    series: Series
    train: list[tuple[float, float]] = field(default_factory=list)
    valid: list[tuple[float, float]] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)
    """x of values that are not finite or lie beyond ``LARGEST_PPL``."""


@dataclass(frozen=True)
class Drawing:
    """A grid of cells, the top row first, and how its columns and values hang together."""

    rows: list[list[Cell]]
    first_column: int = 0
    columns: int = 0
    x_limits: tuple[float, float] = (0.0, 1.0)
    traces: tuple[Trace, ...] = ()
    log: bool = True

    def x_at(self, column: int) -> float:
        """Value of the x axis in a column of the grid."""
        low, high = self.x_limits
        share = (column - self.first_column) / max(self.columns - 1, 1)
        return low + max(0.0, min(share, 1.0)) * (high - low)

    def reading(self, trace: Trace, x: float) -> tuple[float | None, float | None]:
        """Train and validation perplexity of a run at the last of its points up to ``x``; None before its first."""
        found = []
        for points in (trace.train, trace.valid):
            value = next((y for at, y in reversed(points) if at <= x + 1e-9), None)
            found.append(value if value is None or not self.log else 10.0**value)
        return found[0], found[1]


def traces(series: Sequence[Series], view: View) -> list[Trace]:
    """The points to draw, without what cannot be drawn, which is listed apart."""
    made = []
    for each in series:
        trace = Trace(each)
        x_of = _x_of(each, view.x)
        mean: float | None = None
        for point in each.train:
            x = x_of(point.epochs, point.elapsed_train_s)
            if point.odd or point.loss_nats > math.log(LARGEST_PPL):
                trace.astray.append(x)
            if math.isfinite(point.loss_nats) and point.loss_nats <= math.log(LARGEST_PPL):
                mean = (
                    point.loss_nats if mean is None else view.smoothing * mean + (1 - view.smoothing) * point.loss_nats
                )
                trace.train.append((x, _height(mean, view.log)))
        for epoch in each.epochs:
            x, loss = x_of(epoch.epoch, epoch.elapsed_train_s), epoch.valid_loss_nats
            if x is None:  # an imported run that does not say
                continue
            if loss is not None and math.isfinite(loss) and loss <= math.log(LARGEST_PPL):
                trace.valid.append((x, _height(loss, view.log)))
            elif loss is not None:
                trace.astray.append(x)
        made.append(trace)
    return made


def _x_of(series: Series, axis: XAxis) -> Any:
    if axis is XAxis.TIME:
        return lambda epochs, elapsed_s: elapsed_s
    factor = series.tokens_per_epoch if axis is XAxis.TOKENS else 1
    return lambda epochs, elapsed_s: None if factor is None else epochs * factor


def _height(loss_nats: float, log: bool) -> float:
    loss_nats = max(math.log(LEAST_PPL), min(loss_nats, MAX_LOSS_NATS))
    return loss_nats / math.log(10.0) if log else math.exp(loss_nats)


def draw(series: Sequence[Series], view: View, width: int, height: int, glyphs: Glyphs) -> Drawing:
    """The curves of ``series`` in ``height`` rows of ``width`` cells, axes and labels included."""
    blank = Drawing([[(" ", AXIS)] * width for _ in range(height)])
    found = traces(series, view)
    if width < 16 or height < 4 or not any(t.train or t.valid or t.astray for t in found):
        return blank
    x_limits = _x_limits(found, view)
    y_limits = _y_limits(found, view)
    figure = _figure(width, height)
    x_ticks = _x_ticks(x_limits[1], view.x, max(width // 14, 2))
    y_ticks = _y_ticks(y_limits, view.log, max(height // 3, 2))
    figure.xlim(*x_limits)
    figure.ylim(*y_limits)
    figure.xticks([x for x, _ in x_ticks], [text for _, text in x_ticks])
    figure.yticks([y for y, _ in y_ticks], [text for _, text in y_ticks])
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    for trace in found:
        _published(figure, trace, view, x_limits, y_limits, width, glyphs)
    for trace in found:
        if view.shown is not Shown.VALIDATION:
            _train(figure, trace, x_limits, y_limits, width, glyphs)
    for trace in found:
        if view.shown is not Shown.TRAIN:
            _valid(figure, trace, y_limits, width, glyphs)
        _astray(figure, trace, y_limits, glyphs)
    if not figure.monitor.x:
        return blank
    figure._set_sizes()
    figure._build_matrix()
    matrix = figure.monitor.matrix
    rows = [
        [(_ascii_axis(text, glyphs), _ink(colour)) for text, colour in zip(markers, colours, strict=True)]
        for markers, colours in zip(reversed(matrix.marker), reversed(matrix.fullground), strict=True)
    ]
    columns = matrix.Cols_canvas
    return Drawing(rows, columns.start, len(columns), x_limits, tuple(found), view.log)


def _figure(width: int, height: int) -> Any:
    """An empty plotext figure of its own: the module's functions share one, which is not safe in threads."""
    from plotext._figure import _figure_class

    figure = _figure_class()
    figure._limit_size(False, False)
    figure.plotsize(width, height)
    return figure


def _colour(kind: str, slot: int) -> int:
    return _FIRST + 64 * _KINDS.index(kind) + slot % 64


def _ink(colour: Any) -> Ink:
    if not isinstance(colour, int) or colour < _FIRST:
        return AXIS
    kind, slot = divmod(colour - _FIRST, 64)
    return Ink(_KINDS[kind], slot)


def _ascii_axis(text: str, glyphs: Glyphs) -> str:
    return (
        text if glyphs.unicode or text.isascii() else {"│": "|", "─": "-", "┤": "+", "┬": "+", "└": "+"}.get(text, "?")
    )


def _train(
    figure: Any, trace: Trace, xs: tuple[float, float], ys: tuple[float, float], width: int, glyphs: Glyphs
) -> None:
    """One mean for each column of cells: a dotted line has no finer grain."""
    columns: dict[int, list[tuple[float, float]]] = {}
    scale = width / (xs[1] - xs[0])
    for x, y in trace.train:
        columns.setdefault(int(x * scale), []).append((x, y))
    points = [(p[-1][0], min(sum(y for _, y in p) / len(p), ys[1])) for p in columns.values()]
    if points:
        figure.plot(*_columns(points), marker=glyphs.train, color=_colour("train", trace.series.slot))


def _valid(figure: Any, trace: Trace, ys: tuple[float, float], width: int, glyphs: Glyphs) -> None:
    points = [(x, min(y, ys[1])) for x, y in trace.valid]
    if not points:
        return
    colour = _colour("valid", trace.series.slot)
    marker = glyphs.markers[trace.series.slot % len(glyphs.markers)]
    if len(points) > 1:
        figure.plot(*_columns(_thinned(points, width)), marker=glyphs.line or marker, color=colour)
    every = max(1, math.ceil(len(points) / max(width // 6, 1)))
    marked = points[::-every][::-1]
    figure.scatter(*_columns(marked), marker=marker, color=colour)


def _thinned(points: list[tuple[float, float]], width: int) -> list[tuple[float, float]]:
    """Of each half column the lowest and the highest point: nothing that could be seen is lost."""
    if len(points) <= 4 * width:
        return points
    per = math.ceil(len(points) / (2 * width))
    kept = []
    for i in range(0, len(points), per):
        group = points[i : i + per]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def _published(
    figure: Any,
    trace: Trace,
    view: View,
    xs: tuple[float, float],
    ys: tuple[float, float],
    width: int,
    glyphs: Glyphs,
) -> None:
    ppl = trace.series.published_ppl
    if ppl is None or view.shown is Shown.TRAIN:
        return
    height = _height(math.log(ppl), view.log)
    if ys[0] <= height <= ys[1]:
        marks = [xs[0] + (xs[1] - xs[0]) * i / (width - 1) for i in range(width)]
        colour = _colour("published", trace.series.slot)
        figure.scatter(marks, [height] * len(marks), marker=glyphs.published, color=colour)


def _astray(figure: Any, trace: Trace, ys: tuple[float, float], glyphs: Glyphs) -> None:
    if trace.astray:
        heights = [ys[1]] * len(trace.astray)
        figure.scatter(trace.astray, heights, marker=glyphs.diverged, color=_colour("valid", trace.series.slot))


def _columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _x_limits(found: Sequence[Trace], view: View) -> tuple[float, float]:
    """From 0 to the end of what is planned, or for time to the step above what is expected."""
    if view.x is XAxis.TIME:
        ends = [t.series.expected_s or 0.0 for t in found] + [x for t in found for x, _ in t.train[-1:] + t.valid[-1:]]
        return 0.0, step_above(max(ends) or 1.0)
    factors = [(t.series.tokens_per_epoch or 0) if view.x is XAxis.TOKENS else 1 for t in found]
    ends = [t.series.planned_epochs * factor for t, factor in zip(found, factors, strict=True)]
    return 0.0, float(max(ends) or 1)


def _y_limits(found: Sequence[Trace], view: View) -> tuple[float, float]:
    """Steps around what is drawn. On a linear axis the beginning of training, far above everything that follows, may
    leave the picture at the top."""
    train = [y for t in found for _, y in t.train] if view.shown is not Shown.VALIDATION else []
    valid = [y for t in found for _, y in t.valid] if view.shown is not Shown.TRAIN else []
    published = [_height(math.log(t.series.published_ppl), view.log) for t in found if t.series.published_ppl]
    heights = train + valid + (published if view.shown is not Shown.TRAIN and (train or valid) else [])
    if not heights:
        heights = [_height(0.0, view.log), _height(math.log(10.0), view.log)]
    if view.log:
        low, high = step_below(10.0 ** min(heights)), step_above(10.0 ** max(heights))
        return math.log10(low), math.log10(high if high > low else low * 2)
    top = max(valid) * 1.5 if valid else max(heights)
    return 0.0, step_above(max(min(max(heights), top), 1e-9))


def step_above(value: float) -> float:
    """The smallest axis step that is not below ``value``, which must be positive."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in STEPS if step * power >= value * (1 - 1e-9))


def step_below(value: float) -> float:
    """The largest axis step that is not above ``value``, which must be positive."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in reversed(STEPS) if step * power <= value * (1 + 1e-9))


def _y_ticks(limits: tuple[float, float], log: bool, most: int) -> list[tuple[float, str]]:
    """Perplexities as plain numbers, at most ``most`` of them."""
    if not log:
        return [(value, perplexity_text(value).removesuffix(".0")) for value in _even(limits[1], most)]
    low, high = 10.0 ** limits[0], 10.0 ** limits[1]
    for mantissas in ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        powers = range(math.floor(limits[0]) - 1, math.ceil(limits[1]) + 1)
        values = [m * 10.0**p for p in powers for m in mantissas]
        ticks = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    ends = [low, high] if len(ticks) < 2 else []
    return [(math.log10(value), perplexity_text(value).removesuffix(".0")) for value in sorted({*ticks, *ends})]


def _even(end: float, most: int) -> list[float]:
    """0 and round steps up to ``end``, at most ``most`` of them."""
    size = next(s for s in _round_sizes(end / max(most, 1)) if end / s <= most)
    return [i * size for i in range(int(end / size + 1e-9) + 1)]


def _round_sizes(start: float) -> Iterable[float]:
    power = 10.0 ** math.floor(math.log10(start))
    while True:
        yield from (power * mantissa for mantissa in (1.0, 2.0, 5.0))
        power *= 10.0


def _x_ticks(end: float, axis: XAxis, most: int) -> list[tuple[float, str]]:
    if axis is XAxis.EPOCHS:
        size = next(s for s in _round_sizes(1.0) if end / s <= most)
        return [(i * size, f"{i * size:.0f}") for i in range(int(end / size + 1e-9) + 1)]
    unit, name = (1.0, "")
    if axis is XAxis.TIME:
        unit, name = (1.0, " s") if end < 180 else (60.0, " min") if end < 10_800 else (3600.0, " h")
    else:
        unit, name = (1e6, "M") if end >= 2e6 else (1e3, "k") if end >= 2e3 else (1.0, "")
    return [(value * unit, f"{value:g}{name}" if value else "0") for value in _even(end / unit, most)]
