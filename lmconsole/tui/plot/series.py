"""The curves of runs, and their points in units of the axes of a chart."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lmconsole.runs.events import MAX_LOSS_NATS, Epoch, Validation
from lmconsole.tui.plot.axes import XAxis
from lmconsole.tui.plot.curve import Point

LEAST_PPL = 1e-3
LARGEST_PPL = 1e6
"""Perplexities are drawn between these. A higher one is marked at the upper edge: a run that has diverged must not
flatten the others."""
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
    validations: Sequence[Validation]
    """Ends of epochs, and evaluations within them, in the order of training."""
    planned_epochs: int
    tokens_per_epoch: int | None
    """None if unknown, as for an imported run."""
    expected_s: float | None
    """Estimated training time of the whole run, seconds; None if unknown."""
    published_ppl: float | None = None
    seeds: tuple["Series", ...] = ()
    """Seeds of which this series shows the mean and the range; its own ``train`` and ``validations`` are not used
    then."""


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
        for point in _train_points(each):
            x = to_x(point.epochs, point.elapsed_train_s)
            if x is None:
                continue
            loss_nats = point.loss_nats
            if point.non_finite or loss_nats > max_loss_nats:
                trace.off_scale.append(x)
            if math.isfinite(loss_nats) and loss_nats <= max_loss_nats:
                mean = loss_nats if mean is None else options.smoothing * mean + (1 - options.smoothing) * loss_nats
                trace.train.append((x, to_y(mean, options.log)))
        for valid_x, y in _validation(each, options).values():
            if y is None:
                trace.off_scale.append(valid_x)
            else:
                trace.valid.append((valid_x, y))
        made.append(trace)
    return made


def _train_points(series: Series) -> list[Point]:
    """Return the train losses; those of whole epochs if there are no others, as in imported runs."""
    points = list(series.train)
    if points:
        return points
    losses = [(each, each.train_loss_nats) for each in series.validations if isinstance(each, Epoch)]
    return [
        Point(epoch.epoch, epoch.elapsed_train_s, loss, loss, loss, not math.isfinite(loss))
        for epoch, loss in losses
        if loss is not None
    ]


def _validation(series: Series, options: ChartOptions) -> dict[float, tuple[float, float | None]]:
    """Return x and y of each validation by its passes over the train split; y is None for a value that cannot be
    drawn."""
    to_x, max_loss_nats = _to_x(series, options.x), math.log(LARGEST_PPL)
    found: dict[float, tuple[float, float | None]] = {}
    for each in series.validations:
        x, valid_nats = to_x(each.passes, each.elapsed_train_s), each.valid_loss_nats
        if x is not None and valid_nats is not None:
            drawn = math.isfinite(valid_nats) and valid_nats <= max_loss_nats
            found[each.passes] = (x, to_y(valid_nats, options.log) if drawn else None)
    return found


def _mean_trace(series: Series, options: ChartOptions) -> Trace:
    """Return the mean of the perplexities of several seeds, over what all of them have, and the range of the
    validation."""
    seeds = traces(series.seeds, options)
    trace = Trace(series=series, off_scale=sorted(x for seed in seeds for x in seed.off_scale))
    validations = [_validation(seed, options) for seed in series.seeds]
    for passes in sorted(set.intersection(*map(set, validations))):
        points = [validation[passes] for validation in validations]
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
        columns = zip(*(interpolated(curve, grid) for curve in curves), strict=True)
        trace.train += [(x, _mean_y(ys, options.log)) for x, ys in zip(grid, columns, strict=True)]
    return trace


def _mean_y(ys: Sequence[float], log: bool) -> float:
    """Return the mean perplexity, in units of the axis."""
    return math.log10(sum(10.0**y for y in ys) / len(ys)) if log else sum(ys) / len(ys)


def interpolated(curve: Sequence[XY], grid: Sequence[float]) -> list[float]:
    """Return the values of ``curve`` at the increasing x values of ``grid``, in between linearly."""
    ys, i = [], 0
    for x in grid:
        while i < len(curve) - 1 and curve[i][0] < x:
            i += 1
        (x0, y0), (x1, y1) = curve[max(i - 1, 0)], curve[i]
        share = (x - x0) / (x1 - x0) if x1 > x0 else 1.0
        ys.append(y0 + max(0.0, min(share, 1.0)) * (y1 - y0))
    return ys


def _to_x(series: Series, axis: XAxis) -> Callable[[float, float | None], float | None]:
    """Return the function from epochs and training seconds to x, which gives None where x is unknown."""
    if axis is XAxis.TIME:
        return lambda epochs, elapsed_s: elapsed_s
    factor = series.tokens_per_epoch if axis is XAxis.TOKENS else 1
    return lambda epochs, elapsed_s: None if factor is None else epochs * factor


def to_y(loss_nats: float, log: bool) -> float:
    """Return the perplexity of a loss, in units of the axis."""
    loss_nats = max(math.log(LEAST_PPL), min(loss_nats, MAX_LOSS_NATS))
    return loss_nats / math.log(10.0) if log else math.exp(loss_nats)
