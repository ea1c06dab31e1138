"""Figures in terminals that show images, by kitty's protocol or sixel. The app is suspended meanwhile."""

import fcntl
import io
import os
import re
import select
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType

from lmconsole.errors import escape_control_characters
from lmconsole.extras import install_hint
from lmconsole.files import read_file

KEYS = "space: next   b: back   q: close"
QUESTIONS = "\x1b[c\x1b[?2;1;0S\x1b[16t\x1b[6n"
"""Queries for the attributes of the terminal, its largest sixel picture, the size of a cell, and the position of the
cursor. Every terminal answers the last one, and by then it has answered all others that it understands."""
ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]+)c")
SIXEL = "4"
"""The attribute of terminals that show sixel pictures."""
LARGEST_SIXELS = re.compile(r"\x1b\[\?2;0;([1-9]\d*);([1-9]\d*)S")
CELL_SIZE = re.compile(r"\x1b\[6;([1-9]\d*);([1-9]\d*)t")
CURSOR = re.compile(r"\x1b\[\d+;\d+R")
PATIENCE_S = 3.0
"""Time in which a terminal at the end of a slow connection answers."""
USUAL_CELL = (10, 20)
"""Width and height in pixels of a cell of the VT340, which textual-image assumes too where the size is unknown."""
OTHER_LINES = 2
"""Lines of the screen that a picture leaves free: that of the keys, and that of the cursor."""
COLOR = re.compile(r"#(\d+);2;\d+;\d+;\d+")
ANSWER = re.compile(r"\x1b\[[?\d;]+[A-Za-z]")
LEFT = "\x1b[D"
MAX_BYTES = 64 * 2**20

Pixels = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSpace:
    """Limits of the pictures that a terminal shows."""

    cells: tuple[int, int]
    """Columns and rows."""
    cell: Pixels
    """Width and height of a cell."""
    largest: Pixels | None = None
    """Largest picture that the terminal shows at all; None if it does not say."""

    def fit(self, picture: Pixels) -> tuple[int, int]:
        """Return the columns and rows in which a picture is shown whole and in its proportions."""
        (columns, rows), (cell_width, cell_height) = self.cells, self.cell
        width, height = columns * cell_width, (rows - OTHER_LINES) * cell_height
        if self.largest is not None:
            width, height = min(width, self.largest[0]), min(height, self.largest[1])
        scale = min(width / picture[0], height / picture[1])
        return max(int(picture[0] * scale / cell_width), 1), max(int(picture[1] * scale / cell_height), 1)


def figures_in(folder: Path) -> list[Path]:
    """Return the figures of an exports folder: the overview, then those with a number in their order."""
    found = (folder / "figures").glob("*.png")
    return sorted(found, key=lambda path: (path.name != "overview.png", len(path.name), path.name))


def browse(pictures: Sequence[Path]) -> str | None:
    """Show ``pictures`` one by one on the terminal. Return the reason if that is not possible.

    textual-image queries the terminal when it is imported, so it is imported here, while the app is suspended.
    """
    assert sys.__stdin__ is not None
    assert sys.__stdout__ is not None
    descriptor = sys.__stdin__.fileno()
    with _keys_unbuffered(descriptor):
        try:
            from textual_image.renderable import Image, TGPImage
        except ImportError:
            return f"To see figures here, install textual-image.\n{install_hint('pictures')}"
        answers = _ask(descriptor)
        sixel = any(SIXEL in attributes.split(";") for attributes in ATTRIBUTES.findall(answers))
        if not (sixel or Image is TGPImage):
            return "This terminal shows no images. Use one that supports kitty's protocol or sixel."
        console = Console(file=sys.__stdout__, highlight=False, markup=False)
        index = 0
        while index < len(pictures):
            console.clear()
            console.print(f"{pictures[index].name}  ({index + 1} of {len(pictures)})   {KEYS}", style="dim")
            try:
                _show(pictures[index], console, _space(descriptor, answers), sixel=sixel)
            except (OSError, ValueError) as error:
                console.print(escape_control_characters(f"{pictures[index]}: cannot be shown: {error}"))
            key = _key(descriptor)
            if key in ("", "q", "\x1b", "\x03"):
                break
            index = max(index - 1, 0) if key in ("b", LEFT) else index + 1
        console.clear()
    return None


def _show(path: Path, console: Console, space: PictureSpace, *, sixel: bool) -> None:
    """Draw a picture. Raises OSError or ValueError if it cannot be read."""
    from PIL import Image
    from textual_image.renderable import SixelImage, TGPImage

    try:
        with Image.open(io.BytesIO(read_file(path, MAX_BYTES, follow=True))) as image:
            on_white = Image.new("RGBA", image.size, "white")
            picture = Image.alpha_composite(on_white, image.convert("RGBA")).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    columns, rows = space.fit(picture.size)
    picture = picture.resize((columns * space.cell[0], rows * space.cell[1]), Image.Resampling.LANCZOS)
    if not sixel:
        console.print(TGPImage(picture, width=columns, height=rows))
        return
    for text in _texts(console, SixelImage(picture, width=columns, height=rows)):
        console.file.write(colors_first(text))
    console.file.flush()


def _texts(console: Console, renderable: RenderableType) -> Iterator[str]:
    for segment in console.render(renderable):
        yield segment.text


def colors_first(sixels: str) -> str:
    """Return ``sixels`` with all colors defined before the first pixel.

    A color that is defined later changes pixels that xterm has already drawn: a gray band over the top of the picture.
    """
    first = COLOR.search(sixels)
    if first is None:
        return sixels
    definitions = "".join(found.group() for found in COLOR.finditer(sixels))
    return sixels[: first.start()] + definitions + COLOR.sub(r"#\1", sixels[first.start() :])


def _space(descriptor: int, answers: str) -> PictureSpace:
    """Return the space that there is now, from the size of the window and the terminal's answers."""
    columns, rows = os.get_terminal_size(descriptor)
    *_, width, height = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    cell = (width // columns, height // rows) if columns and rows else (0, 0)
    if not all(cell):
        found = CELL_SIZE.search(answers)
        cell = (int(found.group(2)), int(found.group(1))) if found else USUAL_CELL
    largest = LARGEST_SIXELS.search(answers)
    return PictureSpace(
        cells=(columns or 80, rows or 24),
        cell=cell,
        largest=(int(largest.group(1)), int(largest.group(2))) if largest else None,
    )


def _ask(descriptor: int) -> str:
    """Return the terminal's answers to ``QUESTIONS``, and to those that it has not answered before."""
    assert sys.__stdout__ is not None
    sys.__stdout__.write(QUESTIONS)
    sys.__stdout__.flush()
    answers, deadline = "", time.monotonic() + PATIENCE_S
    while not CURSOR.search(answers) and select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        data = os.read(descriptor, 4_096)
        if not data:
            break
        answers += data.decode(errors="replace")
    return answers


@contextmanager
def _keys_unbuffered(descriptor: int) -> Iterator[None]:
    """Deliver keys without waiting for the end of a line, until the end of the block."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(descriptor: int) -> str:
    """Return one key press: a character or the escape sequence of a key; nothing if the terminal is gone.

    Answers of the terminal that arrive late are no key presses.
    """
    while True:
        try:
            data = os.read(descriptor, 64).decode(errors="replace")
        except OSError:
            return ""
        key = ANSWER.sub("", data)
        if key or not data:
            return key
