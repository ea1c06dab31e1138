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
from lmconsole.report.figure_content import BarChart, Content, Curve, DifferencePlot, Panel, PanelGrid, StepPlot
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


def draw_figure(content: Content) -> Figure:
    """Draw the content of a figure."""
    with _style():
        match content:
            case PanelGrid():
                return _draw_panels(content)
            case BarChart():
                return _draw_bars(content)
            case StepPlot():
                return _draw_steps(content)
            case DifferencePlot():
                return _draw_differences(content)


def in_one_column(content: Content) -> PanelGrid | None:
    """Return panels one below the other, as a narrow screen shows them; None if the figure is that narrow anyway."""
    return replace(content, columns=1) if isinstance(content, PanelGrid) and content.columns > 1 else None


def _draw_panels(grid: PanelGrid) -> Figure:
    """Draw panels with a letter each if there are several. Panels that share an axis have its labels once."""
    panels, columns = grid.panels, grid.columns
    width_in = SINGLE_IN if columns == 1 else DOUBLE_IN
    own_y = len({panel.y_limits for panel in panels}) > 1
    labels_in = CHARACTER_IN * max(len(_plain(tick)) for panel in panels for tick in _linear_ticks(panel.y_limits))
    entries = _legend_entries(panels)
    legend_columns = min(len(entries), 5 if width_in > SINGLE_IN else 2) or 1
    last_x = _last_x(panels)
    figure, all_axes, panel_width_in = _add_grid(
        math.ceil(len(panels) / columns),
        columns,
        width_in,
        left_in=0.32 + labels_in,
        gap_x_in=0.18 + (labels_in + 0.05 if own_y else 0.0),
        gap_y_in=0.32 if len(last_x) == 1 else 0.6,
        top_in=0.36 + 0.16 * math.ceil(len(entries) / legend_columns),
    )
    title_length = int(panel_width_in / (CHARACTER_IN * 1.1))
    for index, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        _draw_panel(axes, panel)
        _set_limits(axes, panel, last_x[panel.x_label])
        letter = f"({chr(ord('a') + index)}) " if len(panels) > 1 and index < 26 else ""
        title = shorten(letter + displayable(panel.title), title_length)
        # With y given, matplotlib need not search for ticks that the title could overlap.
        axes.set_title(title, loc="left", y=1.0, fontweight="normal" if panel.curves else "bold")
        below = panels[index + columns] if index + columns < len(panels) else None
        if below is None or below.x_label != panel.x_label:
            axes.set_xlabel(panel.x_label, labelpad=2.0)
        else:
            axes.tick_params(labelbottom=False)
        if index % columns == 0:
            axes.set_ylabel(grid.y_label)
        elif not own_y:
            axes.tick_params(labelleft=False)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    if entries:
        figure.legend(handles=entries, loc="upper center", ncols=legend_columns, frameon=False)
    return figure


def _last_x(panels: Sequence[Panel]) -> dict[str, float]:
    """Return the largest x by label of the axis; panels with the same label share it."""
    last: dict[str, float] = {}
    for panel in panels:
        xs = [x for curve in panel.curves.values() for seed in curve.seeds for x in seed.x]
        xs += [x for curve in panel.curves.values() for x in curve.off_scale]
        last[panel.x_label] = max([last.get(panel.x_label, 0.0), *xs])
    return last


def _linear_ticks(limits: tuple[float, float]) -> list[float]:
    """Return about five round numbers within the limits."""
    return [tick for tick in MaxNLocator(5, min_n_ticks=3).tick_values(*limits) if limits[0] <= tick <= limits[1]]


