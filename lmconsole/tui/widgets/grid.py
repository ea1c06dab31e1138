"""A widget that is a grid of characters and repaints only those that have changed."""

from collections.abc import Sequence
from itertools import groupby

from rich.segment import Segment
from rich.style import Style
from textual.events import Resize
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

GridCell = tuple[str, Style]
JOIN = 6
"""Unchanged cells between two changed ones that are cheaper to send again than to jump over."""


class Grid(Widget):
    """Shows rows of cells. What is beyond them is blank."""

    def __init__(self, name: str) -> None:
        """``name`` is the widget's id."""
        super().__init__(id=name)
        self._rows: Sequence[Sequence[GridCell]] = ()
        self._cells: list[list[GridCell]] = []
        self.repainted_cells = 0
        """Cells sent so far; what a slow line has had to carry."""

    def put(self, rows: Sequence[Sequence[GridCell]]) -> None:
        """Show ``rows`` in the place of what is there."""
        self._rows = rows
        width, height = self.size
        new = [(list(row) + [(" ", Style.null())] * (width - len(row)))[:width] for row in rows[:height]]
        new += [[(" ", Style.null())] * width for _ in range(height - len(new))]
        old, self._cells = self._cells, new
        regions = []
        for y, row in enumerate(new):
            before = old[y] if y < len(old) and len(old[y]) == width else None
            if before is None:
                regions.append(Region(0, y, width, 1))
            elif before != row:
                regions += [Region(x, y, n, 1) for x, n in _changed(before, row)]
        if regions:
            self.repainted_cells += sum(region.width for region in regions)
            self.refresh(*regions)

    def _on_resize(self, _event: Resize) -> None:
        self.put(self._rows)

    def render_line(self, y: int) -> Strip:
        """One row, in the widget's own background."""
        base = self.rich_style
        width = self.size.width
        cells = self._cells[y] if y < len(self._cells) else []
        segments = [
            Segment("".join(text for text, _ in group), base + style)
            for style, group in groupby(cells, key=lambda cell: cell[1])
        ]
        return Strip(segments).adjust_cell_length(width, base)

    def get_content_height(self, _container: Size, _viewport: Size, _width: int) -> int:
        """As many rows as were put."""
        return len(self._rows) or 1


def _changed(old: Sequence[GridCell], new: Sequence[GridCell]) -> list[tuple[int, int]]:
    """Starts and lengths of the stretches in which two rows differ."""
    stretches: list[tuple[int, int]] = []
    for x, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        if stretches and x - sum(stretches[-1]) <= JOIN:
            start = stretches[-1][0]
            stretches[-1] = (start, x - start + 1)
        else:
            stretches.append((x, 1))
    return stretches


def text_cells(text: str, style: Style | None = None) -> list[GridCell]:
    """``text`` as cells of one style. Every character must be one cell wide."""
    shown = style or Style.null()
    return [(character, shown) for character in text]
