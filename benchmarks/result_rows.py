"""Rows of the table that ``run.py`` prints."""

import os
from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 150
"""Columns of the table if the output is not a terminal and ``COLUMNS`` is not set."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement and its goal."""

    what: str
    measured: str
    goal: str | None = None
    met: bool | None = None
    """None where no goal applies."""


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in ("What", "Measured", "Goal", "Met"):
        table.add_column(name, no_wrap=name != "Measured")
    answers = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "–"}
    for row in rows:
        table.add_row(row.what, row.measured, row.goal or "–", answers[row.met])
    console.print()
    console.print(table)
