"""Every use of a private name of plotext, in this one file. Checked against plotext 5.3.2.

The public functions of plotext 5 share one figure, which is not safe in threads, and give text with escape sequences;
curves need a figure of their own and the grid of characters behind the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHECKED_VERSIONS = ("5.3.2",)
"""plotext versions in which these names were read and tested."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterGrid:
    """A figure as rows of characters, the top row first, each with the number of its color."""

    characters: Sequence[Sequence[str]]
    colors: Sequence[Sequence[Any]]
    """As given to ``plot`` and ``scatter``; something other than an int for what plotext draws itself."""
    plot_columns: range
    """Columns inside the axes."""


def new_figure(width: int, height: int) -> Any:
    """Return an empty figure of ``width`` by ``height`` cells. Importing plotext takes time, hence only here."""
    from plotext._figure import _figure_class

    figure = _figure_class()
    figure._limit_size(False, False)
    figure.plotsize(width, height)
    return figure


def render(figure: Any) -> CharacterGrid | None:
    """Draw ``figure``; None if there is nothing on it."""
    if not figure.monitor.x:
        return None
    figure._set_sizes()
    figure._build_matrix()
    matrix = figure.monitor.matrix
    return CharacterGrid(
        characters=matrix.marker[::-1], colors=matrix.fullground[::-1], plot_columns=matrix.Cols_canvas
    )
