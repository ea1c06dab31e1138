"""Partial updates contain exactly the cells that look different."""

import io
import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from lmconsole.tui.terminal.compositor import CroppedUpdate, SentCells

RED, BOLD = Style(color="red"), Style(bold=True)
STYLES = (RED, BOLD, Style.null(), Style(color="red", bgcolor="blue", bold=True), Style(underline=True, dim=True))
STRIPS = st.lists(
    st.tuples(st.text("ab ▁█⠿語é", min_size=1, max_size=6), st.sampled_from(STYLES)), min_size=1, max_size=5
)
CONSOLE = Console(file=io.StringIO(), color_system="standard", force_terminal=True)
_SEQUENCE = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|([^\x1b])", re.DOTALL)


class Screen:
    """A terminal that understands the sequences of an update."""

    def __init__(self) -> None:
        self.sent = SentCells()
        self.cells: dict[int, tuple[str, str]] = {}
        """Character and style of each column of the first row."""
        self.received = ""

    def show(self, strip: Strip, x1: int, x2: int, at: int = 0) -> None:
        """Send a strip at column ``at`` of which the columns from ``x1`` up to ``x2`` may have changed."""
        update = CroppedUpdate([{at: strip}], [(0, x1, x2)], [[at + strip.cell_length]])
        update.sent = self.sent
        self.received = update.render_segments(CONSOLE)
        column, codes = -1, list[str]()
        for numbers, letter, character in _SEQUENCE.findall(self.received):
            if letter == "m":
                codes = _changed(codes, numbers)
            elif letter:
                column = int(numbers.rpartition(";")[2]) - 1
            else:
                self.cells[column] = (character, ";".join(codes))
                column += cell_len(character)
        assert codes == [], "ends without a style"

    @property
    def text(self) -> str:
        """The text that was received last."""
        return re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", self.received)


def _changed(codes: list[str], numbers: str) -> list[str]:
    """Return the codes in force after a sequence, sorted."""
    for code in numbers.split(";"):
        if code == "0":
            codes = []
        elif code == "22":
            codes = [each for each in codes if each not in ("1", "2")]
        elif len(code) == 2:  # a color, of which only one of a kind is in force
            codes = [each for each in codes if each[0] != code[0] or len(each) == 1]
            codes += [] if code[1] == "9" else [code]
        else:
            codes = [*codes, code]
    return sorted(set(codes))


def expected(strip: Strip) -> list[tuple[str, str]]:
    """Return the cells of a strip; the right half of a wide character is missing."""
    cells = []
    for text, style, _ in strip:
        codes = Strip.render_ansi(style or Style.null(), ColorSystem.STANDARD)
        for character in text:
            cells += [(character, ";".join(sorted(filter(None, codes.split(";")))))]
            cells += [("", "")] * (cell_len(character) - 1)
    return cells


def look(cell: tuple[str, str]) -> tuple[str, str]:
    """Return a cell as a person sees it: the color and the weight of a space are invisible, unless it is underlined."""
    character, codes = cell
    if character == " " and "4" not in codes.split(";"):
        return character, ";".join(code for code in codes.split(";") if code.startswith("4"))
    return cell


@given(st.lists(STRIPS, min_size=1, max_size=4), st.integers(0, 9))
def test_the_terminal_shows_the_strip_after_each_update(frames: Sequence[list[tuple[str, Style]]], at: int) -> None:
    screen = Screen()
    for parts in frames:
        strip = Strip([Segment(*part) for part in parts])
        screen.show(strip, at, at + strip.cell_length, at)
        for column, cell in enumerate(expected(strip), at):
            if cell[0]:
                assert look(screen.cells[column]) == look(cell), (column, screen.received)


@given(STRIPS, st.integers(0, 30), st.integers(1, 30), st.integers(0, 9))
def test_nothing_outside_of_the_changed_stretch_is_sent(
    parts: list[tuple[str, Style]], first: int, length: int, at: int
) -> None:
    strip = Strip([Segment(*part) for part in parts])
    first, last = min(first, strip.cell_length), min(first + length, strip.cell_length)
    if last <= first:
        return
    screen = Screen()
    screen.show(strip, at + first, at + last, at)
    assert screen.received.startswith("\x1b[1;")
    wide = any(not cell for cell, _ in expected(strip))  # the other half of a wide character is sent as well
    assert at + first - wide <= min(screen.cells) <= max(screen.cells) < at + last
    screen.show(strip, at + first, at + last, at)
    assert screen.received == "", "nothing has changed"
    screen.sent.forget()
    screen.show(strip, at + first, at + last, at)
    assert screen.received


def test_only_cells_that_look_different_are_sent_and_styles_only_where_they_change() -> None:
    screen = Screen()
    screen.show(Strip([Segment("step 107 of 576", RED), Segment("  3:02 left", BOLD)]), 0, 26)
    screen.show(Strip([Segment("step 108 of 576", RED), Segment("  3:02 left", BOLD)]), 0, 26)
    assert screen.received == "\x1b[1;8H\x1b[31m8\x1b[0m"
    screen.show(Strip([Segment("step 208 of 576", RED), Segment("  3:01 left", BOLD)]), 0, 26)
    assert screen.received == "\x1b[1;6H\x1b[31m2\x1b[21G\x1b[1;39m1\x1b[0m"


def test_unchanged_cells_are_not_sent() -> None:
    screen = Screen()
    screen.show(Strip([Segment("left "), Segment("old", RED), Segment(" right")]), 5, 8)
    assert screen.text == "old"


def test_cropping_changing_numbers_fills_no_cache() -> None:
    before = Segment._split_cells.cache_info().currsize
    for number in range(300):
        Screen().show(Strip([Segment(f"a number: {number}")]), 3, 12)
    assert Segment._split_cells.cache_info().currsize == before
