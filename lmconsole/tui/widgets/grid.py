"""A widget that is a grid of characters and repaints only those that have changed."""

from collections.abc import Sequence
from itertools import groupby

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

GridCell = tuple[str, Style]
"""A character and its style."""
MERGE_GAP = 6
"""Unchanged cells between two changed ones that take fewer bytes to send again than to skip."""


class Grid(Widget):
    """Shows rows of cells. Cells beyond them are blank."""

    def __init__(self, widget_id: str) -> None:
        super().__init__(id=widget_id)
        self._rows: Sequence[Sequence[GridCell]] = ()
        self._cells: list[list[GridCell]] = []
        self.repainted_cells = 0
        """Cells repainted so far: the traffic on a slow connection."""

    def put(self, rows: Sequence[Sequence[GridCell]]) -> None:
        """Show ``rows`` and repaint the cells that differ."""
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

    def redraw(self) -> None:
        """Draw for the present size and theme. Subclasses compute their rows here."""
        self.put(self._rows)

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.redraw()

    def render_line(self, y: int) -> Strip:
        """Return row ``y`` on the widget's own background."""
        base = self.rich_style
        width = self.size.width
        cells = self._cells[y] if y < len(self._cells) else []
        segments = [
            Segment("".join(text for text, _ in group), base + style)
            for style, group in groupby(cells, key=lambda cell: cell[1])
        ]
        return Strip(segments).adjust_cell_length(width, base)

    def get_content_height(self, _container: Size, _viewport: Size, _width: int) -> int:
        """Return the number of rows."""
        return len(self._rows) or 1


def _changed(old: Sequence[GridCell], new: Sequence[GridCell]) -> list[tuple[int, int]]:
    """Return start and length of each stretch in which two rows differ."""
    stretches: list[tuple[int, int]] = []
    for x, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        if stretches and x - sum(stretches[-1]) <= MERGE_GAP:
            start = stretches[-1][0]
            stretches[-1] = (start, x - start + 1)
        else:
            stretches.append((x, 1))
    return stretches


def text_cells(text: str, style: Style | None = None) -> list[GridCell]:
    """Return ``text`` as cells of one style. Every character must be one cell wide."""
    shown = style or Style.null()
    return [(character, shown) for character in text]
