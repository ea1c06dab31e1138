"""Figures in the terminal: in a terminal played by the test, and in a real xterm on a display without a screen."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import kill_and_wait, wait_until
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageGrab
from textual_image._sixel import image_to_sixels

from lmconsole.tui.screens.pictures import COLOR, OTHER_LINES, PictureSpace, colors_first, figures_in

BROWSE = """
import sys
from pathlib import Path
from lmconsole.tui.screens.pictures import browse
print("outcome:", browse([Path(name) for name in sys.argv[1:]]), flush=True)
"""
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 120))
PIXELS = st.tuples(st.integers(1, 4_000), st.integers(1, 4_000))
RASTER = re.compile(rb'q"1;1;(\d+);(\d+)')
FRAME = (220, 20, 20)


@given(SIZES, st.tuples(st.integers(1, 40), st.integers(1, 80)), st.none() | PIXELS, PIXELS)
def test_a_picture_fits_what_the_terminal_can_show(
    cells: tuple[int, int], cell: tuple[int, int], largest: tuple[int, int] | None, picture: tuple[int, int]
) -> None:
    columns, rows = PictureSpace(cells=cells, cell=cell, largest=largest).fit(picture)
    width, height = columns * cell[0], rows * cell[1]
    assert 1 <= columns <= cells[0]
    assert 1 <= rows <= max(cells[1] - OTHER_LINES, 1)
    if largest is not None:
        assert width <= max(largest[0], cell[0])
        assert height <= max(largest[1], cell[1])
    if columns > 1 and rows > 1:
        scale = min((width + cell[0]) / picture[0], (height + cell[1]) / picture[1])
        assert width <= picture[0] * scale + cell[0]
        assert height <= picture[1] * scale + cell[1], "in its proportions, up to a cell"


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_all_colors_are_defined_before_the_first_pixel(size: int, seed: int) -> None:
    image = Image.effect_noise((size, size), 50 + seed % 50).convert("RGB")
    sixels = image_to_sixels(image)
    changed = colors_first(sixels)
    definitions = COLOR.findall(sixels)
    assert COLOR.findall(changed) == definitions
    start = COLOR.search(changed)
    assert start is not None
    *_, last = COLOR.finditer(changed)
    assert last.end() - start.start() == sum(len(each.group()) for each in COLOR.finditer(sixels)), "one after another"
    assert COLOR.sub("", changed) == COLOR.sub(r"#\1", sixels), "and nothing else has changed"


def test_what_is_no_sixel_picture_stays_as_it_is() -> None:
    assert colors_first("\x1b7 text #1") == "\x1b7 text #1"


def test_figures_are_shown_as_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    expected = ["overview.png", "figure-1.png", "figure-9.png", "figure-10.png"]
    for name in (*expected, "figure-1.pdf", "captions.md"):
        (tmp_path / "figures" / name).touch()
    assert [path.name for path in figures_in(tmp_path)] == expected


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Save a picture of many colors in a red frame, of the size of a figure."""
    image = Image.new("RGBA", (2100, 1302), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 2099, 1301), outline=FRAME, width=30)
    for x in range(600):
        draw.line((700 + x, 500, 700 + x, 900), fill=(x // 3, 255 - x // 3, (x * 7) % 256))
    image.save(tmp_path / "figure-1.png")
    return tmp_path / "figure-1.png"


class Terminal:
    """A pty on which figures are shown, answered by the test."""

    def __init__(self, *pictures: Path, answer: Callable[[bytes], bytes]) -> None:
        self.leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (40, 130))
        self._answer = answer
        self.seen = b""
        command = [sys.executable, "-c", BROWSE, *map(str, pictures)]
        self.process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, text=True)
        os.close(follower)

    def shows(self, words: bytes, start: int = 0) -> int:
        """Wait until ``words`` have been printed after byte ``start``, and return how much has been."""
        deadline = time.monotonic() + 20.0
        while words not in self.seen[start:]:
            assert time.monotonic() < deadline, self.seen[start:][-500:]
            if select.select([self.leader], [], [], 0.1)[0]:
                data = os.read(self.leader, 65_536)
                self.seen += data
                if answer := self._answer(data):
                    os.write(self.leader, answer)
        return len(self.seen)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.leader, keys)


@contextmanager
def terminal(*pictures: Path, answer: Callable[[bytes], bytes]) -> Iterator[Terminal]:
    """Show ``pictures`` on a terminal."""
    opened = Terminal(*pictures, answer=answer)
    try:
        yield opened
    finally:
        kill_and_wait(opened.process)
        os.close(opened.leader)


