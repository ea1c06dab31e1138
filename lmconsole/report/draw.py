"""Drawing of figures with matplotlib.

Nothing here depends on the time, the machine or a configuration file, so equal values give equal bytes.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from lmconsole.report.clean_matplotlib import matplotlib  # before anything imports it

# isort: split
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from lmconsole.errors import escape_control_characters
from lmconsole.report.figure_content import BarChart, Panel, PanelGrid, StepPlot
from lmconsole.report.markup import replace_unsupported

ImageFormat = Literal["png", "pdf", "svg"]

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


def draw_figure(content: PanelGrid | BarChart | StepPlot) -> Figure:
    """Draw the content of a figure."""
    with _style():
        match content:
            case PanelGrid():
                return _draw_panels(content)
            case BarChart():
                return _draw_bars(content)
            case StepPlot():
                return _draw_steps(content)


def in_one_column(content: PanelGrid | BarChart | StepPlot) -> PanelGrid | None:
    """Return panels one below the other, as a narrow screen shows them; None if the figure is that narrow anyway."""
    return replace(content, columns=1) if isinstance(content, PanelGrid) and content.columns > 1 else None


def _draw_panels(grid: PanelGrid) -> Figure:
    """Draw panels that share their axes, with a letter each if there are several."""
    panels, columns = grid.panels, grid.columns
    width_in = SINGLE_IN if columns == 1 else DOUBLE_IN
    limits = _Limits(panels, integer_x=grid.integer_x)
    entries = _legend_entries(panels)
    legend_columns = min(len(entries), 4 if width_in > SINGLE_IN else 2) or 1
    figure, all_axes, panel_width_in = _add_grid(
        math.ceil(len(panels) / columns),
        columns,
        width_in,
        left_in=0.32 + CHARACTER_IN * max((len(label) for label in limits.y_labels), default=0),
        top_in=0.36 + 0.16 * math.ceil(len(entries) / legend_columns),
    )
    title_length = int(panel_width_in / (CHARACTER_IN * 1.1))
    for index, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        _draw_panel(axes, panel)
        limits.apply(axes)
        letter = f"({chr(ord('a') + index)}) " if len(panels) > 1 and index < 26 else ""
        title = shorten(letter + displayable(panel.title), title_length)
        # With y given, matplotlib need not search for ticks that the title could overlap.
        axes.set_title(title, loc="left", y=1.0, fontweight="normal" if panel.curves else "bold")
        if index + columns >= len(panels):
            axes.set_xlabel(grid.x_label)
        else:
            axes.tick_params(labelbottom=False)
        if index % columns == 0:
            axes.set_ylabel(grid.y_label)
        else:
            axes.tick_params(labelleft=False)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    if entries:
        figure.legend(handles=entries, loc="upper center", ncols=legend_columns, frameon=False)
    return figure


def _draw_bars(chart: BarChart) -> Figure:
    groups = list(dict.fromkeys(chart.groups))
    height_in = 0.75 + 0.19 * max(len(chart.labels), 2)
    figure = Figure(figsize=(SINGLE_IN, height_in))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((1.32 / SINGLE_IN, 0.42 / height_in, (SINGLE_IN - 1.85) / SINGLE_IN, 1 - 0.7 / height_in))
    largest = max((value for value in chart.values if value), default=1.0)
    spans = chart.spans or [None] * len(chart.values)
    bars = zip(chart.values, chart.missing, chart.groups, spans, strict=True)
    for y, (value, missing, group, span) in enumerate(bars):
        if value is None:
            end, text = 0.0, missing
        else:
            end, text = max(value, span[1] if span else 0.0), format(value, chart.value_format)
            axes.barh(y, value, height=0.7, linewidth=0.0, **FILLS[groups.index(group) % len(FILLS)])
            if span and span[0] < span[1]:
                axes.plot(span, [y, y], color="black", linewidth=0.8)
        axes.text(end + 0.02 * largest, y, text, va="center", fontsize=6.5)
    axes.set_yticks(range(len(chart.labels)), [shorten(displayable(label), 22) for label in chart.labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(chart.labels) - 0.4, -0.6)
    axes.set_xlim(0, largest * 1.02)
    if any(chart.values):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=largest > 4))
        axes.xaxis.set_major_formatter(lambda value, _: _plain(value))
    else:
        axes.set_xticks([])  # an axis of nothing has no scale
    axes.grid(axis="x")
    axes.set_xlabel(chart.x_label)
    handles = [
        Patch(linewidth=0.0, label=displayable(group), **FILLS[index % len(FILLS)])
        for index, group in enumerate(groups)
    ]
    figure.legend(handles=handles, loc="upper center", ncols=3, frameon=False)
    return figure


def _draw_steps(plot: StepPlot) -> Figure:
    height_in = 2.6
    figure = Figure(figsize=(SINGLE_IN, height_in))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.5 / SINGLE_IN, 0.42 / height_in, 1 - 0.6 / SINGLE_IN, 1 - 0.85 / height_in))
    last = max((x for points in plot.curves.values() for x, _ in points), default=1.0) * 1.1
    last = max(last, 2.0)
    handles = []
    for style, (name, points) in zip(_cycled(LINES, len(plot.curves)), plot.curves.items(), strict=True):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        line = {key: value for key, value in style.items() if key != "marker"}
        axes.step([1.0, *xs, last], [0.0, *ys, ys[-1] if ys else 0.0], where="post", clip_on=False, **line)
        handles.append(Line2D([], [], label=displayable(name), **line))
    axes.set_xscale("log")
    axes.set_xlim(1.0, last)
    axes.set_ylim(0.0, 1.02)
    _set_log_ticks(axes.xaxis, 1.0, last)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid()
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if handles:
        figure.legend(handles=handles, loc="upper center", ncols=min(len(handles), 4), frameon=False)
    else:
        axes.text(0.5, 0.5, plot.missing, _NOTE | {"ha": "center", "va": "center"}, transform=axes.transAxes)
    return figure


def encode_figure(figure: Figure, image_format: ImageFormat) -> bytes:
    """Return the image file of a figure, with embedded fonts and without a creation date or software version."""
    metadata: dict[ImageFormat, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }
    out = io.BytesIO()
    with _style():
        figure.savefig(out, format=image_format, metadata=metadata[image_format])
    return out.getvalue()


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


def _plain(value: float) -> str:
    return f"{value:,.10g}"


class _Limits:
    """Limits and ticks shared by all panels of a figure."""

    def __init__(self, panels: Sequence[Panel], *, integer_x: bool) -> None:
        curves = [curve for panel in panels for curve in panel.curves.values()]
        heights = [y for curve in curves for y in (*curve.y, *curve.low, *curve.high)]
        xs = [x for curve in curves for x in (*curve.x, *curve.off_scale)]
        low, high = min(heights, default=10.0), max(heights, default=1000.0)
        margin = max((high / low) ** 0.06, 1.02)
        self.y = low / margin, high * margin
        last = max(xs, default=1.0)
        first = 0.5 if min(xs, default=1.0) >= 1.0 else 0.0  # evaluations within the first epoch come before its end
        self.x = (first, last + 0.5) if integer_x else (0.0, last * 1.04 or 1.0)
        self.integer_x = integer_x
        self.y_labels = [_plain(tick) for tick in log_ticks(*self.y)]

    def apply(self, axes: Axes) -> None:
        axes.set_yscale("log")
        axes.set_ylim(*self.y)
        axes.set_xlim(*self.x)
        _set_log_ticks(axes.yaxis, *self.y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=self.integer_x, min_n_ticks=1))
        axes.xaxis.set_major_formatter(lambda value, _: _plain(value))


def _set_log_ticks(axis: Any, low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid()
    for style, curve in zip(_cycled(LINES, len(panel.curves)), panel.curves.values(), strict=True):
        if curve.low and (list(curve.low) != list(curve.y) or list(curve.high) != list(curve.y)):
            axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0.0)
        axes.plot(curve.x, curve.y, markevery=max(1, len(curve.x) // 12), **style)
        axes.plot(
            curve.off_scale,
            [0.97] * len(curve.off_scale),
            transform=axes.get_xaxis_transform(),
            **_OFF_SCALE,
        )
    if panel.note:
        x, y, side, height = (0.97, 0.86, "right", "top") if panel.curves else (0.5, 0.5, "center", "center")
        style = _NOTE | {"ha": side, "va": height}
        axes.text(x, y, displayable(panel.note), style, transform=axes.transAxes)


_NOTE: dict[str, Any] = {"fontsize": 7, "style": "italic", "color": "#444444"}
_OFF_SCALE: Mapping[str, Any] = {"color": "black", "marker": "x", "markersize": 4.5, "linestyle": "none"}


def _legend_entries(panels: Sequence[Panel]) -> list[Artist]:
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = _cycled(LINES, len(names))
    entries: list[Artist] = [Line2D([], [], label=name, **style) for style, name in zip(styles, names, strict=True)]
    curves = [curve for panel in panels for curve in panel.curves.values()]
    if any(list(curve.low) != list(curve.high) for curve in curves):
        entries.append(Patch(facecolor="#888888", alpha=0.4, label="range of seeds"))
    if any(curve.off_scale for curve in curves):
        entries.append(Line2D([], [], label="beyond the axis", **_OFF_SCALE))
    return entries


def _add_grid(
    rows: int, columns: int, width_in: float, *, left_in: float, top_in: float
) -> tuple[Figure, list[Axes], float]:
    """Add axes of equal size row by row. Return the figure, the axes, and their width in inches."""
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
    """Apply the style of the figures to the defaults of matplotlib; a matplotlibrc has no effect."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
