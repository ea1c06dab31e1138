"""Partial updates of the screen that send the changed cells alone.

Textual 8 repaints a changed stretch from the left edge of its widget on (``ChopsUpdate`` crops to the right end only),
and ends every segment with a reset, same style or not. Over SSH that is most of the traffic of a table whose last
columns change.
"""

from rich.console import Console
from textual._compositor import ChopsUpdate, Compositor


class CroppedUpdate(ChopsUpdate):
    """Changed stretches, each from its first to its last cell."""

    def render_segments(self, console: Console) -> str:
        """What to write to the terminal."""
        written: list[str] = []
        for y, x1, x2 in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                first, last = max(x, x1), min(end, x2)
                shown = strip.crop(first - x, last - x).simplify()
                written.append(f"\x1b[{y + 1};{first + 1}H{shown.render(console)}")
        return "".join(written)


class FrugalCompositor(Compositor):
    """Textual's compositor with ``CroppedUpdate`` for partial updates."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """The update for what has changed since the last one."""
        update = super().render_partial_update()
        return None if update is None else CroppedUpdate(update.chops, update.spans, update.chop_ends)
