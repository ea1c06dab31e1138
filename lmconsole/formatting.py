"""Numbers as text for people. An unknown number is a dash, never 0."""

import math
from datetime import datetime

UNKNOWN = "–"
DAMAGE_MARK = "§"
"""Mark of results that rest on a damaged event log."""


def perplexity(value: float | None) -> str:
    """Format a perplexity in at most seven characters: ``123.4``, ``2,048``, ``1.2e+08``, ``nan``."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(value)
    if value < 999_999.5:
        return f"{value:,.1f}" if value < 999.95 else f"{value:,.0f}"
    return f"{value:.1e}" if value < 9.95e99 else f"{value:.0e}"


def loss(value: float | None) -> str:
    """Format a loss in nats or bits: ``4.5582``."""
    return UNKNOWN if value is None else f"{value:.4f}"


def seconds(value: float | None) -> str:
    """Format a duration: ``1.5 s``, ``12 s``, ``3:05 min``, ``1:02:30 h``, ``2 d 03 h``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 86_400:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def clock(value: float | None) -> str:
    """Format a duration in at most eight characters: ``1.5 s``, ``12 s``, ``3:05``, ``1:02:30``, ``2 d 03 h``."""
    text = seconds(value).removesuffix(" min")
    if text.endswith(" h"):
        days, separator, _ = text.partition(" d ")
        text = text.removesuffix(" h") if not separator else f"{days} d" if len(text) > 8 else text
    return text


def local_time(text: str) -> str:
    """Format a time in ISO 8601 for the time zone of this machine: ``2026-11-26 23:05``; as it is if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return text


def about(value: float | None) -> str:
    """Format a duration in seconds that is known only roughly: ``40 s``, ``5 min``, ``2 h 10 min``, ``3 d 4 h``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 59.5:
        return f"{max(round(value), 1)} s"
    minutes, hours = round(value / 60), round(value / 3_600)
    if minutes < 60:
        return f"{minutes} min"
    minutes = minutes if minutes < 120 else round(minutes, -1)
    whole, rest, units = (minutes // 60, minutes % 60, "h min") if minutes < 1_440 else (hours // 24, hours % 24, "d h")
    large, small = units.split()
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def rate(value: float | None) -> str:
    """Format a rate: ``950``, ``12.3k``, ``1.2M``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}" if value < 100 * size else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def mib(value: float | None) -> str:
    """Format an amount of memory: ``512 MiB``, ``23.5 GiB``."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f} MiB" if value < 10 * 1024 else f"{value / 1024:,.1f} GiB"


def counted(number: int, noun: str) -> str:
    """Format a number of things: ``1 run``, ``2,048 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def energy(joules: float | None) -> str:
    """Format an energy: ``950 J``, ``12.3 kJ``, ``1.2 MJ``."""
    if joules is None:
        return UNKNOWN
    if joules < 999.5:
        return f"{joules:.0f} J"
    return f"{joules / 1e3:.1f} kJ" if joules < 999_950 else f"{joules / 1e6:.1f} MJ"
