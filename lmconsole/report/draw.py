"""Drawing of figures with matplotlib.

Nothing here depends on the time, the machine or a configuration file, so equal values give equal bytes.
"""

import io
from dataclasses import replace
from typing import Literal

from lmconsole.report.draw_style import (  # before anything imports matplotlib
    FILLS,
    LINES,
    SEED,
    SINGLE_IN,
    STAMP,
    cycled,
    displayable,
    figure_style,
    plain_number,
    set_log_ticks,
    shorten,
)

# isort: split
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lmconsole.report.draw_differences import draw_differences
from lmconsole.report.draw_panels import draw_panels
from lmconsole.report.figure_content import BarChart, Content, DifferencePlot, PanelGrid, StepPlot

ImageFormat = Literal["png", "pdf", "svg"]


def draw_figure(content: Content) -> Figure:
    """Draw the content of a figure."""
    with figure_style():
        match content:
            case PanelGrid():
                figure = draw_panels(content)
            case BarChart():
                figure = _draw_bars(content)
            case StepPlot():
                figure = _draw_steps(content)
            case DifferencePlot():
                figure = draw_differences(content)
        if content.stamp:
            figure.text(0.005, 0.01, content.stamp, STAMP)
        return figure


def in_one_column(content: Content) -> PanelGrid | DifferencePlot | None:
    """Return panels one below the other, as a narrow screen shows them; None if the figure is that narrow anyway."""
    if not isinstance(content, PanelGrid | DifferencePlot) or content.columns == 1:
        return None
    return replace(content, columns=1)


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
        if len(seeds) > 1 or value is None:
            axes.plot(seeds, [y] * len(seeds), **SEED, clip_on=False)
        axes.text(max([value or 0.0, *seeds]) + 0.03 * largest, y, text, va="center", fontsize=6.5)
    axes.set_yticks(range(len(chart.labels)), [shorten(displayable(label), 22) for label in chart.labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(chart.labels) - 0.4, -0.6)
    axes.set_xlim(0, largest * 1.02)
    if shown:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=largest > 4))
        axes.xaxis.set_major_formatter(lambda value, _: plain_number(value))
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
    for style, (name, points) in zip(cycled(LINES, len(plot.curves)), plot.curves.items(), strict=True):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        line = {key: value for key, value in style.items() if key != "marker"}
        axes.step([1.0, *xs, last], [0.0, *ys, ys[-1] if ys else 0.0], where="post", clip_on=False, **line)
        axes.plot(xs, ys, linestyle="none", marker=style["marker"], color=style["color"], clip_on=False)
        handles.append(Line2D([], [], label=displayable(name), **style))
    axes.set_xscale("log")
    axes.set_xlim(1.0, last)
    axes.set_ylim(0.0, 1.02)
    set_log_ticks(axes.xaxis, 1.0, last)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid()
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    figure.legend(handles=handles, loc="upper center", ncols=min(len(handles), 4), frameon=False)
    return figure


def encode_figure(figure: Figure, image_format: ImageFormat) -> bytes:
    """Return the image file of a figure, with embedded fonts and without a creation date or software version."""
    metadata: dict[ImageFormat, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }
    out = io.BytesIO()
    with figure_style():
        figure.savefig(out, format=image_format, metadata=metadata[image_format])
    return out.getvalue()
