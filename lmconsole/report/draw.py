"""Figures drawn with matplotlib: a grid of panels with curves on a logarithmic perplexity axis, bars, and step curves.

Nothing here depends on the time, the machine or a configuration file, so the same values give the same bytes.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from lmconsole.errors import escape_control_characters
from lmconsole.report.markup import Picture, spelled

SINGLE_IN, DOUBLE_IN = 3.4, 7.0
"""Widths, in inches, of one and of two columns of a paper."""

CHARACTER_IN = 0.061
"""Width of a digit in a tick label."""

LARGEST_PPL = 1e6
"""Perplexities above this are marked at the upper edge: a uniform guess over any vocabulary here does better."""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Okabe and Ito's colours, told apart by colour-blind readers (jfly.uni-koeln.de/color, 2008)."""

LINES: Sequence[Mapping[str, Any]] = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": PURPLE, "linestyle": ":", "marker": "D"},
    {"color": ORANGE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": SKY, "linestyle": (0, (1, 2)), "marker": "P"},
)
"""Curves differ in dashes and markers too, for print without colour."""

FILLS: Sequence[Any] = (
    {"facecolor": BLUE, "edgecolor": "white"},
    {"facecolor": VERMILLION, "edgecolor": "white", "hatch": "////"},
    {"facecolor": GREEN, "edgecolor": "white", "hatch": ".."},
)
"""Bars differ in hatching too."""

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


@dataclass(frozen=True)
class Curve:
    """One line: ``y`` over ``x``, with a band from ``low`` to ``high`` where they differ. ``astray`` are the places of
    values that are not finite or too large to draw."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    astray: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One panel: its curves by name, and a note about what is missing."""

    title: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    note: str = ""


def panels(
    each: Sequence[Panel], *, x_label: str, y_label: str, whole_x: bool, width_in: float, columns: int
) -> Figure:
    """Panels with shared axes, lettered where there are several; perplexity is logarithmic. ``whole_x``: x counts
    something, and has whole ticks."""
    limits = _Limits(each, whole_x)
    with _style():
        entries = _legend_entries(each)
        legend_columns = min(len(entries), 4 if width_in > SINGLE_IN else 2) or 1
        figure, grid, panel_in = _grid(
            math.ceil(len(each) / columns),
            columns,
            width_in,
            left_in=0.32 + CHARACTER_IN * max((len(label) for label in limits.y_labels), default=0),
            top_in=0.36 + 0.16 * math.ceil(len(entries) / legend_columns),
        )
        for number, (axes, panel) in enumerate(zip(grid, each, strict=False)):
            _draw(axes, panel)
            limits.apply(axes)
            letter = f"({chr(ord('a') + number)}) " if len(each) > 1 and number < 26 else ""
            title = letter + shown(panel.title)
            most = int(panel_in / (CHARACTER_IN * 1.1))
            axes.set_title(_cut(title, most), loc="left", fontweight="normal" if panel.curves else "bold")
            if number + columns >= len(each):
                axes.set_xlabel(x_label)
            else:
                axes.tick_params(labelbottom=False)
            if number % columns == 0:
                axes.set_ylabel(y_label)
            else:
                axes.tick_params(labelleft=False)
        for axes in grid[len(each) :]:
            axes.remove()
        if entries:
            figure.legend(handles=entries, loc="upper center", ncols=legend_columns, frameon=False)
    return figure


