"""Record the pictures of the README: a session with the console, from its first key to the finished demo.

    python docs/screenshot.py [--preset demo] [--only 1 5] [--theme lmconsole-light]

The console runs without a terminal: the script presses keys, the twelve experiments of the demo train, and each frame
is a screenshot made by Textual. Files written next to this one:

    console.svg   the last frame
    session.webp  all frames, drawn with Pillow in the monospace font of matplotlib
    figure.png    figure 2 of the session's exports
"""

import argparse
import asyncio
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from textual.app import App
    from textual.pilot import Pilot

HERE = Path(__file__).resolve().parent
SVG = "{http://www.w3.org/2000/svg}"
SIZE = (110, 36)
"""Columns and rows of the terminal."""
SVG_CELL = (12.2, 24.4)
"""Width and height of a cell in Textual's screenshots."""
CELL = (9, 18)
"""Width and height of a cell in the animation, in pixels."""
FONT_SIZE = 15
"""A character of DejaVu Sans Mono is then 9 pixels wide."""
EVERY_S = 2.0
"""Seconds of training between two frames."""
MOST_FRAMES = 60
"""Frames of training that are kept, evenly chosen."""
PLAYED_MS = 150
"""Display time of such a frame."""
READ_MS = 1600
"""Display time of a frame after a key."""
TIMEOUT_S = 1800
BRAILLE = 0x2800
BRAILLE_DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
"""Column and row of the dot of each bit of a Braille pattern."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A screenshot, its display time, and its caption."""

    svg: str
    shown_ms: int
    caption: str


class Recorder:
    """Press keys and keep screenshots."""

    def __init__(self, pilot: "Pilot[str]") -> None:
        self.frames: list[Frame] = []
        self._pilot = pilot
        self._app: App[str] = pilot.app

    async def take(self, caption: str, shown_ms: int = READ_MS) -> None:
        """Add a frame, or prolong the last one if nothing has changed."""
        await self._pilot.pause()
        svg = self._app.export_screenshot(title="lmconsole", simplify=True)
        if self.frames and (caption, cells_of(svg)) == (self.frames[-1].caption, cells_of(self.frames[-1].svg)):
            shown_ms += self.frames.pop().shown_ms
        self.frames.append(Frame(svg=svg, shown_ms=shown_ms, caption=caption))

    async def press(self, *keys: str, caption: str, wait_s: float = 1.0) -> None:
        """Press keys, give the console time to react, and take a frame."""
        await self._pilot.press(*keys)
        await self._pilot.pause(wait_s)
        await self.take(caption)