def _set_limits(axes: Axes, panel: Panel, last_x: float) -> None:
    ticks = _linear_ticks(panel.y_limits)
    axes.set_ylim(*panel.y_limits)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    within = any(x < 1.0 for curve in panel.curves.values() for seed in curve.seeds for x in seed.x)
    axes.set_xlim(*((0.0 if within else 0.5, last_x + 0.5) if panel.integer_x else (0.0, last_x * 1.04 or 1.0)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.integer_x, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: _plain(value))


def _draw_bars(chart: BarChart) -> Figure:
    groups = list(dict.fromkeys(chart.groups))
    height_in = 0.75 + 0.19 * max(len(chart.labels), 2)
    figure = Figure(figsize=(SINGLE_IN, height_in))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((1.32 / SINGLE_IN, 0.42 / height_in, (SINGLE_IN - 1.85) / SINGLE_IN, 1 - 0.7 / height_in))
    shown = [*(value for value in chart.values if value), *(value for seeds in chart.seeds for value in seeds)]
    largest = max(shown, default=1.0) or 1.0
    bars = zip(chart.values, chart.missing, chart.groups, chart.seeds, strict=True)
    for y, (value, missing, group, seeds) in enumerate(bars):
        text = missing if value is None else format(value, chart.value_format)
        if value is not None:
            axes.barh(y, value, height=0.7, linewidth=0.0, **FILLS[groups.index(group) % len(FILLS)])
        axes.plot(seeds, [y] * len(seeds), **_SEED, clip_on=False)
        axes.text(max([value or 0.0, *seeds]) + 0.03 * largest, y, text, va="center", fontsize=6.5)
    axes.set_yticks(range(len(chart.labels)), [shorten(displayable(label), 22) for label in chart.labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(chart.labels) - 0.4, -0.6)
    axes.set_xlim(0, largest * 1.02)
    if shown:
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
        axes.plot(xs, ys, linestyle="none", marker=style["marker"], color=style["color"], clip_on=False)
        handles.append(Line2D([], [], label=displayable(name), **style))
    axes.set_xscale("log")
    axes.set_xlim(1.0, last)
    axes.set_ylim(0.0, 1.02)
    _set_log_ticks(axes.xaxis, 1.0, last)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid()
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    figure.legend(handles=handles, loc="upper center", ncols=min(len(handles), 4), frameon=False)
    return figure


def _draw_differences(plot: DifferencePlot) -> Figure:
    """Draw two rows of dots for each comparison, and next to them the interval of the difference."""
    rows = len(plot.rows)
    top_in, bottom_in, left_in, gap_in, right_in = 0.1, 0.42, 1.7, 0.25, 0.1
    height_in = top_in + bottom_in + 0.52 * rows
    figure = Figure(figsize=(DOUBLE_IN, height_in))
    FigureCanvasAgg(figure)
    width_in = (DOUBLE_IN - left_in - gap_in - right_in) / 2
    box = (bottom_in / height_in, width_in / DOUBLE_IN, 1 - (top_in + bottom_in) / height_in)
    left = figure.add_axes((left_in / DOUBLE_IN, box[0], box[1], box[2]))
    right = figure.add_axes(((left_in + width_in + gap_in) / DOUBLE_IN, box[0], box[1], box[2]))
    labels, ticks = [], []
    for y, row in enumerate(plot.rows):
        sides = (row.first, row.first_values, BLUE), (row.second, row.second_values, VERMILLION)
        for offset, diverged, (name, values, color) in zip((-0.2, 0.2), row.diverged, sides, strict=True):
            left.plot(values, [y + offset] * len(values), **_SEED | {"markerfacecolor": color}, clip_on=False)
            if values:
                mean = sum(values) / len(values)
                left.plot([mean, mean], [y + offset - 0.15, y + offset + 0.15], color="black", linewidth=1.0)
            if diverged:
                left.text(1.0, y + offset, f"{diverged} diverged", _NOTE | {"ha": "right", "va": "center"},
                          transform=left.get_yaxis_transform())  # fmt: skip
            labels.append(shorten(displayable(name), 30))
            ticks.append(y + offset)
        if row.delta is not None:
            right.fill_betweenx([y - 0.4, y + 0.4], -row.delta, row.delta, color="#dddddd", linewidth=0.0)
        if row.difference is not None and row.low is not None and row.high is not None:
            right.plot([row.low, row.high], [y, y], color="black", linewidth=1.4)
            right.plot([row.difference], [y], color="black", marker="D", markersize=4.0)
        right.text(0.5, y - 0.28, row.verdict, ha="center", va="center", fontsize=7, fontweight="bold",
                   transform=right.get_yaxis_transform())  # fmt: skip
    right.axvline(0.0, color="#888888", linewidth=0.8)
    low, high = right.get_xlim()
    right.set_xlim(min(low, 0.0), max(high, 0.0))
    left.set_yticks(ticks, labels)
    right.set_yticks([])
    for axes, label in ((left, plot.values_label), (right, plot.difference_label)):
        axes.set_ylim(rows - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: _plain(value).replace("-", "−"))
        axes.grid(axis="x")
        axes.set_xlabel(label)
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


def _set_log_ticks(axis: Any, low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid()
    for style, curve in zip(_cycled(LINES, len(panel.curves)), panel.curves.values(), strict=True):
        _draw_curve(axes, curve, style)
    if panel.note:
        x, y, side, height = (0.97, 0.86, "right", "top") if panel.curves else (0.5, 0.5, "center", "center")
        style = _NOTE | {"ha": side, "va": height}
        axes.text(x, y, displayable(panel.note), style, transform=axes.transAxes)


def _draw_curve(axes: Axes, curve: Curve, style: Mapping[str, Any]) -> None:
    """Draw seeds as thin lines, their mean as a thick one, and their best epochs as dots."""
    if len(curve.seeds) > 1:
        line = {key: value for key, value in style.items() if key != "marker"}
        for seed in curve.seeds:
            axes.plot(seed.x, seed.y, **line | {"linewidth": 0.7})
        axes.plot(curve.x, curve.y, **line | {"linewidth": 2.4, "alpha": 0.35})
    else:
        for seed in curve.seeds:
            axes.plot(seed.x, seed.y, markevery=max(1, len(seed.x) // 12), **style)
    best = [seed.best for seed in curve.seeds if seed.best]
    axes.plot([x for x, _ in best], [y for _, y in best], **_SEED | {"markerfacecolor": style["color"]}, zorder=3)
    heights = [0.97] * len(curve.off_scale)
    axes.plot(curve.off_scale, heights, transform=axes.get_xaxis_transform(), **_OFF_SCALE)


_NOTE: dict[str, Any] = {"fontsize": 7, "style": "italic", "color": "#444444"}
_OFF_SCALE: Mapping[str, Any] = {"color": "black", "marker": "x", "markersize": 4.5, "linestyle": "none"}
_SEED: dict[str, Any] = {
    "color": "black", "markerfacecolor": "white", "marker": "o", "markersize": 4.0, "markeredgewidth": 0.8,
    "linestyle": "none",
}  # fmt: skip


def _legend_entries(panels: Sequence[Panel]) -> list[Artist]:
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    curves = [curve for panel in panels for curve in panel.curves.values()]
    several = any(len(curve.seeds) > 1 for curve in curves)
    marker = {"marker": ""} if all(len(curve.seeds) != 1 for curve in curves) else {}
    entries: list[Artist] = [
        Line2D([], [], label=displayable(name), **{**style, **marker})
        for style, name in zip(_cycled(LINES, len(names)), names, strict=True)
    ]
    if several:
        entries.append(Line2D([], [], label="mean of the seeds", color="#444444", linewidth=2.4, alpha=0.35))
    if any(seed.best for curve in curves for seed in curve.seeds):
        entries.append(Line2D([], [], label="best epoch", **_SEED))
    if any(curve.off_scale for curve in curves):
        entries.append(Line2D([], [], label="beyond the axis", **_OFF_SCALE))
    return entries


def _add_grid(
    rows: int,
    columns: int,
    width_in: float,
    *,
    left_in: float,
    gap_x_in: float,
    gap_y_in: float,
    top_in: float,
) -> tuple[Figure, list[Axes], float]:
    """Add axes of equal size row by row. Return the figure, the axes, and their width in inches."""
    right, bottom, gap_x, gap_y, panel_height = 0.1, 0.42, gap_x_in, gap_y_in, 1.3
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