def bars(
    labels: Sequence[str],
    values: Sequence[float | None],
    *,
    x_label: str,
    absent: str,
    groups: Sequence[str],
    spans: Sequence[tuple[float, float] | None] = (),
    value_format: str = "{:,.0f}",
) -> Figure:
    """Horizontal bars with their values beside them, coloured by ``groups``; ``absent`` stands where there is none.
    ``spans`` are lowest and highest of what a value is the mean of."""
    kinds = list(dict.fromkeys(groups))
    height = 0.75 + 0.19 * max(len(labels), 2)
    with _style():
        figure = Figure(figsize=(SINGLE_IN, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((1.32 / SINGLE_IN, 0.42 / height, (SINGLE_IN - 1.85) / SINGLE_IN, 1 - 0.7 / height))
        top = max((value for value in values if value), default=1.0)
        for place, (value, kind) in enumerate(zip(values, groups, strict=True)):
            style = FILLS[kinds.index(kind) % len(FILLS)]
            span = spans[place] if spans else None
            if value is not None:
                axes.barh(place, value, height=0.7, linewidth=0.0, **style)
                if span and span[0] < span[1]:
                    axes.plot(span, [place, place], color="black", linewidth=0.8)
            text = absent if value is None else value_format.format(value)
            end = max(value or 0.0, span[1] if span and value is not None else 0.0)
            axes.text(end + 0.02 * top, place, text, va="center", fontsize=6.5)
        axes.set_yticks(range(len(labels)), [_cut(shown(label), 22) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, top * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=top > 4))
        axes.xaxis.set_major_formatter(lambda value, _: _plain(value))
        axes.grid(axis="x")
        axes.set_xlabel(x_label)
        handles = [
            Patch(linewidth=0.0, label=shown(kind), **FILLS[number % len(FILLS)]) for number, kind in enumerate(kinds)
        ]
        figure.legend(handles=handles, loc="upper center", ncols=3, frameon=False)
    return figure


def steps(curves: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str, absent: str) -> Figure:
    """Step curves of shares, from 0 to 1, over a logarithmic axis that starts at 1; ``absent`` stands there without."""
    height = 2.6
    with _style():
        figure = Figure(figsize=(SINGLE_IN, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.5 / SINGLE_IN, 0.42 / height, 1 - 0.6 / SINGLE_IN, 1 - 0.85 / height))
        last = max((x for points in curves.values() for x, _ in points), default=1.0) * 1.1
        last = max(last, 2.0)
        handles = []
        for style, (name, points) in zip(_cycled(LINES, len(curves)), curves.items(), strict=True):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            drawn = {key: value for key, value in style.items() if key != "marker"}
            axes.step([1.0, *xs, last], [0.0, *ys, ys[-1] if ys else 0.0], where="post", clip_on=False, **drawn)
            handles.append(Line2D([], [], label=shown(name), **drawn))
        axes.set_xscale("log")
        axes.set_xlim(1.0, last)
        axes.set_ylim(0.0, 1.02)
        _log_ticks(axes.xaxis, 1.0, last)
        axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
        axes.grid()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if handles:
            figure.legend(handles=handles, loc="upper center", ncols=min(len(curves), 4), frameon=False)
        else:
            axes.text(0.5, 0.5, absent, _NOTE | {"ha": "center", "va": "center"}, transform=axes.transAxes)
    return figure


def encoded(figure: Figure, form: Picture) -> bytes:
    """The file of a figure: fonts embedded, and no trace of when or with what it was written."""
    metadata: dict[Picture, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }
    out = io.BytesIO()
    with _style():
        figure.savefig(out, format=form, metadata=metadata[form])
    return out.getvalue()


def shown(text: str) -> str:
    """``text`` with what the figures' font lacks spelled out."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return spelled(escape_control_characters(text).replace("\n", " "), lambda c: bool(font.get_char_index(ord(c))))


def _cut(text: str, most: int) -> str:
    """``text`` in at most so many characters; the number of the experiment at its end stays."""
    if len(text) <= most:
        return text
    number = re.search(r" \(\d+\)$", text)
    tail = number[0] if number else ""
    return f"{text[: most - len(tail) - 1]}…{tail}"


def log_ticks(low: float, high: float) -> list[float]:
    """Where to put between 3 and about 7 plain numbers on a logarithmic axis from ``low`` to ``high``."""
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


def _plain(value: float) -> str:
    return f"{value:,.10g}"


class _Limits:
    """Axes that all panels of a figure share."""

    def __init__(self, each: Sequence[Panel], whole_x: bool) -> None:
        curves = [curve for panel in each for curve in panel.curves.values()]
        heights = [y for curve in curves for y in (*curve.y, *curve.low, *curve.high)]
        xs = [x for curve in curves for x in (*curve.x, *curve.astray)]
        low, high = min(heights, default=10.0), max(heights, default=1000.0)
        margin = max((high / low) ** 0.06, 1.02)
        self.y = low / margin, high * margin
        last = max(xs, default=1.0)
        self.x = (0.5, last + 0.5) if whole_x else (0.0, last * 1.04 or 1.0)
        self.whole_x = whole_x
        self.y_labels = [_plain(tick) for tick in log_ticks(*self.y)]

    def apply(self, axes: Axes) -> None:
        axes.set_yscale("log")
        axes.set_ylim(*self.y)
        axes.set_xlim(*self.x)
        _log_ticks(axes.yaxis, *self.y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=self.whole_x, min_n_ticks=1))
        axes.xaxis.set_major_formatter(lambda value, _: _plain(value))


def _log_ticks(axis: Any, low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _draw(axes: Axes, panel: Panel) -> None:
    axes.grid()
    for style, curve in zip(_cycled(LINES, len(panel.curves)), panel.curves.values(), strict=True):
        if curve.low and (list(curve.low) != list(curve.y) or list(curve.high) != list(curve.y)):
            axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0.0)
        axes.plot(curve.x, curve.y, markevery=max(1, len(curve.x) // 12), **style)
        axes.plot(
            curve.astray,
            [0.97] * len(curve.astray),
            transform=axes.get_xaxis_transform(),
            **_ASTRAY,
        )
    if panel.note:
        x, y, side, height = (0.97, 0.86, "right", "top") if panel.curves else (0.5, 0.5, "center", "center")
        words = _NOTE | {"ha": side, "va": height}
        axes.text(x, y, shown(panel.note), words, transform=axes.transAxes)


_NOTE: dict[str, Any] = {"fontsize": 7, "style": "italic", "color": "#444444"}
_ASTRAY: Mapping[str, Any] = {"color": "black", "marker": "x", "markersize": 4.5, "linestyle": "none"}


def _legend_entries(each: Sequence[Panel]) -> list[Artist]:
    names = list(dict.fromkeys(name for panel in each for name in panel.curves))
    styles = _cycled(LINES, len(names))
    entries: list[Artist] = [Line2D([], [], label=name, **style) for style, name in zip(styles, names, strict=True)]
    curves = [curve for panel in each for curve in panel.curves.values()]
    if any(list(curve.low) != list(curve.high) for curve in curves):
        entries.append(Patch(facecolor="#888888", alpha=0.4, label="range of seeds"))
    if any(curve.astray for curve in curves):
        entries.append(Line2D([], [], label="beyond the axis", **_ASTRAY))
    return entries


def _grid(
    rows: int, columns: int, width_in: float, *, left_in: float, top_in: float
) -> tuple[Figure, list[Axes], float]:
    """Panels of one size, margins in inches, filled row by row; and the width of each."""
    right, bottom, gap_x, gap_y, panel_height = 0.1, 0.42, 0.18, 0.3, 1.55
    height = top_in + bottom + rows * panel_height + (rows - 1) * gap_y
    figure = Figure(figsize=(width_in, height))
    FigureCanvasAgg(figure)
    panel_width = (width_in - left_in - right - (columns - 1) * gap_x) / columns
    made = []
    for row in range(rows):
        for column in range(columns):
            x = left_in + column * (panel_width + gap_x)
            y = height - top_in - (row + 1) * panel_height - row * gap_y
            made.append(figure.add_axes((x / width_in, y / height, panel_width / width_in, panel_height / height)))
    return figure, made, panel_width


def _cycled(styles: Sequence[Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    for number in range(count):
        yield styles[number % len(styles)]


@contextmanager
def _style() -> Iterator[None]:
    """Our style over matplotlib's own defaults, whatever a person's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
