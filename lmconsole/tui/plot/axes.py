"""Limits and ticks of the axes. Limits move in steps, so that a growing curve seldom redraws the whole plot."""

import math
from collections.abc import Iterable
from enum import StrEnum

from lmconsole.formatting import perplexity

STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Values at which an axis may end, times a power of ten."""

Limits = tuple[float, float]
Tick = tuple[float, str]
"""Place on the axis and label."""


class XAxis(StrEnum):
    """Quantity on the x axis."""

    EPOCHS = "epochs"
    TIME = "training time"
    TOKENS = "tokens"


def step_above(value: float) -> float:
    """Return the smallest axis step that is not below ``value``, which must be positive."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in STEPS if step * power >= value * (1 - 1e-9))


def step_below(value: float) -> float:
    """Return the largest axis step that is not above ``value``, which must be positive."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in reversed(STEPS) if step * power <= value * (1 + 1e-9))


def log_limits(low: float, high: float) -> Limits:
    """Return the steps around ``low`` and ``high``, both log10 of a perplexity."""
    bottom, top = step_below(10.0**low), step_above(10.0**high)
    return math.log10(bottom), math.log10(top if top > bottom else bottom * 2)


def y_ticks(limits: Limits, log: bool, max_count: int) -> list[Tick]:
    """Return at most ``max_count`` perplexities as plain numbers. ``limits`` are log10 if ``log``."""
    if not log:
        return [(value, _perplexity_label(value)) for value in _round_values(limits[1], max_count)]
    low, high = 10.0 ** limits[0], 10.0 ** limits[1]
    for mantissas in ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        exponents = range(math.floor(limits[0]) - 1, math.ceil(limits[1]) + 1)
        values = [mantissa * 10.0**exponent for exponent in exponents for mantissa in mantissas]
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= max_count:
            break
    ends = [low, high] if len(inside) < 2 else []
    return [(math.log10(value), _perplexity_label(value)) for value in sorted({*inside, *ends})]


def x_ticks(end: float, axis: XAxis, max_count: int) -> list[Tick]:
    """Return at most ``max_count`` round values from 0 to ``end`` with their unit."""
    if axis is XAxis.EPOCHS:
        size = next(size for size in _round_sizes(1.0) if end / size <= max_count)
        return [(i * size, f"{i * size:.0f}") for i in range(int(end / size + 1e-9) + 1)]
    if axis is XAxis.TIME:
        unit, name = (1.0, " s") if end < 180 else (60.0, " min") if end < 10_800 else (3600.0, " h")
    else:
        unit, name = (1e6, "M") if end >= 2e6 else (1e3, "k") if end >= 2e3 else (1.0, "")
    values = _round_values(end / unit, max_count)
    return [(value * unit, f"{value:g}{name}" if value else "0") for value in values]


def _perplexity_label(value: float) -> str:
    return perplexity(value).removesuffix(".0")


def _round_values(end: float, max_count: int) -> list[float]:
    """Return 0 and the multiples of a round number up to ``end``."""
    size = next(size for size in _round_sizes(end / max(max_count, 1)) if end / size <= max_count)
    return [i * size for i in range(int(end / size + 1e-9) + 1)]


def _round_sizes(start: float) -> Iterable[float]:
    power = 10.0 ** math.floor(math.log10(start))
    while True:
        yield from (power * mantissa for mantissa in (1.0, 2.0, 5.0))
        power *= 10.0
