"""The report in markdown."""

from collections.abc import Sequence

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
from lmconsole.report.markup import escape_markdown
from lmconsole.report.table import markdown_grid, to_markdown


def report_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return the report in markdown, with images in ``figures/``."""
    pieces = [f"# {escape_markdown(title)}"]
    for block in blocks:
        match block:
            case Heading(level, text):
                pieces.append(f"{'#' * (level + 1)} {escape_markdown(text)}")
            case Paragraph(text, lead):
                pieces.append(" ".join(part for part in (f"**{lead}**" if lead else "", escape_markdown(text)) if part))
            case BulletList(items, code):
                pieces.append("\n".join(f"- `{item}`" if code else f"- {escape_markdown(item)}" for item in items))
            case Command(text):
                pieces.append(f"```sh\n{text}\n```")
            case NumberedTable(_, table):
                pieces.append(to_markdown(table, own_file=False).rstrip("\n"))
            case InlineTable(table, _):
                pieces.append(markdown_grid(table).rstrip("\n"))
            case FigureRow(figures):
                pieces += [
                    f"![{escape_markdown(figure.title)}](figures/{figure.name}.png)\n\n{caption_markdown(figure)}"
                    for figure in figures
                ]
    return "\n\n".join(pieces) + "\n"


def caption_markdown(figure: FigureSpec) -> str:
    """Return the number and caption of a figure."""
    return f"**{figure.label}.** {escape_markdown(figure.caption)}"


def captions_markdown(figures: Sequence[FigureSpec], setting: Sequence[Paragraph]) -> str:
    """Return the captions of figures after the setting that they share."""
    shared = "\n\n".join(f"**{each.lead}** {escape_markdown(each.text)}" for each in setting)
    return "\n\n".join(["All figures:", shared, *map(caption_markdown, figures)]) + "\n"