async def record(arguments: argparse.Namespace, folder: Path) -> list[Frame]:
    """Train the demo in ``folder`` from the console."""
    from lmconsole.plan.load import load_plan
    from lmconsole.runs.store import Store
    from lmconsole.tui.app import ConsoleApp
    from lmconsole.tui.options import ConsoleOptions

    store = Store(Path("runs"))
    exports = folder / "exports"
    options = ConsoleOptions(
        plan=load_plan(None), store=store.root, exports=exports, preset=arguments.preset, theme=arguments.theme
    )
    async with ConsoleApp(options).run_test(size=SIZE) as pilot:
        recorder = Recorder(pilot)
        await pilot.pause(1.0)
        await recorder.take("lmconsole --preset demo")
        if arguments.only:
            for number in arguments.only:
                await pilot.press("home", *["down"] * (number - 1), "space")
            await recorder.take("space  select")
        else:
            await recorder.press("a", caption="a  select all")
        await recorder.press("r", caption="r  run", wait_s=4.0)
        deadline = time.monotonic() + TIMEOUT_S
        before = len(recorder.frames)
        while any(run.status.active for run in store.runs()) or not any(exports.glob("figures/*.png")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the runs have not finished within {TIMEOUT_S} s")
            await pilot.pause(EVERY_S)
            await recorder.take("training (time-lapse)", PLAYED_MS)
        training = recorder.frames[before:]
        step = max(1, math.ceil(len(training) / MOST_FRAMES))
        recorder.frames[before:] = training[::-step][::-1]
        await pilot.pause(8.0)  # until the notification of the exports has gone
        await recorder.take("all runs finished, and the report is in exports/")
        await recorder.press("c", caption="c  compare")
        await recorder.press("escape", caption="escape  back")
        if not arguments.only:
            await pilot.press("a")
            for number in (1, 5, 9, 11):
                await pilot.press("home", *["down"] * (number - 1), "space")
        await pilot.pause(2.0)
        await recorder.take("space  choose the curves to compare")
        return recorder.frames


@cache
def font(*, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSansMono-Bold.ttf" if bold else "DejaVuSansMono.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, FONT_SIZE)


def elements(svg: str) -> Iterator[ElementTree.Element]:
    """Yield the rectangles and texts of a screenshot in drawing order."""
    (cells,) = (g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("transform") == "translate(9, 41)")
    yield from cells.iter()


def styles_of(svg: str) -> dict[str, tuple[str, bool]]:
    """Return color and boldness of each class of the style sheet."""
    found = {}
    for rule in ElementTree.fromstring(svg).findtext(f"{SVG}style", "").split("}"):
        name, _, body = rule.partition("{")
        if "fill: " in body:
            found[name.strip()[1:]] = (body.split("fill: ")[1].split(";")[0].strip(), "bold" in body)
    return found


def cells_of(svg: str) -> list[tuple[str | None, ...]]:
    """Return the content of a screenshot, without class names, which differ between equal screenshots."""
    styles = styles_of(svg)
    return [
        (each.text, each.get("x"), each.get("y"), each.get("fill"), str(styles.get(each.get("class", ""))))
        for each in elements(svg)
        if each.tag in (f"{SVG}rect", f"{SVG}text")
    ]


def draw_character(pen: ImageDraw.ImageDraw, x: int, y: int, character: str, color: str, *, bold: bool) -> None:
    """Draw a character into the cell at ``x`` and ``y``. The font has no Braille patterns, so their dots are drawn."""
    dots = ord(character) - BRAILLE
    if not 0 <= dots < 256:
        pen.text((x, y + 1), character, fill=color, font=font(bold=bold))
        return
    for bit, (column, row) in enumerate(BRAILLE_DOTS):
        if dots >> bit & 1:
            left, top = x + 1 + 4 * column, y + 1 + 4 * row
            pen.rectangle((left, top, left + 1, top + 1), fill=color)


def draw(frame: Frame) -> Image.Image:
    """Draw a frame with its caption."""
    background = next(
        e.get("fill", "#000000") for e in ElementTree.fromstring(frame.svg).iter(f"{SVG}rect") if e.get("fill")
    )
    columns, rows = SIZE
    image = Image.new("RGB", ((columns + 2) * CELL[0], (rows + 3) * CELL[1]), background)
    pen = ImageDraw.Draw(image)
    styles = styles_of(frame.svg)

    def place(element: ElementTree.Element, offset: float) -> tuple[int, int]:
        column = round(float(element.get("x", 0)) / SVG_CELL[0])
        row = round((float(element.get("y", 0)) - offset) / SVG_CELL[1])
        return (column + 1) * CELL[0], row * CELL[1] + CELL[1] // 2

    for element in elements(frame.svg):
        if element.tag == f"{SVG}rect":
            x, y = place(element, 1.5)
            width = round(float(element.get("width", 0)) / SVG_CELL[0]) * CELL[0]
            height = round(float(element.get("height", 0)) / SVG_CELL[1]) * CELL[1]
            pen.rectangle((x, y, x + width - 1, y + height - 1), fill=element.get("fill"))
        elif element.tag == f"{SVG}text" and element.text:
            color, bold = styles[element.get("class", "")]
            x, y = place(element, 18.5)
            for column, character in enumerate(element.text):
                if not character.isspace():
                    draw_character(pen, x + column * CELL[0], y, character, color, bold=bold)
    y = (rows + 1) * CELL[1] + 2
    pen.text((image.width // 2, y), frame.caption, fill="#c9d1d9", font=font(bold=True), anchor="ma")
    return image


def write_animation(frames: list[Frame], path: Path) -> None:
    """Write a lossless animation, which stores only what changes between frames."""
    first, *others = [draw(frame) for frame in frames]
    times = [frame.shown_ms for frame in frames]
    times[-1] += READ_MS
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, lossless=True, quality=100, method=4)


def main() -> None:
    """Record with default settings instead of the user's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--only", nargs="*", type=int, default=[], metavar="ID", help="experiments, in place of all")
    parser.add_argument("--theme", default="lmconsole-dark")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmconsole-") as folder:
        os.environ |= {"XDG_CONFIG_HOME": folder, "LC_ALL": "C.UTF-8", "TEXTUAL_COLOR_SYSTEM": "truecolor"}
        for name in ("NO_COLOR", "LMCONSOLE_RUNS", "LMCONSOLE_DATA"):
            os.environ.pop(name, None)
        os.chdir(folder)
        frames = asyncio.run(record(arguments, Path(folder)))
        figure = Path(folder) / "exports" / "figures" / "figure-2.png"
        if figure.exists():
            shutil.copyfile(figure, HERE / "figure.png")
    (HERE / "console.svg").write_text(frames[-1].svg, encoding="utf-8")
    write_animation(frames, HERE / "session.webp")
    for name in ("console.svg", "session.webp"):
        print(f"{HERE / name}: {(HERE / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
