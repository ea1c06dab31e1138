"""Blocks that a report consists of, before it is written in a format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmconsole.report.figure_content import FigureSpec
from lmconsole.report.table import Table


@dataclass(frozen=True, slots=True)
class Heading:
    """Heading of level 1, a section, or 2."""

    level: Literal[1, 2]
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Paragraph with an optional bold lead-in."""

    text: str
    lead: str = ""


@dataclass(frozen=True, slots=True)
class BulletList:
    """List of sentences, or of code."""

    items: Sequence[str]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """Command line for a shell."""

    text: str


@dataclass(frozen=True, slots=True)
class NumberedTable:
    """Table with a caption, which has its own file ``name``."""

    name: str
    table: Table


@dataclass(frozen=True, slots=True)
class InlineTable:
    """Table in the text, without a caption."""

    table: Table
    small: bool = False
    """Whether it is a detail, in small type."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure, or two side by side."""

    figures: Sequence[FigureSpec]


Block = Heading | Paragraph | BulletList | Command | NumberedTable | InlineTable | FigureRow
