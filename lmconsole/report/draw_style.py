"""Style of all figures: sizes, colors, markers, fonts, texts and ticks."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lmconsole.report.clean_matplotlib import matplotlib  # before anything imports it

# isort: split
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from lmconsole.errors import escape_control_characters
from lmconsole.report.markup import replace_unsupported

SINGLE_IN, DOUBLE_IN = 3.4, 7.0
"""Widths of one and of two columns of a paper, in inches."""

CHARACTER_IN = 0.061
"""Width of a digit in a tick label, in inches."""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Colors of Okabe and Ito, which color-blind readers can distinguish (jfly.uni-koeln.de/color, 2008)."""

LINES: Sequence[Mapping[str, Any]] = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": PURPLE, "linestyle": ":", "marker": "D"},
    {"color": ORANGE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": SKY, "linestyle": (0, (1, 2)), "marker": "P"},
)
"""Line styles that differ in dashes and markers too, for print without color."""

FILLS: Sequence[Any] = (
    {"facecolor": BLUE, "edgecolor": "white"},
    {"facecolor": VERMILLION, "edgecolor": "white", "hatch": "////"},
    {"facecolor": GREEN, "edgecolor": "white", "hatch": ".."},
)
"""Styles of bars that differ in hatching too."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "lmconsole",
    "savefig.dpi": 300,
    "text.parse_math": False,
}

NOTE: dict[str, Any] = {"fontsize": 7, "style": "italic", "color": "#444444"}
STAMP: dict[str, Any] = {"fontsize": 6, "style": "italic", "color": "#777777"}
UNIGRAM: Mapping[str, Any] = {"color": "#333333", "linestyle": ":", "linewidth": 1.2, "zorder": 1.5}
OFF_SCALE: Mapping[str, Any] = {"color": "black", "marker": "x", "markersize": 4.5, "linestyle": "none"}
SEED: dict[str, Any] = {
    "color": "black", "markerfacecolor": "white", "marker": "o", "markersize": 4.0, "markeredgewidth": 0.8,
    "linestyle": "none",
}  # fmt: skip


def displayable(text: str) -> str:
    """Replace characters that the font of the figures lacks."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return replace_unsupported(
        escape_control_characters(text).replace("\n", " "), lambda c: bool(font.get_char_index(ord(c)))
    )


def shorten(text: str, length: int) -> str:
    """Shorten a text to ``length`` characters, but keep an experiment number and its mark at the end."""
    if len(text) <= length:
        return text
    number = re.search(r" \(\d+\)†?$", text)
    tail = number[0] if number else ""
    return f"{text[: length - len(tail) - 1]}…{tail}"


def log_ticks(low: float, high: float) -> list[float]:
    """Return 3 to about 7 round numbers as ticks of a logarithmic axis from ``low`` to ``high``."""
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        found = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(found) >= 3:
            every = math.ceil(len(found) / 7)
            return found[::every]
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def plain_number(value: float) -> str:
    return f"{value:,.10g}"


def set_log_ticks(axis: Any, low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([plain_number(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def cycled(styles: Sequence[Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    for number in range(count):
        yield styles[number % len(styles)]


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of the figures to the defaults of matplotlib; a matplotlibrc has no effect."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
