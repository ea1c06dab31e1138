"""Figures in the terminal, where it can show pictures: kitty's way or sixel. The app stands aside meanwhile."""

import sys
import termios
import tty
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

KEYS = "space: next   b: back   q: close"


def figures_in(folder: Path) -> list[Path]:
    """The figures of an exports folder, by their numbers."""
    return sorted((folder / "figures").glob("*.png"), key=lambda path: (len(path.name), path.name))


def browse(pictures: Sequence[Path]) -> str | None:
    """Show ``pictures`` one by one on the terminal, which nobody else uses now; why that cannot be done, if it cannot.

    textual-image asks the terminal what it can when it is imported, so that has to happen here.
    """
    try:
        from textual_image.renderable import Image, SixelImage, TGPImage
    except ImportError:
        return "textual-image is not installed: pip install 'lmconsole[pictures]' shows figures here."
    if Image not in (SixelImage, TGPImage):
        return "This terminal shows no pictures (kitty and sixel are known)."
    console = Console(file=sys.__stdout__, highlight=False, markup=False)
    at = 0
    while 0 <= at < len(pictures):
        console.clear()
        console.print(f"{pictures[at].name}  ({at + 1} of {len(pictures)})   {KEYS}", style="dim")
        try:
            console.print(Image(pictures[at], width="100%", height="auto"))
        except OSError as error:
            console.print(f"{pictures[at]}: cannot be shown: {error}")
        key = _key()
        if key in "q\x1b\x03":
            break
        at = max(at - 1, 0) if key == "b" else at + 1
    console.clear()
    return None


def _key() -> str:
    """One key press, without waiting for a whole line."""
    assert sys.__stdin__ is not None
    descriptor = sys.__stdin__.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        return sys.__stdin__.read(1) or "q"
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
