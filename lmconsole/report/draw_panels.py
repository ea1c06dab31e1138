"""Drawing of panels with curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmconsole.report.draw_style import (  # before anything imports matplotlib
    CHARACTER_IN,
    DOUBLE_IN,
    LINES,
    NOTE,
    OFF_SCALE,
    SEED,
    SINGLE_IN,
    UNIGRAM,
    cycled,
    displayable,
    log_ticks,
    plain_number,
    shorten,
)

# isort: split
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from lmconsole.report.figure_content import Curve, Panel, PanelGrid

LEGEND_LINE_IN, LEGEND_CHARACTER_IN = 0.47, 0.057
"""Widths in a legend, in inches: of a line with the space around it, and of a character."""

PANEL_IN = 1.15
"""Height of a panel in inches: three figures of two or four panels fit a page of the report."""


def draw_panels(grid: PanelGrid) -> Figure:
    """Draw panels with a letter each if there are several. Panels that share an axis have its labels once."""
    panels, columns = grid.panels, grid.columns
    width_in = SINGLE_IN if columns == 1 else DOUBLE_IN
    own_y = len({panel.y_limits for panel in panels}) > 1
    labels_in = CHARACTER_IN * max(len(plain_number(tick)) for panel in panels for tick in _ticks(panel))
    entries = _legend_entries(grid)
    legend_columns = _legend_columns([str(entry.get_label()) for entry in entries], width_in)
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
        _draw_panel(axes, panel, grid.unigram_ppl)
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


def _ticks(panel: Panel) -> list[float]:
    """Return about five round numbers within the limits of a panel."""
    limits = panel.y_limits
    if panel.log_y:
        return log_ticks(*limits)
    return [tick for tick in MaxNLocator(5, min_n_ticks=3).tick_values(*limits) if limits[0] <= tick <= limits[1]]


def _set_limits(axes: Axes, panel: Panel, last_x: float) -> None:
    ticks = _ticks(panel)
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(*panel.y_limits)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([plain_number(tick) for tick in ticks]))
    within = any(x < 1.0 for curve in panel.curves.values() for seed in curve.seeds for x in seed.x)
    axes.set_xlim(*((0.0 if within else 0.5, last_x + 0.5) if panel.integer_x else (0.0, last_x * 1.04 or 1.0)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.integer_x, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: plain_number(value))


def _draw_panel(axes: Axes, panel: Panel, unigram_ppl: float | None) -> None:
    axes.grid()
    for style, curve in zip(cycled(LINES, len(panel.curves)), panel.curves.values(), strict=True):
        _draw_curve(axes, curve, style)
    if unigram_ppl is not None and _is_within_axis(panel, unigram_ppl):
        axes.axhline(unigram_ppl, **UNIGRAM)
    if panel.note:
        x, y, side, height = (0.97, 0.86, "right", "top") if panel.curves else (0.5, 0.5, "center", "center")
        style = NOTE | {"ha": side, "va": height}
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
    axes.plot([x for x, _ in best], [y for _, y in best], **SEED | {"markerfacecolor": style["color"]}, zorder=3)
    heights = [0.97] * len(curve.off_scale)
    axes.plot(curve.off_scale, heights, transform=axes.get_xaxis_transform(), **OFF_SCALE)


def _is_within_axis(panel: Panel, y: float) -> bool:
    low, high = panel.y_limits
    return bool(panel.curves) and low <= y <= high


def _legend_entries(grid: PanelGrid) -> list[Artist]:
    names = list(dict.fromkeys(name for panel in grid.panels for name in panel.curves))
    curves = [curve for panel in grid.panels for curve in panel.curves.values()]
    several = any(len(curve.seeds) > 1 for curve in curves)
    marker = {"marker": ""} if all(len(curve.seeds) != 1 for curve in curves) else {}
    entries: list[Artist] = [
        Line2D([], [], label=displayable(name), **{**style, **marker})
        for style, name in zip(cycled(LINES, len(names)), names, strict=True)
    ]
    if several:
        entries.append(Line2D([], [], label="mean of the seeds", color="#444444", linewidth=2.4, alpha=0.35))
    if any(seed.best for curve in curves for seed in curve.seeds):
        entries.append(Line2D([], [], label="best epoch", **SEED))
    if any(curve.off_scale for curve in curves):
        entries.append(Line2D([], [], label="beyond the axis", **OFF_SCALE))
    if grid.unigram_ppl is not None and any(_is_within_axis(panel, grid.unigram_ppl) for panel in grid.panels):
        entries.append(Line2D([], [], label="token frequencies", **UNIGRAM))
    return entries


def _legend_columns(labels: Sequence[str], width_in: float) -> int:
    """Return the number of columns in which a legend with these labels is not wider than the figure."""
    most = 5 if width_in > SINGLE_IN else 2
    for columns in range(min(len(labels), most), 1, -1):
        longest = [max(map(len, column)) for column in np.array_split(labels, columns)]  # as matplotlib splits them
        if columns * LEGEND_LINE_IN + sum(longest) * LEGEND_CHARACTER_IN <= width_in:
            return columns
    return 1


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
    right, bottom, gap_x, gap_y, panel_height = 0.1, 0.42, gap_x_in, gap_y_in, PANEL_IN
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