def answers(
    delay_s: float = 0.0, *, geometry: bytes = b"1000;1000", attributes: bytes = b"63;4"
) -> Callable[[bytes], bytes]:
    """Return the answers of a terminal with cells of 10 × 20 pixels."""

    def answer(output: bytes) -> bytes:
        found = b"\x1b[?%bc" % attributes if b"\x1b[c" in output else b""
        if b"\x1b[?2;1;0S" in output:
            found += b"\x1b[?2;0;%bS" % geometry
        if b"\x1b[16t" in output:
            found += b"\x1b[6;20;10t"
        if b"\x1b[6n" in output:
            found += b"\x1b[1;1R"
        if found:
            time.sleep(delay_s)
        return found

    return answer


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_the_terminal_is_asked_how_large_a_picture_may_be(picture: Path, delay_s: float) -> None:
    """A terminal at the end of a slow connection answers late; nothing of it is taken for a key."""
    with terminal(picture, answer=answers(delay_s)) as shown:
        shown.shows(b"\x1b\\", shown.shows(b"figure-1.png") - 10)
        found = RASTER.search(shown.seen)
        assert found is not None
        assert found.groups() == (b"1000", b"620"), "130 columns of 10 pixels are more than it can show"
        shown.press(b"q")
        shown.shows(b"outcome: None")
        assert termios.tcgetattr(shown.leader)[3] & termios.ICANON


def test_keys_go_forward_and_back(picture: Path) -> None:
    other = picture.with_name("figure-2.png")
    shutil.copy(picture, other)
    broken = picture.with_name("figure-3.png")
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    with terminal(picture, other, broken, answer=answers(geometry=b"0;0", attributes=b"63;4;6")) as shown:
        at = shown.shows(b"\x1b\\", shown.shows(b"figure-1.png") - 10)
        for key, words in (
            (b" ", b"figure-2.png"),
            (b"b", b"figure-1.png"),
            (b"\x1b[C", b"figure-2.png"),
            (b"\x1b[D", b"figure-1.png"),
            (b" ", b"figure-2.png"),
            (b"\r", b"cannot be shown"),
        ):
            shown.press(key)
            at = shown.shows(words, at)
            if words != b"cannot be shown":
                at = shown.shows(b"\x1b\\", at - 10)
            shown.press(b"\x1b[6;20;10t")  # an answer that arrives late is no key
        shown.press(b"\x1b")
        shown.shows(b"outcome: None", at)


@pytest.mark.parametrize("attributes", [b"1;2", b"64;14", b""])
def test_a_terminal_without_pictures_gets_a_reason(picture: Path, attributes: bytes) -> None:
    with terminal(picture, answer=answers(attributes=attributes) if attributes else lambda _: b"") as shown:
        shown.shows(b"shows no images")


needs_xterm = pytest.mark.skipif(
    not all(map(shutil.which, ("xterm", "Xvfb"))), reason="needs xterm and Xvfb: `apt-get install xterm xvfb`"
)


@contextmanager
def xterm(columns: int, font: str, *pictures: Path) -> Iterator[Callable[[], Image.Image]]:
    """Show ``pictures`` in an xterm with default limits. Yield a function that takes a picture of the display."""
    from PIL import features

    if not features.check("xcb"):
        pytest.skip("needs a Pillow that can take pictures of an X display")
    server = subprocess.Popen(
        # a server that resets when its only client leaves would drop xterm if that has just connected
        ["Xvfb", "-displayfd", "1", "-noreset", "-screen", "0", "2400x1400x24", "-nolisten", "tcp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    display = f":{server.stdout.readline().strip()}"
    command = ["xterm", "-ti", "vt340", "-fn", font, "-geometry", f"{columns}x40"]
    shown = subprocess.Popen(
        [*command, "-e", sys.executable, "-c", BROWSE, *map(str, pictures)],
        env={**os.environ, "DISPLAY": display, "LC_ALL": "C.UTF-8"},
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield lambda: ImageGrab.grab(xdisplay=display).convert("RGB")
    finally:
        kill_and_wait(shown)
        server.terminate()  # killed, it would leave the lock of its display to the next server, and two could take it
        server.wait()
        server.stdout.close()


def frame_of(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the bounding box of what has the color of the frame."""
    red, green, blue = image.split()
    mask = red.point(lambda v: 255 * (v > 180))
    for channel in (green, blue):
        mask = Image.composite(mask, Image.new("L", image.size), channel.point(lambda v: 255 * (v < 70)))
    return mask.getbbox()


@needs_xterm
@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 100, 130, 230])
@pytest.mark.parametrize("font", ["fixed", "10x20"])
def test_a_real_xterm_shows_the_whole_picture_and_nothing_over_it(
    picture: Path, tmp_path: Path, columns: int, font: str
) -> None:
    with xterm(columns, font, picture) as display:
        box: list[tuple[int, int, int, int]] = []

        def whole() -> bool:
            found = frame_of(display())
            box[:] = [found] if found else []
            return found is not None and abs((found[2] - found[0]) / (found[3] - found[1]) - 2100 / 1302) < 0.1

        wait_until(whole)
        time.sleep(0.5)
        left, top, right, bottom = box[0]
        image = display()
        image.save(tmp_path / "display.png")
        assert right - left <= 1000, "xterm drops wider pictures"
        inside = image.crop((left + 30, top + 30, right - 30, top + (bottom - top) // 4))
        assert inside.getextrema() == ((255, 255),) * 3, "white, with no band over it"
