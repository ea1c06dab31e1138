"""Partial updates of the screen that send only the changed cells.

Textual 8 repaints a changed stretch from the left edge of its widget on (``ChopsUpdate`` crops to the right end only),
and ends every segment with a reset, even where the style stays the same. Over SSH that is most of the traffic of a
table whose last columns change.
"""

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from textual.strip import Strip

from lmconsole.tui.terminal.textual_internals import ChopsUpdate, Compositor


class CroppedUpdate(ChopsUpdate):
    """Changed stretches, each cropped to its first and last changed cell."""

    def render_segments(self, console: Console) -> str:
        """Return the escape sequences and text to write to the terminal."""
        written: list[str] = []
        for y, x1, x2 in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                first, last = max(x, x1), min(end, x2)
                shown = _cropped(strip, first - x, last - x).simplify()
                written.append(f"\x1b[{y + 1};{first + 1}H{shown.render(console)}")
        return "".join(written)


def _cropped(strip: Strip, first: int, last: int) -> Strip:
    """Return the cells from ``first`` up to ``last``.

    ``Strip.crop`` caches the last 16,384 segments that it has cut, which in a console of changing numbers is memory
    that grows for hours. Where every character is one cell wide, segments are cut here instead.
    """
    kept, x = [], 0
    for text, style, control in strip:
        if len(text) != cell_len(text):
            return strip.crop(first, last)
        start, end = max(first - x, 0), last - x
        if start < len(text) and end > 0:
            kept.append(Segment(text[start:end], style, control))
        x += len(text)
    return Strip(kept, max(min(last, x) - first, 0))


class CroppedCompositor(Compositor):
    """Textual's compositor, with ``CroppedUpdate`` for partial updates."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """Return the changes since the last update, None if there are none."""
        update = super().render_partial_update()
        return None if update is None else CroppedUpdate(update.chops, update.spans, update.chop_ends)
