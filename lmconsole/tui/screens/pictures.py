"""Figures in terminals that show images, by kitty's protocol or sixel. The app is suspended meanwhile."""

import sys
import termios
import tty
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

KEYS = "space: next   b: back   q: close"


def figures_in(folder: Path) -> list[Path]:
    """Return the figures of an exports folder in the order of their numbers."""
    return sorted((folder / "figures").glob("*.png"), key=lambda path: (len(path.name), path.name))


def browse(pictures: Sequence[Path]) -> str | None:
    """Show ``pictures`` one by one on the terminal. Return the reason if that is not possible.

    textual-image queries the terminal when it is imported, so it is imported here, while the app is suspended.
    """
    try:
        from textual_image.renderable import Image, SixelImage, TGPImage
    except ImportError:
        return (
            "textual-image is not installed. To see figures here, install it into the environment of lmconsole, for "
            "example: uv tool install '.[pictures]'"
        )
    if Image not in (SixelImage, TGPImage):
        return "This terminal shows no images. Use one that supports kitty's protocol or sixel."
    console = Console(file=sys.__stdout__, highlight=False, markup=False)
    index = 0
    while index < len(pictures):
        console.clear()
        console.print(f"{pictures[index].name}  ({index + 1} of {len(pictures)})   {KEYS}", style="dim")
        try:
            console.print(Image(pictures[index], width="100%", height="auto"))
        except OSError as error:
            console.print(f"{pictures[index]}: cannot be shown: {error}")
        key = _key()
        if key in "q\x1b\x03":
            break
        index = max(index - 1, 0) if key == "b" else index + 1
    console.clear()
    return None


def _key() -> str:
    """Return one key press without waiting for the end of a line."""
    assert sys.__stdin__ is not None
    descriptor = sys.__stdin__.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        return sys.__stdin__.read(1) or "q"
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
