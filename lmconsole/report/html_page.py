"""The report as one HTML file that needs nothing else: no script, no network, no file next to it.

It is made for phones as well: tables scroll on their own, panels of a figure are stacked on a narrow screen, and
colors follow the dark mode of the device. On paper it is always light.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmconsole.report.blocks import (
    Block,
    BulletList,
    Command,
    FigureRow,
    Heading,
    InlineTable,
    NumberedTable,
    Paragraph,
)
from lmconsole.report.figure_content import FigureSpec
from lmconsole.report.markup import escape_html
from lmconsole.report.table import Column, Table, missing_decimals

FIGURE_SPACE = "\u2007"
"""Space as wide as a digit, which aligns numbers at their decimal points."""

NARROW = "34rem"
"""Width of the window up to which figures are drawn with one panel per row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SvgImages:
    """Images of a figure for wide windows, and for narrow ones if that is another."""

    wide: bytes
    narrow: bytes | None = None


def to_html(title: str, blocks: Sequence[Block], images: Mapping[int, SvgImages]) -> str:
    """Return the report as a page with its figures in it; ``images`` by number of the figure."""
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 1]
    links = "\n".join(f'<a href="#{_anchor(text)}">{escape_html(text)}</a>' for text in sections)
    body = "\n".join(_block(block, images) for block in blocks)
    name = escape_html(title)
    return _PAGE.format(title=name, style=_STYLE, links=links, body=body)


def _block(block: Block, images: Mapping[int, SvgImages]) -> str:
    match block:
        case Heading(1, text):
            return f'<h2 id="{_anchor(text)}">{escape_html(text)}</h2>'
        case Heading(_, text):
            return f"<h3>{escape_html(text)}</h3>"
        case Paragraph(text, lead):
            bold = f"<b>{escape_html(lead)}</b>" if lead else ""
            return f"<p>{' '.join(part for part in (bold, escape_html(text)) if part)}</p>"
        case BulletList(items, code):
            texts = [f"<code>{escape_html(item)}</code>" if code else escape_html(item) for item in items]
            return "\n".join(["<ul>", *(f"<li>{text}</li>" for text in texts), "</ul>"])
        case Command(text):
            return f"<pre><code>{escape_html(text)}</code></pre>"
        case NumberedTable(_, table):
            caption = f"<figcaption><b>{escape_html(table.title)}.</b> {escape_html(table.caption)}</figcaption>"
            note = f'\n<p class="note">{escape_html(table.notes)}</p>' if table.notes else ""
            return f"<figure>\n{caption}\n{_table(table)}{note}\n</figure>"
        case InlineTable(table, _):
            return _table(table)
        case FigureRow(figures):
            shown = [_figure(figure, images[figure.number]) for figure in figures]
            return shown[0] if len(shown) == 1 else "\n".join(['<div class="pair">', *shown, "</div>"])


def _table(table: Table) -> str:
    """Return a table that scrolls where it is wider than the window, with keys too."""
    head = "".join(f'<th scope="col"{_align(column)}>{escape_html(column.header)}</th>' for column in table.columns)
    padding = [missing_decimals(table, column) for column in table.columns]
    rows = [
        "<tr>"
        + "".join(
            _cell(row[column.header].text + FIGURE_SPACE * missing[number], row[column.header].bold, column)
            for column, missing in zip(table.columns, padding, strict=True)
        )
        for number, row in enumerate(table.rows)
    ]
    name = f' aria-label="{escape_html(table.title)}"' if table.title else ' aria-label="Table"'
    lines = [f'<div class="scroll" role="region" tabindex="0"{name}><table>', f"<thead><tr>{head}</tr></thead>"]
    return "\n".join([*lines, "<tbody>", *(f"{row}</tr>" for row in rows), "</tbody></table></div>"])


def _cell(text: str, bold: bool, column: Column) -> str:
    shown = f"<b>{escape_html(text)}</b>" if bold else escape_html(text)
    return f"<td{_align(column)}>{shown}</td>"


def _align(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _figure(figure: FigureSpec, images: SvgImages) -> str:
    image = f'<img src="{_data_url(images.wide)}" alt="{escape_html(figure.title)}">'
    if images.narrow is not None:
        source = f'<source media="(max-width: {NARROW})" srcset="{_data_url(images.narrow)}">'
        image = f"<picture>{source}{image}</picture>"
    caption = f"<b>{figure.label}.</b> {escape_html(figure.caption)}"
    return f'<figure id="{figure.name}">\n{image}\n<figcaption>{caption}</figcaption>\n</figure>'


def _data_url(svg: bytes) -> str:
    """Embed an SVG image. As an image it can neither run scripts nor load anything, and its ids are its own."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _anchor(text: str) -> str:
    return escape_html(re.sub(r"[^a-z0-9]+", "-", text.lower()))


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<nav aria-label="Sections">
{links}
</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = (
    """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1b1b; --soft: #565656; --line: #d9d9d9; --tint: #f5f5f3; --link: #005a91;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 3rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 {
  font-size: 1.3rem; line-height: 1.25; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1.05rem; line-height: 1.3; margin: 1.75rem 0 .5rem; }
p { margin: .75rem 0; }
ul { margin: .5rem 0; padding-left: 1.25rem; }
li { margin: .3rem 0; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
nav a { padding: .35rem 0; }
code { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--tint); border-radius: .4rem; padding: .75rem; white-space: pre-wrap; }
figure { margin: 1.75rem 0; }
figure img { display: block; width: auto; max-width: 100%; height: auto; margin: 0 auto; }
figcaption, .note { color: var(--soft); font-size: .875rem; line-height: 1.45; margin: .6rem 0; }
figcaption b { color: var(--text); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); column-gap: 1.5rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; text-align: left; vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; }
thead { border-top: 2px solid var(--text); border-bottom: 1px solid var(--text); }
tbody { border-bottom: 2px solid var(--text); }
tbody tr:nth-child(even) { background: var(--tint); }
.n { text-align: right; }
td.n { white-space: nowrap; }
@media screen and (max-width: """
    + NARROW
    + """) {
  table { font-size: .8rem; }
  th, td { padding: .3rem .35rem; }
}
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14161a; --text: #e6e6e6; --soft: #ababab; --line: #3a3d42; --tint: #1e2126; --link: #7cc0f0; }
  /* Drawn black on white: invert, keep the hues, and let the page show through. */
  figure img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
@media print {
  @page { margin: 2cm; }
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { margin-top: 1.2rem; }
  h2, h3, figcaption:first-child, p:has(+ ul) { break-after: avoid; }
  figure:has(img), tr, li, pre { break-inside: avoid; }
  figure { margin: .8rem 0; }
  figure img { max-height: 7.6cm; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .3rem; }
}
"""
)
