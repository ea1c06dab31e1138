"""Drawing of claimed differences: every seed, and the interval of each difference."""

from lmconsole.report.draw_style import (  # before anything imports matplotlib
    BLUE,
    DOUBLE_IN,
    NOTE,
    SEED,
    VERMILLION,
    displayable,
    plain_number,
    shorten,
)

# isort: split
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmconsole.report.figure_content import DifferencePlot


def draw_differences(plot: DifferencePlot) -> Figure:
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
            left.plot(values, [y + offset] * len(values), **SEED | {"markerfacecolor": color}, clip_on=False)
            if values:
                mean = sum(values) / len(values)
                left.plot([mean, mean], [y + offset - 0.15, y + offset + 0.15], color="black", linewidth=1.0)
            if diverged:
                left.text(1.0, y + offset, f"{diverged} diverged", NOTE | {"ha": "right", "va": "center"},
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
        axes.xaxis.set_major_formatter(lambda value, _: plain_number(value).replace("-", "−"))
        axes.grid(axis="x")
        axes.set_xlabel(label)
    return figure
