"""Contents of the files of an export, all made before the first is written."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lmconsole.errors import ExportError, escape_json
from lmconsole.extras import install_hint
from lmconsole.report import numbers
from lmconsole.report.against import OtherResults, comparison_table, group_results, published_results
from lmconsole.report.blocks import Block
from lmconsole.report.claims import TABLE as CLAIMS_TABLE
from lmconsole.report.claims import (
    ReportedClaims,
    claim_sentences,
    claims_figure,
    claims_section,
    claims_table,
    reported_claims,
)
from lmconsole.report.document import Template, build_report, choose_template, title
from lmconsole.report.export_options import DataFormat, ExportOptions, FileFormat
from lmconsole.report.figure_content import FigureSpec
from lmconsole.report.figures import figure_specs
from lmconsole.report.findings import findings
from lmconsole.report.html_page import SvgImages, to_html
from lmconsole.report.latex_report import captions_latex, report_latex
from lmconsole.report.markdown_report import captions_markdown, report_markdown
from lmconsole.report.notation import notation
from lmconsole.report.result_tables import MEMORY, RESULTS, memory_table, results_table
from lmconsole.report.results import FRAMES
from lmconsole.report.selection import Group, choose_group
from lmconsole.report.table import SUFFIXES, Table, TextFormat, frame_to_csv
from lmconsole.runs.store import Store

if TYPE_CHECKING:
    from lmconsole.report.draw import ImageFormat

COMPARISON = "table-3-against"
"""Name of the table with other results, without suffix."""

_TEXT_FORMATS: Mapping[FileFormat, Sequence[TextFormat]] = {
    "markdown": ("markdown",),
    "latex": ("latex",),
    "csv": ("csv",),
    "all": ("markdown", "latex", "csv"),
}

_SUFFIXES: Mapping[FileFormat, Sequence[str]] = {
    "markdown": ("md", "png"),
    "latex": ("tex", "png", "pdf", "svg"),
    "html": ("html",),
    "csv": ("csv",),
    "json": ("json",),
    "parquet": ("parquet",),
    "all": ("md", "tex", "csv", "png", "pdf", "svg"),
}
"""Suffixes of the files that an export of a format can make. LaTeX takes a figure as PDF before it takes it as PNG."""


def can_be_made(name: str, file_format: FileFormat) -> bool:
    """Return whether exports of ``file_format`` can make the file ``name``."""
    return name.rpartition(".")[2] in _SUFFIXES[file_format]


def export_files(store: Store, group: Group, options: ExportOptions) -> Iterator[tuple[str, bytes]]:
    """Yield relative paths and contents of all files, the most useful first."""
    if options.file_format == "parquet":
        _require_pyarrow()
    if options.file_format in ("json", "parquet"):
        yield from _data_files(group, options.file_format)
        return
    template = options.template or choose_template(group)
    claims = reported_claims(store, group)
    tables = report_tables(group, template)
    if claims.shown:
        tables[CLAIMS_TABLE] = claims_table(claims)
    if options.against:
        tables[COMPARISON] = comparison(store, group, options.against)
    if options.file_format == "html":
        yield "report.html", _html_page(group, tables, template, claims).encode()
        return
    text_formats = _TEXT_FORMATS[options.file_format]
    if options.file_format != "csv":
        yield from _report_files(group, tables, template, claims, text_formats, options)
    for name, table in tables.items():
        for text_format in text_formats:
            yield f"{name}.{SUFFIXES[text_format]}", table.render(text_format, siunitx=options.siunitx).encode()
    if "csv" in text_formats:
        yield from _data_files(group, "csv")


def report_tables(group: Group, template: Template) -> dict[str, Table]:
    """Return Tables 1 and 2 by file name, without suffix. Bold rows are the assignment's; they are not a claim."""
    return {RESULTS: results_table(group, bold=template == "course"), MEMORY: memory_table(group)}


