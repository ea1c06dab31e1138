"""Characters for terminals with and without Unicode, and color-blind-safe palettes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

from lmconsole.formatting import DAMAGE_MARK

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b9a800", "#8c8c8c")
"""The color-blind-safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), with a darker yellow, and gray for
black, so that every color is visible on a light and on a dark background."""
DARK_PALETTE = ("#4aa3df", "#e69f00", "#1fbf92", "#cc79a7", "#8fd0f5", "#f0763a", "#f0e442", "#b8b8b8")
"""The same hues for a dark background."""
ANSI_PALETTE = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_yellow", "white")
"""Names among the 16 colors that every terminal has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyphs:
    """Characters to draw with. ``markers`` distinguish curves without color."""

    unicode: bool
    markers: str
    line: str
    train: str
    published: str
    diverged: str
    damaged: str
    noted: str
    band: str
    cursor: str
    spark: str
    bar: str
    checked: str
    unchecked: str
    folded: str
    unfolded: str
    child: str


UNICODE = Glyphs(
    unicode=True,
    markers="●■▲◆▼○□△◇▽★☆",
    line="braille",
    train="·",
    published="╌",
    diverged="✗",
    damaged=DAMAGE_MARK,
    noted="✎",
    band="░",
    cursor="│",
    spark="▁▂▃▄▅▆▇█",
    bar="█▉▊▋▌▍▎▏",
    checked="■",
    unchecked="□",
    folded="▸",
    unfolded="▾",
    child="└",
)
ASCII = Glyphs(
    unicode=False,
    markers="*o#x@+%&$=sz",
    line="",
    train=".",
    published="-",
    diverged="X",
    damaged="!",
    noted="*",
    band=":",
    cursor="|",
    spark="_.-=*#",
    bar="#",
    checked="x",
    unchecked=".",
    folded=">",
    unfolded="v",
    child="`",
)


def locale_is_utf8(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the user's locale is UTF-8.

    Python replaces a C locale with a UTF-8 one of its own, of which a terminal multiplexer knows nothing. So the
    environment with which this process was started decides.
    """
    variables = _initial_environment() if environment is None else environment
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if variables.get(name):
            return "utf8" in variables[name].lower().replace("-", "")
    return False


def _initial_environment() -> Mapping[str, str]:
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {name: value for name, _, value in pairs}


_ASCII_EQUIVALENTS = str.maketrans(
    {
        **dict.fromkeys("─━╌╍═▁▂▔▄▀╸╺", "-"),
        **dict.fromkeys("│┃║▌▐▎▊▏▕┆", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛╞╡╪", "+"),
        **dict.fromkeys("█▇▆▅▉▋▍■●⬤", "#"),
        **dict.fromkeys("▃░▒▓", ":"),
        "–": "-",
        "—": "-",
        "…": ".",
        "·": ".",
        "•": "*",
        "×": "x",
        "±": "~",
        "≤": "<",
        "≥": ">",
        "°": " ",
        "↑": "^",
        "↓": "v",
        "←": "<",
        "→": ">",
        "▸": ">",
        "▾": "v",
        "▶": ">",
        "▼": "v",
        "▲": "^",
        "⭘": "o",
        "†": "+",
        "✓": "v",
        "✗": "x",
        "’": "'",
        "“": '"',
        "”": '"',
    }
)


class AsciiFilter(LineFilter):
    """Replaces every character outside ASCII on the whole screen."""

    def apply(self, segments: list[Segment], _background: Color) -> list[Segment]:
        """Return the segments in ASCII, as many cells wide."""
        return [
            Segment(_ascii(segment.text), segment.style, segment.control) if not segment.text.isascii() else segment
            for segment in segments
        ]


def _ascii(text: str) -> str:
    return "".join(each if each.isascii() else "?" for each in text.translate(_ASCII_EQUIVALENTS))


def sparkline(values: list[float], width: int, glyphs: Glyphs) -> str:
    """Return the last ``width`` of ``values`` scaled from lowest to highest. Values must be finite."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(glyphs.spark) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(glyphs.spark[round((value - low) * scale)] for value in shown)


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """Return a bar over ``share`` (0 to 1) of ``width`` cells, to an eighth of a cell with Unicode."""
    cells = max(0.0, min(share, 1.0)) * width
    full = int(cells)
    if not glyphs.unicode:
        return "#" * round(cells)
    eighth = int((cells - full) * 8)
    return "█" * full + (glyphs.bar[8 - eighth] if eighth else "")


def rich_style(color: str, *, bold: bool = False, dim: bool = False) -> Style:
    """Return a foreground style. An empty ``color`` is the terminal's default."""
    return Style.parse(f"{'bold ' if bold else ''}{'dim ' if dim else ''}{color}".strip() or "none")
