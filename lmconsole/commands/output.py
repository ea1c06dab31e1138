"""Output of commands: data on standard output, messages on standard error."""

import os
import sys
from typing import Any

import msgspec
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from lmconsole.errors import escape_control_characters
from lmconsole.runs.store import Store

MAX_WARNINGS = 20
"""Runs that cannot be read and are named."""
PIPE_WIDTH = 140
"""Columns of a table in a pipe or a file, which have no width of their own."""


def console(*, stderr: bool = False) -> Console:
    """Return a console that honors NO_COLOR, dumb terminals and pipes, and takes no text for markup."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def plain_table(**columns: JustifyMethod) -> Table:
    """Return an empty table with these columns, each with its alignment. ``_`` in a name is shown as a space."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for name, side in columns.items():
        table.add_column(name.replace("_", " "), justify=side, no_wrap=True)
    return table


def print_json(value: Any) -> None:
    """Print indented JSON on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_message(message: str) -> None:
    """Print a message on standard error, with control characters escaped."""
    print(escape_control_characters(message), file=sys.stderr)


def warn_about(store: Store) -> None:
    """Print a warning for each run directory that could not be read, up to ``MAX_WARNINGS``."""
    for name, problem in list(store.problems.items())[:MAX_WARNINGS]:
        print_message(f"warning: {name}: {problem}")
    if len(store.problems) > MAX_WARNINGS:
        print_message(f"warning: {len(store.problems) - MAX_WARNINGS:,} more runs cannot be read")
