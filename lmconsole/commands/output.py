"""Output of commands: data on standard output, messages on standard error.

Nothing else in the commands writes to a stream, so that no name from a file can control the terminal.
"""

import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lmconsole.errors import escape_control_characters, escape_json
from lmconsole.runs.store import Store

MAX_WARNINGS = 20
"""Runs that cannot be read and are named."""
MANY_ROWS = 300
"""Rows of a table from which rich is too slow."""
PIPE_WIDTH = 140
"""Columns of a table in a pipe or a file, which have no width of their own."""
SIZES = ("COLUMNS", "LINES")
NARROWEST, WIDEST = 20, 10_000
"""Bounds of a size in these variables; other values, such as 0, are ignored."""


class _EscapingConsole(Console):
    """A console that escapes control characters in everything that is printed, whatever it is in."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_control_characters(segment.text))


def console(*, stderr: bool = False) -> Console:
    """Return a console that honors NO_COLOR, dumb terminals and pipes, takes no text for markup, and escapes control
    characters."""
    environment = {name: value for name, value in os.environ.items() if name not in SIZES or _is_size(value)}
    made = _EscapingConsole(
        stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False, _environ=environment
    )
    if not made.is_terminal and "COLUMNS" not in environment:
        made.width = PIPE_WIDTH
    return made


def _is_size(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,6}", text)) and NARROWEST <= int(text) <= WIDEST


def plain_table(**columns: JustifyMethod) -> Table:
    """Return an empty table with these columns, each with its alignment. ``_`` in a name is shown as a space."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for name, side in columns.items():
        table.add_column(name.replace("_", " "), justify=side, no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print a table of ``plain_table`` on standard output. One with more than ``MANY_ROWS`` rows has no colors, and its
    columns are as wide as they need to be: rich takes half a millisecond for each row."""
    out = console()
    if table.row_count <= MANY_ROWS:
        out.print(table)
        return
    columns = [[_plain(column.header), *map(_plain, column.cells)] for column in table.columns]
    widths = [max(map(cell_len, texts)) for texts in columns]
    padded = [
        [_pad(text, width, right=column.justify == "right") for text in texts]
        for column, texts, width in zip(table.columns, columns, widths, strict=True)
    ]
    header, *rows = ("  ".join(cells).rstrip() for cells in zip(*padded, strict=True))
    rule = ("-" if out.options.ascii_only else "─") * (sum(widths) + 2 * len(widths) - 2)
    print_data("\n".join([header, rule, *rows]))


def _pad(text: str, width: int, *, right: bool) -> str:
    spaces = " " * (width - cell_len(text))
    return spaces + text if right else text + spaces


def _plain(cell: RenderableType) -> str:
    """Return the text of a cell on one line."""
    return escape_control_characters(cell.plain if isinstance(cell, Text) else cell).replace("\n", " ")


def print_json(value: Any) -> None:
    """Print indented JSON on standard output."""
    _print_json(msgspec.json.format(_encode(value), indent=2))


def print_json_line(value: Any) -> None:
    """Print JSON on one line of standard output, at once."""
    _print_json(_encode(value))


def _encode(value: Any) -> bytes:
    """Encode a value as JSON. Bytes of file names that are not UTF-8 become escape sequences, since JSON has none."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_as_text(msgspec.to_builtins(value)))


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_text(key): _as_text(each) for key, each in value.items()}
    return [_as_text(each) for each in value] if isinstance(value, list | tuple) else value


def _print_json(encoded: bytes) -> None:
    text = encoded.decode()
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = escape_json(text, ascii_only=True)
    print_data(escape_json(text))


def print_data(text: str) -> None:
    """Print lines of text on standard output."""
    print(escape_control_characters(text), flush=True)


def print_message(message: str) -> None:
    """Print a message on standard error, with control characters escaped."""
    print(escape_control_characters(message), file=sys.stderr, flush=True)


def warn_about(store: Store) -> None:
    """Print a warning for each run directory that could not be read, up to ``MAX_WARNINGS``."""
    for name, problem in list(store.problems.items())[:MAX_WARNINGS]:
        print_message(f"warning: {name}: {problem}")
    if len(store.problems) > MAX_WARNINGS:
        print_message(f"warning: {len(store.problems) - MAX_WARNINGS:,} more runs cannot be read")
