"""Characters and palettes, for terminals with and without Unicode."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from lmconsole.tui.plot.glyphs import (
    ANSI_PALETTE,
    ASCII,
    DARK_PALETTE,
    PALETTE,
    UNICODE,
    AsciiFilter,
    Glyphs,
    bar,
    locale_is_utf8,
    sparkline,
)


@pytest.mark.parametrize(
    ("environment", "utf8"),
    [
        ({"LC_ALL": "C.UTF-8"}, True),
        ({"LC_ALL": "de_DE.utf8"}, True),
        ({"LANG": "en_GB.UTF-8"}, True),
        ({"LC_CTYPE": "en_US.UTF-8", "LANG": "C"}, True),
        ({"LC_ALL": "C"}, False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        ({"LC_ALL": "POSIX"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "en_US.UTF-8"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "de_DE"}, False),
        ({}, False),
    ],
)
def test_the_first_variable_that_is_set_decides(environment: Mapping[str, str], utf8: bool) -> None:
    assert locale_is_utf8(environment) is utf8


SCRIPT = """
import os
os.environ["LC_ALL"] = "C.UTF-8"
from lmconsole.tui.plot.glyphs import locale_is_utf8
print(locale_is_utf8())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the initial environment")
@pytest.mark.parametrize(("locale", "utf8"), [("C", "False"), ("C.UTF-8", "True")])
def test_the_locale_at_the_start_of_the_process_counts(locale: str, utf8: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | {"LC_ALL": locale}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == utf8


def everything(glyphs: Glyphs) -> str:
    """Return every character of ``glyphs``."""
    names: tuple[str, ...] = ("markers", "train", "published", "diverged", "cursor", "spark", "bar")
    names += ("checked", "unchecked", "folded", "unfolded", "child")
    return "".join(getattr(glyphs, name) for name in names)


def test_ascii_glyphs_are_ascii() -> None:
    assert everything(ASCII).isascii()


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_every_character_takes_one_cell(glyphs: Glyphs) -> None:
    assert all(cell_len(character) == 1 for character in everything(glyphs))


@pytest.mark.parametrize("palette", [PALETTE, DARK_PALETTE, ANSI_PALETTE])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_twelve_curves_differ_by_marker_alone_and_twenty_four_by_marker_and_color(
    glyphs: Glyphs, palette: tuple[str, ...]
) -> None:
    assert len(set(glyphs.markers)) == len(glyphs.markers) == 12
    looks = {(glyphs.markers[slot % len(glyphs.markers)], palette[slot % len(palette)]) for slot in range(24)}
    assert len(looks) == 24


def test_the_filter_replaces_each_character_outside_ascii_by_one() -> None:
    every = "".join(map(chr, range(0x20, 0x3000))) + everything(UNICODE)
    kept, plain, known = AsciiFilter().apply([Segment("abc"), Segment(every), Segment("5 – 6 …")], Color(0, 0, 0))
    assert kept.text == "abc"
    assert plain.text.isascii()
    assert len(plain.text) == len(every)
    assert known.text == "5 - 6 ."


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([3.0], "▁"), ([3.0, 3.0], "▁▁"), ([8.0, 4.5, 1.0], "█▅▁"), ([1.0, 8.0], "▁█")]
)
def test_sparklines_span_the_lowest_to_the_highest(values: list[float], line: str) -> None:
    assert sparkline(values, 10, UNICODE) == line


def test_a_sparkline_shows_the_newest_values() -> None:
    assert sparkline([100.0, *map(float, range(8))], 8, UNICODE) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 4.0, 3.0, 2.0, 1.0], 5, ASCII) == "#*-._"


@pytest.mark.parametrize(
    ("share", "filled"),
    [(0.0, ""), (0.5, "█████"), (0.55, "█████▌"), (1.0, "██████████"), (7.0, "██████████"), (-1.0, "")],
)
def test_bars_are_exact_to_an_eighth_of_a_cell(share: float, filled: str) -> None:
    assert bar(share, 10, UNICODE) == filled


def test_a_bar_without_unicode_is_rounded_to_cells() -> None:
    assert [bar(share, 10, ASCII) for share in (0.0, 0.04, 0.06, 0.5, 1.0)] == ["", "", "#", "#####", "##########"]
