"""Partial updates contain exactly the changed cells."""

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from lmconsole.tui.terminal.compositor import CroppedUpdate

RED, BOLD = Style(color="red"), Style(bold=True)
STRIPS = st.lists(
    st.tuples(st.text("ab ▁█⠿語é", min_size=1, max_size=6), st.sampled_from([RED, BOLD, Style.null()])),
    min_size=1,
    max_size=5,
)


def written(strip: Strip, x1: int, x2: int, at: int = 0) -> str:
    """Return the output for a strip at column ``at`` of which the columns from ``x1`` up to ``x2`` have changed."""
    update = CroppedUpdate([{at: strip}], [(0, x1, x2)], [[at + strip.cell_length]])
    return update.render_segments(Console(file=io.StringIO(), color_system="standard", force_terminal=True))


def text(data: str) -> str:
    """Return the text without escape sequences."""
    return re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", data)


@given(STRIPS, st.integers(0, 30), st.integers(1, 30), st.integers(0, 9))
def test_an_update_is_the_cropped_strip(parts: list[tuple[str, Style]], first: int, length: int, at: int) -> None:
    strip = Strip([Segment(*part) for part in parts])
    first, last = min(first, strip.cell_length), min(first + length, strip.cell_length)
    if last <= first:
        return
    data = written(strip, at + first, at + last, at)
    assert data.startswith(f"\x1b[1;{at + first + 1}H")
    expected = strip.crop(first, last)
    assert text(data) == expected.text
    console = Console(file=io.StringIO(), color_system="standard", force_terminal=True)
    assert data.partition("H")[2] == expected.simplify().render(console), "colors and weights too"


def test_unchanged_cells_are_not_sent() -> None:
    data = written(Strip([Segment("left "), Segment("old", RED), Segment(" right")]), 5, 8)
    assert text(data) == "old"


def test_cropping_changing_numbers_fills_no_cache() -> None:
    before = Segment._split_cells.cache_info().currsize
    for number in range(300):
        written(Strip([Segment(f"a number: {number}")]), 3, 12)
    assert Segment._split_cells.cache_info().currsize == before
