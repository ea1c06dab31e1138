"""Drawing of the README's figure from the rates and runs that ``placebo.py`` recorded.

Nothing here depends on the time or on a configuration file, so equal values give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmconsole.report.clean_matplotlib import matplotlib  # before anything imports it

# isort: split
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lmconsole.claims.difference import Array
from lmconsole.claims.verdict import ALPHA, MIN_SEEDS
from lmconsole.report.draw_style import BLUE, GREEN, VERMILLION

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "text.parse_math": False,
}
WIDTH_IN, HEIGHT_IN = 9.6, 4.2


@dataclass(frozen=True, slots=True)
class Line:
    """Rates of a rule by number of runs, with 95% intervals."""

    name: str
    runs: Sequence[int]
    shares: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


LINES: dict[str, dict[str, Any]] = {
    "bold the lowest": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    "mean ± sd apart": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "lmconsole": {"color": BLUE, "marker": "o", "linestyle": "-"},
}


def draw_placebo(
    wrong: Sequence[Line], right: Sequence[Line], shift: str, adam: Array, sgd: Array, note: str
) -> Figure:
    """Draw the false findings, the findings of a true difference, and every run of SGD and Adam."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
        FigureCanvasAgg(figure)
        false, found, dots = (
            figure.add_axes((left / WIDTH_IN, 0.7 / HEIGHT_IN, width / WIDTH_IN, (HEIGHT_IN - 1.3) / HEIGHT_IN))
            for left, width in ((0.85, 3.85), (5.3, 2.3), (8.25, 1.1))
        )
        _draw_rates(false, wrong)
        false.set_yscale("function", functions=(np.sqrt, np.square))
        _set_percent_ticks(false, (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0))
        false.axhline(ALPHA, color="black", linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=1)
        false.set_title("Same setting twice:\na winner is declared, falsely")
        false.set_ylabel("share of comparisons (square-root scale)")
        _label(false, 5.5, 0.93, "bold the lowest", va="top", ha="center")
        _label(false, 2.3, 0.2, "mean ± sd apart")
        _label(false, 7.6, 0.072, "lmconsole", ha="center")
        false.text(10.3, 0.036, "nominal: 5%", fontsize=8, ha="right", va="top")
        _draw_rates(found, right)
        _set_percent_ticks(found, (0, 0.25, 0.5, 0.75, 1.0))
        found.set_title(f"True difference of {shift}:\nit is found")
        _label(found, 10.2, 0.41, "mean ± sd apart", ha="right", va="top")
        _label(found, 3.2, 0.33, "lmconsole", va="top")
        _label(found, 1.05, 0.87, "bold the lowest", "bold\nthe lowest", va="top")
        for axes, height in ((false, 0.003), (found, 0.04)):
            axes.text(0.85, height, "no verdict", fontsize=8, color=BLUE)
        _draw_dots(dots, adam, sgd)
        figure.text(0.85 / WIDTH_IN, 0.07 / HEIGHT_IN, note, fontsize=7.5, color="#555555")
        return figure


def _draw_rates(axes: Axes, lines: Sequence[Line]) -> None:
    axes.grid(axis="y")
    for line in lines:
        style = LINES[line.name]
        axes.fill_between(line.runs, line.low, line.high, color=style["color"], alpha=0.22, linewidth=0.0)
        axes.plot(line.runs, line.shares, clip_on=False, zorder=3, **style)
    unmade = LINES["lmconsole"] | {"markerfacecolor": "white", "linestyle": "none", "clip_on": False, "zorder": 3}
    axes.plot(range(1, MIN_SEEDS), [0.0] * (MIN_SEEDS - 1), **unmade)
    axes.set_xlim(0.7, 10.3)
    axes.set_ylim(0.0, 1.0)
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("seeds of each setting")


def _set_percent_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{100 * tick:g}%" for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())


def _label(axes: Axes, x: float, y: float, name: str, text: str = "", **place: Any) -> None:
    """Write the name of a rule next to its line, in its color."""
    axes.text(x, y, text or name, color=LINES[name]["color"], fontweight="bold", **place)


def _draw_dots(axes: Axes, adam: Array, sgd: Array) -> None:
    for place, (values, color, marker) in enumerate(((adam, "#222222", "o"), (sgd, "#777777", "s"))):
        spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.5  # apart, in no order
        axes.plot(place + spread, values, color=color, marker=marker, linestyle="none", alpha=0.7, markersize=4)
    axes.grid(axis="y")
    axes.set_xlim(-0.6, 1.6)
    axes.set_xticks([0, 1], ["Adam", "SGD"])
    axes.set_ylabel("test loss, nats per token")
    axes.set_title("LSTM, untuned:\n10 seeds each")
