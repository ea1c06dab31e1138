"""Drawing of claimed differences: every seed, and the interval of each difference."""

from lmconsole.report.draw_style import (  # before anything imports matplotlib
    BLUE,
    DOUBLE_IN,
    NOTE,
    SEED,
    SINGLE_IN,
    VERMILLION,
    displayable,
    plain_number,
    shorten,
)

# isort: split
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmconsole.report.figure_content import DifferencePlot, DifferenceRow

ROW_IN, LABELS_IN, TOP_IN, BOTTOM_IN, GAP_IN, RIGHT_IN = 0.52, 1.7, 0.1, 0.42, 0.25, 0.1
"""Height of a comparison, and the room around both axes, in inches."""

LONGEST_LABEL = 30
"""Characters that fit into ``LABELS_IN``."""


def draw_differences(plot: DifferencePlot) -> Figure:
    """Draw two rows of dots for each comparison, and next to them, or below in one column, the interval of the
    difference."""
    figure, values, differences = _axes(plot)
    for y, row in enumerate(plot.rows):
        _draw_values(values, y, row)
        _draw_difference(differences, y, row)
    differences.axvline(0.0, color="#888888", linewidth=0.8)
    low, high = differences.get_xlim()
    differences.set_xlim(min(low, 0.0), max(high, 0.0))
    values.set_yticks(
        [y + offset for y in range(len(plot.rows)) for offset in _OFFSETS],
        [_label(name) for row in plot.rows for name in (row.first, row.second)],
    )
    names = [f"{_label(row.first)}\n− {_label(row.second)}" for row in plot.rows]
    differences.set_yticks(range(len(names)), names if plot.columns == 1 else [""] * len(names))
    for axes, label in ((values, plot.values_label), (differences, plot.difference_label)):
        axes.set_ylim(len(plot.rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5 if plot.columns > 1 else 4))
        axes.xaxis.set_major_formatter(lambda value, _: plain_number(value).replace("-", "−"))
        axes.grid(axis="x")
        axes.set_xlabel(label)
    return figure


_OFFSETS = (-0.2, 0.2)
"""Places of both sides around the middle of a row."""


def _axes(plot: DifferencePlot) -> tuple[Figure, Axes, Axes]:
    """Return a figure with axes for the values and for the differences."""
    inner_in = ROW_IN * len(plot.rows)
    panel_in = TOP_IN + inner_in + BOTTOM_IN
    if plot.columns > 1:
        size_in = DOUBLE_IN, panel_in
        width_in = (DOUBLE_IN - LABELS_IN - GAP_IN - RIGHT_IN) / 2
        corners_in = (LABELS_IN, BOTTOM_IN), (LABELS_IN + width_in + GAP_IN, BOTTOM_IN)
    else:
        size_in = SINGLE_IN, 2 * panel_in
        width_in = SINGLE_IN - LABELS_IN - RIGHT_IN
        corners_in = (LABELS_IN, panel_in + BOTTOM_IN), (LABELS_IN, BOTTOM_IN)
    figure = Figure(figsize=size_in)
    FigureCanvasAgg(figure)
    values, differences = (
        figure.add_axes((x / size_in[0], y / size_in[1], width_in / size_in[0], inner_in / size_in[1]))
        for x, y in corners_in
    )
    return figure, values, differences


def _draw_values(axes: Axes, y: int, row: DifferenceRow) -> None:
    """Draw the value of every seed, and the mean of each side or, without one, how many runs diverged."""
    sides = (row.first_values, BLUE), (row.second_values, VERMILLION)
    for offset, diverged, (values, color) in zip(_OFFSETS, row.diverged, sides, strict=True):
        axes.plot(values, [y + offset] * len(values), **SEED | {"markerfacecolor": color}, clip_on=False)
        if diverged:
            axes.text(1.0, y + offset + 0.17, f"{diverged} diverged", NOTE | {"ha": "right", "va": "center"},
                      transform=axes.get_yaxis_transform())  # fmt: skip
        elif values:
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [y + offset - 0.15, y + offset + 0.15], color="black", linewidth=1.0)


def _draw_difference(axes: Axes, y: int, row: DifferenceRow) -> None:
    """Draw a difference with its interval and verdict, and shade the margin within which it would not matter."""
    if row.delta is not None:
        axes.fill_betweenx([y - 0.4, y + 0.4], -row.delta, row.delta, color="#dddddd", linewidth=0.0)
        axes.text(1.0, y + 0.28, f"δ = {plain_number(row.delta)}", NOTE | {"ha": "right", "va": "center"},
                  transform=axes.get_yaxis_transform())  # fmt: skip
    if row.difference is not None and row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color="black", linewidth=1.4)
        axes.plot([row.difference], [y], color="black", marker="D", markersize=4.0)
    axes.text(0.5, y - 0.28, row.verdict, ha="center", va="center", fontsize=7, fontweight="bold",
              transform=axes.get_yaxis_transform())  # fmt: skip


def _label(name: str) -> str:
    return shorten(displayable(name), LONGEST_LABEL)
