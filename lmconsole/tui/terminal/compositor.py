"""Partial updates of the screen that send only the cells that look different from what was last sent.

Textual 8 repaints a changed stretch from the left edge of its widget on (``ChopsUpdate`` crops to the right end only),
sends cells that look the same as before, and states both colors and a reset for every segment. Over SSH that is most of
the traffic of a table whose numbers change.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from textual.strip import Strip

from lmconsole.tui.terminal.textual_internals import ChopsUpdate, Compositor, LayoutUpdate

COLOR_SYSTEMS = {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}
MERGE_GAP = 4
"""Unchanged cells between two changed ones that are sent again, because to skip them takes as many bytes."""
WEIGHTS = frozenset({"1", "2"})
"""Attributes that one code ends without a change of the colors: bold and dim."""
INVISIBLE_ON_BLANKS = frozenset({"1", "2", "3"})
"""Attributes that do not change how a space looks: bold, dim, italic."""


class Look(NamedTuple):
    """Codes of a style: attributes, foreground and background; empty for the defaults of the terminal."""

    attributes: str = ""
    foreground: str = ""
    background: str = ""

    def code_after(self, before: "Look") -> str:
        """Return the sequence that changes the style ``before`` to this one."""
        if self == before:
            return ""
        codes = []
        if self.attributes != before.attributes:
            if WEIGHTS.issuperset(before.attributes.split(";")):
                codes.append("22")
            elif before.attributes:
                codes, before = ["0"], Look()
            codes += [self.attributes] if self.attributes else []
        if self.foreground != before.foreground:
            codes.append(self.foreground or "39")
        if self.background != before.background:
            codes.append(self.background or "49")
        return f"\x1b[{';'.join(codes)}m"


PLAIN = Look()
Cell = tuple[str, Look]
"""A character with its combining characters, and its look; the right half of a wide character is empty."""


@lru_cache(maxsize=1024)
def _look(style: Style, color_system: ColorSystem) -> Look:
    colors = [
        ";".join(color.downgrade(color_system).get_ansi_codes(foreground)) if color else ""
        for color, foreground in ((style.color, True), (style.bgcolor, False))
    ]
    return Look(Strip.render_ansi(style.without_color, color_system), *colors)


def _blank(look: Look) -> Look:
    """Return a look of which a space looks the same, and as many others as possible too."""
    if look.attributes and not INVISIBLE_ON_BLANKS.issuperset(look.attributes.split(";")):
        return look
    return Look(background=look.background)


def _cells(strip: Strip, color_system: ColorSystem) -> Iterator[Cell]:
    """Yield the cells of a strip. Links are left out."""
    for text, style, control in strip:
        if control:
            continue
        look = PLAIN if style is None else _look(style, color_system)
        if len(text) == cell_len(text):
            for character in text:
                yield character, _blank(look) if character == " " else look
            continue
        held = ""
        for character in text:
            width = cell_len(character)
            if width and held:
                yield from _wide(held, look)
                held = ""
            held += character
        if held:
            yield from _wide(held, look)


def _wide(text: str, look: Look) -> Iterator[Cell]:
    """Yield the cells of one character with its combining characters: none if it has no width."""
    for part in [text, *[""] * (cell_len(text) - 1)][: cell_len(text)]:
        yield part, look


class SentCells:
    """The cells of the screen as they were last sent, as far as they are known."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, Cell]] = {}

    def forget(self) -> None:
        """Take nothing for known, because something else was sent."""
        self._rows.clear()

    def changes(self, y: int, x: int, cells: list[Cell]) -> Iterator[tuple[int, list[Cell]]]:
        """Yield the columns and cells of the stretches to send for the ``cells`` from column ``x`` on, and remember
        them."""
        row = self._rows.setdefault(y, {})
        changed = [at for at, cell in enumerate(cells) if row.get(x + at) != cell]
        row.update(enumerate(cells, x))
        start = end = -1
        for at in changed:
            if start >= 0 and at - end > MERGE_GAP:
                yield x + start, cells[start:end]
                start = -1
            start, end = (at if start < 0 else start), at + 1
        if start >= 0:
            yield x + start, cells[start:end]


class CroppedUpdate(ChopsUpdate):
    """Changed stretches without the cells that the terminal already shows."""

    sent: SentCells

    def render_segments(self, console: Console) -> str:
        """Return the escape sequences and text to write to the terminal."""
        system = COLOR_SYSTEMS.get(console.color_system or "", ColorSystem.TRUECOLOR)
        written: list[str] = []
        look, row = PLAIN, -1
        for y, x1, x2 in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                if strip is None or x >= x2 or end <= x1:
                    continue
                first, last = max(x, x1), min(end, x2)
                cells = list(_cells(strip, system))
                while first > x and first - x < len(cells) and not cells[first - x][0]:
                    first -= 1  # the right half of a wide character
                for column, stretch in self.sent.changes(y, first, cells[first - x : last - x]):
                    written.append(f"\x1b[{column + 1}G" if y == row else f"\x1b[{y + 1};{column + 1}H")
                    row = y
                    for text, wanted in stretch:
                        if text == " " and _blank(look) == wanted:
                            written.append(text)
                            continue
                        written += wanted.code_after(look), text
                        look = wanted
        if look != PLAIN:
            written.append("\x1b[0m")
        return "".join(written)


class CroppedCompositor(Compositor):
    """Textual's compositor, with ``CroppedUpdate`` for partial updates."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = SentCells()

    def render_full_update(self, simplify: bool = False) -> LayoutUpdate:
        """Return the whole screen."""
        self.sent.forget()
        return super().render_full_update(simplify)

    def render_partial_update(self) -> ChopsUpdate | None:
        """Return the changes since the last update, None if there are none."""
        update = super().render_partial_update()
        if update is None:
            return None
        cropped = CroppedUpdate(update.chops, update.spans, update.chop_ends)
        cropped.sent = self.sent
        return cropped
