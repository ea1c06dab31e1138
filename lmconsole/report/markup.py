"""Text and tables in the formats of the exports: what markdown and LaTeX would take for markup is escaped, and what a
font or ``pdflatex`` cannot print is spelled out."""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import pandas as pd

from lmconsole.errors import escape_control_characters

Form = Literal["markdown", "latex", "csv"]
Picture = Literal["png", "pdf", "svg"]
SUFFIXES: dict[Form, str] = {"markdown": "md", "latex": "tex", "csv": "csv"}
DASH = "–"

SIZES = ((80, "\\footnotesize"), (65, "\\small"))
"""Tables of more characters than this in a line are set in that size in LaTeX, so that they fit a page."""

LARGE_PPL = 1e7
"""From here on perplexities are given in powers of ten."""

LONG_NAME = 14
"""A last column with a longer text than this is broken into lines in LaTeX."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\0": "{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "\u00a0": "~",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "²": "$^2$",
    "³": "$^3$",
    **{c: f"\\{c}" for c in "&%$#_"},
}


@dataclass(frozen=True)
class Cell:
    """One cell: text as a person reads it, bold or not."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Document:
    """A table before it has a format. ``data`` is what its CSV holds."""

    label: str
    title: str
    caption: str
    headers: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Cell]]
    data: pd.DataFrame = field(default_factory=pd.DataFrame)

    def render(self, form: Form, *, siunitx: bool = False) -> str:
        """The whole table with its caption; CSV has none."""
        if form == "latex":
            return to_latex(self, siunitx=siunitx)
        return to_markdown(self) if form == "markdown" else to_csv(self)


def to_markdown(document: Document) -> str:
    """A pipe table, columns aligned for reading as text too, with its caption above."""
    return f"**{document.title}.** {escape_markdown(document.caption)}\n\n{markdown_grid(document)}"


def markdown_grid(document: Document) -> str:
    """The rows of a table alone."""
    lines = [
        [f"**{escape_markdown(cell.text)}**" if cell.bold else escape_markdown(cell.text) for cell in row]
        for row in document.rows
    ]
    table = [[escape_markdown(header) for header in document.headers], *lines]
    widths = [max(2, *(len(row[column]) for row in table)) for column in range(len(document.headers))]
    rule = [
        "-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, document.numeric, strict=True)
    ]
    padded = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, document.numeric, strict=True)
        ]
        for row in table
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]]) + "\n"


def to_latex(document: Document, *, siunitx: bool = False) -> str:
    """A floating table that needs booktabs and nothing else, or booktabs and siunitx."""
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}" + (" and \\usepackage{siunitx}" if siunitx else ""),
            "\\begin{table}[htbp]",
            f"  \\centering{latex_size(document)}",
            f"  \\caption{{{escape_latex(document.caption)}}}",
            f"  \\label{{{document.label}}}",
            *(f"  {line}" for line in latex_grid(document, siunitx=siunitx)),
            "\\end{table}",
            "",
        ]
    )


def latex_size(document: Document) -> str:
    """The size of type in which the rows fit a page."""
    table = [*_header_lines(document), *([cell.text for cell in row] for row in document.rows)]
    longest = [max(len(row[column]) for row in table) for column in range(len(document.headers))]
    if longest and longest[-1] > LONG_NAME:
        longest[-1] = LONG_NAME
    return next((size for characters, size in SIZES if sum(longest) > characters), "")


def latex_grid(document: Document, *, siunitx: bool = False) -> list[str]:
    """The ``tabular`` alone, in lines."""
    formats = [_number_format(document, column) if siunitx else None for column in range(len(document.headers))]
    columns = [
        f"S[{spec}]" if spec else "r" if right else "l" for spec, right in zip(formats, document.numeric, strict=True)
    ]
    long_names = any(len(row[-1].text) > LONG_NAME for row in document.rows)
    if long_names:
        columns[-1] = "p{2.8cm}"
    rows = []
    for row in document.rows:
        cells = [_latex_cell(cell, spec) for cell, spec in zip(row, formats, strict=True)]
        if len(row[-1].text) > LONG_NAME:
            cells[-1] = f"{{\\raggedright {cells[-1]}\\par}}"
        rows.append(" & ".join(cells))
    headers = [
        " & ".join(
            f"{{{escape_latex(header)}}}" if spec else escape_latex(header)
            for header, spec in zip(line, formats, strict=True)
        )
        for line in _header_lines(document)
    ]
    return [
        f"\\begin{{tabular}}{{{''.join(columns)}}}",
        "  \\toprule",
        *(f"  {line} \\\\" for line in headers),
        "  \\midrule",
        *(f"  {row} \\\\" for row in rows),
        "  \\bottomrule",
        "\\end{tabular}",
    ]