def _report_files(
    group: Group,
    tables: Mapping[str, Table],
    template: Template,
    claims: ReportedClaims,
    text_formats: Sequence[TextFormat],
    options: ExportOptions,
) -> Iterator[tuple[str, bytes]]:
    """Yield the report, the captions and the figures."""
    from lmconsole.report import draw  # matplotlib is slow to load

    figures = _figures(group, claims)
    drawn = [figure for figure in figures if figure.content]
    blocks = _blocks(group, tables, figures, template, claims)
    setting = notation(group, exploratory=not claims.covers(group))
    if "markdown" in text_formats:
        yield "report.md", report_markdown(title(group), blocks).encode()
        yield "figures/captions.md", captions_markdown(drawn, setting).encode()
    if "latex" in text_formats:
        yield "report.tex", report_latex(title(group), blocks, siunitx=options.siunitx).encode()
        yield "figures/captions.tex", captions_latex(drawn, setting).encode()
        against = tables.get(COMPARISON)
        found = numbers.quantities(group, None if against is None else against.data)
        yield "numbers.tex", numbers.to_latex(group, found, siunitx=options.siunitx).encode()
    image_formats: dict[ImageFormat, None] = {"png": None, options.figure_format: None}
    for name, content in ((each.name, each.content) for each in figures if each.content):
        drawing = draw.draw_figure(content)
        for image_format in image_formats:
            yield f"figures/{name}.{image_format}", draw.encode_figure(drawing, image_format)


def _blocks(
    group: Group,
    tables: Mapping[str, Table],
    figures: Sequence[FigureSpec],
    template: Template,
    claims: ReportedClaims,
) -> list[Block]:
    return build_report(
        group,
        {name: table for name, table in tables.items() if name != CLAIMS_TABLE},
        figures,
        findings(group) if template == "course" else (),
        template=template,
        claims=claims_section(claims),
        claim_sentences=claim_sentences(claims),
        exploratory=not claims.covers(group),
    )


def _figures(group: Group, claims: ReportedClaims) -> list[FigureSpec]:
    figures = figure_specs(group, targets_ppl=claims.targets_ppl, exploratory=not claims.covers(group))
    return [*figures, claims_figure(claims)] if claims.shown else figures


def _html_page(group: Group, tables: Mapping[str, Table], template: Template, claims: ReportedClaims) -> str:
    """Return the report with its figures in it."""
    from lmconsole.report import draw  # matplotlib is slow to load

    figures = _figures(group, claims)
    images = {}
    for number, content in ((each.number, each.content) for each in figures if each.content):
        narrow = draw.in_one_column(content)
        images[number] = SvgImages(
            wide=draw.encode_figure(draw.draw_figure(content), "svg"),
            narrow=None if narrow is None else draw.encode_figure(draw.draw_figure(narrow), "svg"),
        )
    return to_html(title(group), _blocks(group, tables, figures, template, claims), images)


def _data_files(group: Group, data_format: DataFormat) -> Iterator[tuple[str, bytes]]:
    for name, make in FRAMES.items():
        if name == "evaluations" and not any(run.state.evaluations for run in group.runs):
            continue
        yield f"data/{name}.{data_format}", _encode_frame(make(group), data_format)


def _encode_frame(frame: pd.DataFrame, data_format: DataFormat) -> bytes:
    match data_format:
        case "csv":
            return frame_to_csv(frame).encode()
        case "json":
            return to_json(frame).encode()
        case "parquet":
            return bytes(frame.to_parquet(None, index=False, engine="pyarrow"))


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ExportError(
            "--format parquet needs pyarrow, which is not installed",
            hint=install_hint("parquet"),
        ) from None


def to_json(frame: pd.DataFrame) -> str:
    """Return one object per row; unknown and non-finite values are null."""
    return escape_json(frame.to_json(orient="records", indent=1, double_precision=15)) + "\n"


def comparison(store: Store, group: Group, against: str) -> Table:
    """Return Table 3: the group against ``published`` or ``imported`` results, or those of the store in a folder.

    Raises ExportError.
    """
    return comparison_table(group, _other_results(store, group, against))


def _other_results(store: Store, group: Group, against: str) -> OtherResults:
    if against == "published":
        return published_results(group)
    if against == "imported":
        return group_results(group, choose_group(store.runs(), imported=True), "Imported")
    folder = Path(against)
    if not folder.is_dir():
        raise ExportError(
            f"--against {against}: no such folder", hint="Use published, imported, or the folder of another store."
        )
    runs = Store(folder).runs()
    preset = group.reference.preset
    shared_preset = preset if any(run.info.preset == preset and run.state.epochs for run in runs) else None
    try:
        other = choose_group(runs, preset=shared_preset)
    except ExportError as error:
        raise ExportError(f"--against {against}: {error.message}", hint=error.hint) from None
    return group_results(group, other, "Other store")
