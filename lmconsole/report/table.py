"""Tables in markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import pandas as pd

from lmconsole.errors import escape_control_characters
from lmconsole.report.markup import DASH, escape_latex, escape_markdown, latex_caption

TextFormat = Literal["markdown", "latex", "csv"]
SUFFIXES: dict[TextFormat, str] = {"markdown": "md", "latex": "tex", "csv": "csv"}

FONT_SIZES = ((94, "\\scriptsize"), (86, "\\footnotesize"), (76, "\\small"))
"""LaTeX font sizes for tables that are wider than this many characters, so that they fit on a page."""

BOLD_WIDTH, COLUMN_GAP, WRAPPED_WIDTH, CHARACTERS_PER_CM = 1.12, 1.25, 17.0, 6.0
"""Width of a bold character, of the gap between columns, and of a wrapped last column, in characters."""

WRAPPED_LENGTH = 14
"""In LaTeX, a last column with longer cells than this is wrapped."""


LONGEST_CELL = 100
"""Characters of a cell in LaTeX, where most cells cannot be broken."""
FEW_COLUMNS = 4
"""Up to this many columns leave room for a wide last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """Header and alignment of a column; numeric columns are right-aligned."""

    header: str
    numeric: bool = False
    width_cm: float | None = None
    """In LaTeX, width at which its cells are wrapped; None for no wrapping, except of a long last column."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Displayed text of a cell, before escaping."""

    text: str
    bold: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table before it is written in a format."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    """Cells by the header of their column."""
    title: str = ""
    caption: str = ""
    notes: str = ""
    """Notes below the table, such as the meanings of marks."""
    setting: str = ""
    """Description of the runs for the table's own file. The report states it once for all tables."""
    label: str = ""
    """Label for ``\\ref`` in LaTeX."""
    letter: str = ""
    """Letter in place of a number, so that the numbers of other tables do not depend on this one."""
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Contents of the CSV file."""

    @property
    def headers(self) -> list[str]:
        return [column.header for column in self.columns]

    def texts(self, column: Column) -> list[str]:
        """Return the texts of a column, without its header."""
        return [row[column.header].text for row in self.rows]

    def render(self, text_format: TextFormat, *, siunitx: bool = False) -> str:
        """Return the file of the table, with caption, notes and setting; CSV has none of them."""
        if text_format == "latex":
            return to_latex(self, siunitx=siunitx)
        return to_markdown(self, own_file=True) if text_format == "markdown" else frame_to_csv(self.data)


def to_markdown(table: Table, *, own_file: bool) -> str:
    """Return the caption, a pipe table, and the notes, with the setting if this is a file of its own."""
    notes = " ".join(text for text in (table.notes, table.setting if own_file else "") if text)
    pieces = [f"**{table.title}.** {escape_markdown(table.caption)}\n", markdown_grid(table)]
    return "\n".join(pieces + ([f"{escape_markdown(notes)}\n"] if notes else []))


def markdown_grid(table: Table) -> str:
    """Return a pipe table without a caption, its columns padded so that it reads well as plain text."""
    grid = [[escape_markdown(header) for header in table.headers]]
    grid += [[_markdown_cell(row[header]) for header in table.headers] for row in table.rows]
    widths = [max(2, *map(len, cells)) for cells in zip(*grid, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if column.numeric else "-" * width
        for width, column in zip(widths, table.columns, strict=True)
    ]
    padded = [
        [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(cells, widths, table.columns, strict=True)
        ]
        for cells in grid
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [padded[0], rule, *padded[1:]]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.bold else text


def to_latex(table: Table, *, siunitx: bool = False) -> str:
    """Return a floating table that needs booktabs, and siunitx if asked for, but no other package.

    The report defines ``\\lmReport``, and the setting is left out there.
    """
    setting = f"\\ifdefined\\lmReport\\else {latex_caption(table.setting)}\\fi" if table.setting else ""
    notes = " ".join(text for text in (latex_caption(table.notes), setting) if text)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}" + (" and \\usepackage{siunitx}" if siunitx else ""),
            "\\begin{table}[htbp]",
            f"  \\centering{latex_font_size(table)}",
            *([f"  \\renewcommand{{\\thetable}}{{{table.letter}}}"] if table.letter else []),
            f"  \\caption{{{latex_caption(table.caption)}}}",
            *(["  \\addtocounter{table}{-1}"] if table.letter else []),
            f"  \\label{{{table.label}}}",
            *(f"  {line}" for line in latex_grid(table, siunitx=siunitx)),
            *([f"  \\par\\smallskip{{\\footnotesize\\raggedright {notes}\\par}}"] if notes else []),
            "\\end{table}",
            "",
        ]
    )


def latex_font_size(table: Table) -> str:
    """Return the command for the font size at which the rows fit on a page."""
    header_lines = _header_lines(table)
    widths = []
    for column in table.columns:
        if column.width_cm is not None:
            widths.append(column.width_cm * CHARACTERS_PER_CM)
            continue
        headers = [float(len(line[column.header])) for line in header_lines]
        cells = [row[column.header] for row in table.rows]
        widths.append(max(headers + [len(cell.text) * (BOLD_WIDTH if cell.bold else 1.0) for cell in cells]))
    if widths and max(map(len, table.texts(table.columns[-1])), default=0) > WRAPPED_LENGTH:
        widths[-1] = WRAPPED_WIDTH
    width = sum(widths) + COLUMN_GAP * len(widths)
    return next((size for limit, size in FONT_SIZES if width > limit), "")


def missing_decimals(table: Table, column: Column) -> list[int]:
    """Return how many decimals each number of a column lacks to be aligned with the others at the decimal point; 0 for
    other texts."""
    decimals = [
        len(match[2]) if (match := _NUMBER.fullmatch(text)) and not match[3] else None for text in table.texts(column)
    ]
    most = max((each for each in decimals if each is not None), default=0)
    return [0 if each is None else most - each for each in decimals]


def latex_grid(table: Table, *, siunitx: bool = False) -> list[str]:
    """Return the lines of the ``tabular`` environment."""
    formats = {column.header: _siunitx_format(table.texts(column)) if siunitx else None for column in table.columns}
    alignments = {
        column.header: f"S[{number_format}]"
        if (number_format := formats[column.header])
        else "r"
        if column.numeric
        else "l"
        for column in table.columns
    }
    alignments |= {each.header: f"p{{{each.width_cm:g}cm}}" for each in table.columns if each.width_cm is not None}
    last = table.columns[-1].header
    if any(len(row[last].text) > WRAPPED_LENGTH for row in table.rows):
        alignments[last] = "p{2.8cm}" if len(table.columns) > FEW_COLUMNS else "p{7cm}"
    lines = []
    padding = {column.header: missing_decimals(table, column) for column in table.columns if not formats[column.header]}
    for number, row in enumerate(table.rows):
        cells = {header: _latex_cell(row[header], formats[header]) for header in table.headers}
        for header, missing in padding.items():
            if missing[number]:
                cells[header] += f"\\phantom{{{'0' * missing[number]}}}"
        for column in table.columns:
            if column.width_cm is not None or (column.header == last and len(row[last].text) > WRAPPED_LENGTH):
                cells[column.header] = f"\\rightskip=0pt plus 3em {cells[column.header]}"
        lines.append(" & ".join(cells.values()))
    header_lines = [
        " & ".join(
            f"{{{escape_latex(text)}}}" if formats[header] else escape_latex(text) for header, text in line.items()
        )
        for line in _header_lines(table)
    ]
    return [
        f"\\begin{{tabular}}{{{''.join(alignments.values())}}}",
        "  \\toprule",
        *(f"  {line} \\\\" for line in header_lines),
        "  \\midrule",
        *(f"  {line} \\\\" for line in lines),
        "  \\bottomrule",
        "\\end{tabular}",
    ]


_UNIT = re.compile(r"(.+) (\([^()]+\))")


def _header_lines(table: Table) -> list[dict[str, str]]:
    """Return the headers with units on a second line, because ``Energy (kJ)`` on one line is wider than its column."""
    matches = {header: _UNIT.fullmatch(header) for header in table.headers}
    names = {header: match[1] if match else header for header, match in matches.items()}
    units = {header: match[2] if match else "" for header, match in matches.items()}
    return [names, units] if any(units.values()) else [names]


_NUMBER = re.compile(r"(\d+)(\.\d+)(?: ± (\d+)(\.\d+))?([†§*]*)")


def _siunitx_format(texts: Sequence[str]) -> str | None:
    """Return the ``table-format`` of a column of numbers; None if it holds anything else."""
    found = [_NUMBER.fullmatch(text) for text in texts]
    matches = [match for match in found if match]
    if not matches or any(text != DASH for text, match in zip(texts, found, strict=True) if not match):
        return None
    whole, places = max(len(match[1]) for match in matches), max(len(match[2]) for match in matches) - 1
    spreads = [len(match[3]) for match in matches if match[3]]
    spread = f" +- {max(spreads)}.{places}" if spreads else ""
    marks = escape_latex(max((match[5] for match in matches), key=len))
    mark = f", table-space-text-post={{{marks}}}" if marks else ""
    return f"table-format={whole}.{places}{spread}, reset-text-series=false, text-series-to-math=true{mark}"


def _latex_cell(cell: Cell, number_format: str | None) -> str:
    text = escape_latex(cell.text if len(cell.text) <= LONGEST_CELL else f"{cell.text[: LONGEST_CELL - 1]}…")
    match = _NUMBER.fullmatch(cell.text) if number_format else None
    if match:
        number = match[1] + match[2] + (f" +- {match[3]}{match[4]}" if match[3] else "")
        return ("\\bfseries " if cell.bold else "") + number + escape_latex(match[5])
    text = f"\\textbf{{{text}}}" if cell.bold else text
    return f"{{{text}}}" if number_format else text


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV with a header line and plain numbers; empty cells are unknown.

    Text that a spreadsheet would compute is marked as text by an apostrophe in front. There is no byte order mark:
    Excel would need one to recognize UTF-8 on a double click, but other readers take it for a part of the first header.
    """
    inert = cache(inert_cell)  # by Python's own comparison: pandas takes texts that begin with a NUL for equal
    for name in frame.columns:
        if not (pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name])):
            cells = [inert(value) if isinstance(value, str) else value for value in frame[name]]
            frame = frame.assign(**{name: pd.Series(cells, frame.index, dtype=object)})
    out = io.StringIO()
    frame.to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()


_FORMULA = re.compile(r"['\s]*[=+\-@＝＋－＠]")


def inert_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, with control characters escaped.

    It gets an apostrophe in front if a formula begins after any apostrophes and spaces. A reader removes the first
    apostrophe of a cell if what follows would need one.
    """
    escaped = escape_control_characters(text)
    return f"'{escaped}" if _FORMULA.match(escaped) else escaped