_UNIT = re.compile(r"(.+) (\([^()]+\))")


def _header_lines(document: Document) -> list[list[str]]:
    """The headers, their units in a line of their own: ``Energy (kJ)`` would make its column as wide as itself."""
    parts = [match.groups() if (match := _UNIT.fullmatch(header)) else (header, "") for header in document.headers]
    names, units = [name for name, _ in parts], [unit for _, unit in parts]
    return [names, units] if any(units) else [names]


_NUMBER = re.compile(r"(\d+)(\.\d+)(?: ± (\d+)(\.\d+))?([†‡*]?)")


def _number_format(document: Document, column: int) -> str | None:
    """siunitx's table-format of a column of formats; None if it is not one."""
    found = [_NUMBER.fullmatch(row[column].text) for row in document.rows]
    matches = [match for match in found if match]
    if not matches or any(
        row[column].text != DASH for row, match in zip(document.rows, found, strict=True) if not match
    ):
        return None
    whole, places = max(len(match[1]) for match in matches), max(len(match[2]) for match in matches) - 1
    spreads = [len(match[3]) for match in matches if match[3]]
    spread = f" +- {max(spreads)}.{places}" if spreads else ""
    mark = next((f", table-space-text-post={{{escape_latex(match[5])}}}" for match in matches if match[5]), "")
    return f"table-format={whole}.{places}{spread}, reset-text-series=false, text-series-to-math=true{mark}"


def _latex_cell(cell: Cell, number_format: str | None) -> str:
    text = escape_latex(cell.text)
    match = _NUMBER.fullmatch(cell.text) if number_format else None
    if match:
        number = match[1] + match[2] + (f" +- {match[3]}{match[4]}" if match[3] else "")
        return ("\\bfseries " if cell.bold else "") + number + escape_latex(match[5])
    text = f"\\textbf{{{text}}}" if cell.bold else text
    return f"{{{text}}}" if number_format else text


def to_csv(document: Document) -> str:
    """Plain numbers, one header line; an empty cell is unknown."""
    return frame_to_csv(document.data)


def frame_to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV: plain numbers, one header line; an empty cell is unknown."""
    out = io.StringIO()
    frame.to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()


def decimals(ppl: float) -> str:
    """A perplexity with three decimals; in powers of ten where it is too large to mean much."""
    return f"{ppl:.3f}" if ppl < LARGE_PPL else f"{ppl:.3e}"


def escape_markdown(text: str) -> str:
    """``text`` so that no markdown or HTML reader takes any of it for markup."""
    one_line = escape_control_characters(text).replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", one_line)


def escape_latex(text: str) -> str:
    """``text`` as ``pdflatex`` prints it without any package: Latin and Greek letters as they are, other characters by
    their names in brackets."""
    one_line = escape_control_characters(text).replace("\n", " ")
    one_line = spelled(one_line, lambda c: c in _LATEX or bool(_letter(c)))
    apart = re.sub(r"(?<=([-',]))(?=\1)", "\0", one_line)  # or TeX would join them
    return "".join(_LATEX.get(c) or _letter(c) for c in apart)


_NOT_IN_OT1 = re.compile(
    r"\\(k|d|r\{U\}|DH|dh|DJ|dj|TH|th|NG|ng|guill\w+|quote\w+|textquote\w+|[hH]withstroke|nument)(?![a-z])"
)
"""Commands that LaTeX's default encoding of fonts has no letters for."""


@cache
def _letter(c: str) -> str:
    """ASCII as it is, a letter from Latin-1 to Greek as a LaTeX command, else nothing."""
    if c.isascii():
        return c
    if not ("\u00a1" <= c <= "\u017f" or "\u0391" <= c <= "\u03c9"):
        return ""
    from pylatexenc.latexencode import UnicodeToLatexEncoder

    encoder = UnicodeToLatexEncoder(unknown_char_policy="ignore", unknown_char_warning=False)
    command = str(encoder.unicode_to_latex(c))
    return "" if _NOT_IN_OT1.search(command) else command


def spelled(text: str, known: Callable[[str], bool]) -> str:
    """``text`` with every character that is not ``known`` as its Unicode name, for example ``[rocket]``."""
    return "".join(
        c if c.isascii() or known(c) else f"[{unicodedata.name(c, f'U+{ord(c):04X}').lower()}]" for c in text
    )
