"""Limits of perplexity axes.

Training starts at a perplexity that is many times that of a trained model. On an axis that shows both, a rise by a few
percent after the best epoch cannot be seen. So where a perplexity rises, axes are linear and end a little above the
perplexities from the best epoch on; what is above or below leaves the panel. Where none rises, axes are logarithmic and
show everything.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lmconsole.report.figure_content import Panel

SMALLEST_RISE = 1.01
"""A perplexity that rises after the best epoch by less than this factor does not rise."""

HEADROOM = 1.6
"""Upper end of an axis, as a multiple of the perplexities that it must show."""

LARGEST_RISE = 2.0
"""Perplexities after the best epoch count up to this multiple of it, so that a run which explodes hides no minimum."""

LARGEST_CUT = 4.0
"""Up to this multiple of the best epoch, at least half of the epochs are shown, as in runs of two or three."""

LARGEST_GAP = 5.0
"""Train perplexities count down to this share of the best validation perplexity."""

SMALLEST_RANGE = 1.05
"""Smallest ratio of the ends of an axis, so that a flat line looks flat."""

SHARED_SHARE = 0.5
"""Panels share an axis if each of them needs at least this share of it."""

MARGIN = 0.06
"""Share of the axis that is added at both ends."""

Limits = tuple[float, float]


def with_limits(panels: Sequence[Panel], leading: Sequence[str]) -> list[Panel]:
    """Return panels with scale and limits of y: common limits, or their own if common ones would waste much of a panel.

    Args:
        leading: Labels of the curves that the axes must show from their best epoch on.
    """
    log = not any(_rises(panel, leading) for panel in panels)
    wanted = [_range(panel) if log else _window(panel, leading) for panel in panels]
    known = [window for window in wanted if window is not None]
    if not known:
        return list(panels)
    common = min(low for low, _ in known), max(high for _, high in known)
    whole = _length(common, log=log)
    shared = all(_length(window, log=log) >= SHARED_SHARE * whole for window in known)
    return [
        replace(panel, log_y=log, y_limits=_with_margin(common if shared or window is None else window, log=log))
        for panel, window in zip(panels, wanted, strict=True)
    ]


def have_own_limits(panels: Sequence[Panel]) -> bool:
    """Return whether the limits of y differ between panels with curves."""
    return len({panel.y_limits for panel in panels if panel.curves}) > 1


def are_cut(panels: Sequence[Panel]) -> bool:
    """Return whether a value is outside the limits of its panel."""
    return any(not panel.y_limits[0] <= y <= panel.y_limits[1] for panel in panels for y in _values(panel))


def _values(panel: Panel) -> Iterator[float]:
    return (y for curve in panel.curves.values() for seed in curve.seeds for y in seed.y)


def _rises(panel: Panel, leading: Sequence[str]) -> bool:
    """Return whether a leading curve rises after its lowest point."""
    seeds = [list(seed.y) for label in leading if label in panel.curves for seed in panel.curves[label].seeds if seed.y]
    return any(max(ys[ys.index(min(ys)) :]) > SMALLEST_RISE * min(ys) for ys in seeds)


def _length(limits: Limits, *, log: bool) -> float:
    low, high = limits
    return math.log(high / low) if log else high - low


def _range(panel: Panel) -> Limits | None:
    """Return the range of all perplexities of a panel; None if it has no curve."""
    values = list(_values(panel))
    return _at_least_smallest((min(values), max(values))) if values else None


def _window(panel: Panel, leading: Sequence[str]) -> Limits | None:
    """Return the range of perplexities that a panel needs; None if it has no curve."""
    values = list(_values(panel))
    if not values:
        return None
    seeds = [seed.y for label in leading if label in panel.curves for seed in panel.curves[label].seeds if seed.y]
    tops = [min(max(ys[ys.index(min(ys)) :]), LARGEST_RISE * min(ys)) for ys in map(list, seeds)]
    halves = [min(sorted(ys)[len(ys) // 2], LARGEST_CUT * min(ys)) for ys in seeds]
    lowest = min((min(ys) for ys in seeds), default=min(values))
    low = max(min(values), lowest / LARGEST_GAP)
    high = min(max(values), max([HEADROOM * top for top in tops] + halves, default=max(values)))
    return _at_least_smallest((low, high))


def _at_least_smallest(limits: Limits) -> Limits:
    low, high = limits
    if high >= SMALLEST_RANGE * low:
        return limits
    middle, half = (low + high) / 2, (SMALLEST_RANGE - 1.0) / 2
    return middle * (1.0 - half), middle * (1.0 + half)


def _with_margin(limits: Limits, *, log: bool) -> Limits:
    low, high = limits
    if log:
        factor = (high / low) ** MARGIN
        return low / factor, high * factor
    margin = MARGIN * (high - low)
    return max(0.0, low - margin), high + margin
