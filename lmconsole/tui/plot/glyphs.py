"""Characters for terminals that show Unicode and for those that do not, and colours that most eyes can tell apart."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b9a800", "#8c8c8c")
"""Okabe and Ito's colours for the colour-blind (https://jfly.uni-koeln.de/color/), the yellow darker and grey for
black, so that each shows on light and on dark."""
DARK_PALETTE = ("#4aa3df", "#e69f00", "#1fbf92", "#cc79a7", "#8fd0f5", "#f0763a", "#f0e442", "#b8b8b8")
"""The same hues for a dark background."""
ANSI_PALETTE = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_yellow", "white")
"""Of the 16 colours that every terminal has."""


@dataclass(frozen=True)
class Glyphs:
    """How things are drawn. ``markers`` tell curves apart where colours do not."""

    unicode: bool
    markers: str
    line: str
    train: str
    published: str
    off_scale: str
    diverged: str
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
    off_scale="↑",
    diverged="✗",
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
    off_scale="^",
    diverged="X",
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
    """Whether the person's locale is a UTF-8 one. Python itself overrides a C locale with a UTF-8 one of its own, which
    a terminal multiplexer knows nothing of: what counts is the environment that this process was started with."""
    given = _initial_environment() if environment is None else environment
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if given.get(name):
            return "utf8" in given[name].lower().replace("-", "")
    return False


def _initial_environment() -> Mapping[str, str]:
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {name: value for name, _, value in pairs}


_PLAIN = str.maketrans(
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


class PlainCharacters(LineFilter):
    """Replaces what a terminal without Unicode cannot show, on the whole screen."""

    def apply(self, segments: list[Segment], _background: Color) -> list[Segment]:
        """The same line in ASCII."""
        return [
            Segment(_plain(segment.text), segment.style, segment.control) if not segment.text.isascii() else segment
            for segment in segments
        ]


def _plain(text: str) -> str:
    return "".join(each if each.isascii() else "?" for each in text.translate(_PLAIN))


def sparkline(values: list[float], width: int, glyphs: Glyphs) -> str:
    """The last ``width`` of ``values``, lowest to highest; a flat line for equal ones. Values must be finite."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(glyphs.spark) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(glyphs.spark[round((value - low) * scale)] for value in shown)


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """``share`` (0 to 1) of ``width`` cells, to an eighth of a cell where Unicode is shown."""
    cells = max(0.0, min(share, 1.0)) * width
    full = int(cells)
    if not glyphs.unicode:
        return "#" * round(cells)
    eighth = int((cells - full) * 8)
    return "█" * full + (glyphs.bar[8 - eighth] if eighth else "")


def rich_style(colour: str, *, bold: bool = False, dim: bool = False) -> Style:
    """A foreground style; empty ``colour`` is the terminal's own."""
    return Style.parse(f"{'bold ' if bold else ''}{'dim ' if dim else ''}{colour}".strip() or "none")
