"""Writing of exports.

All contents are made before the first file is replaced, an export that fails leaves the earlier one untouched, and
equal data give equal bytes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import msgspec
import pandas as pd

from lmconsole.errors import ExportError, escape_json
from lmconsole.report import document
from lmconsole.report.against import OtherResults, comparison_table, group_results, published_results
from lmconsole.report.figures import figure_specs
from lmconsole.report.findings import findings
from lmconsole.report.result_tables import TABLES, results_table
from lmconsole.report.results import FRAMES
from lmconsole.report.selection import Group, choose_group
from lmconsole.report.table import SUFFIXES, Table, TextFormat, frame_to_csv
from lmconsole.report.transaction import replace_files
from lmconsole.runs.store import Store

if TYPE_CHECKING:
    from lmconsole.report.draw import ImageFormat

FileFormat = Literal["markdown", "latex", "csv", "json", "parquet", "all"]
DataFormat = Literal["csv", "json", "parquet"]

MANIFEST = ".group.json"
"""File that names the group shown in a folder and the files of the export."""

POLL_S = 2.0
"""Seconds between two reads of the store in ``keep_current``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Runs to export, and formats of the files."""

    file_format: FileFormat = "all"
    figure_format: "ImageFormat" = "png"
    """Format of the figures in addition to PNG."""
    preset: str | None = None
    run: str | None = None
    imported: bool | None = None
    against: str | None = None
    """``published``, ``imported``, or the folder of another store."""
    siunitx: bool = False


def export(store: Store, out: Path, options: ExportOptions) -> list[Path]:
    """Write the exports of a group into ``out``, and return the paths written.

    Raises:
        ExportError: There is nothing to export, or the files could not be written. ``out`` is unchanged then.
    """
    return _write(store, _chosen_group(store, options), out, options)


def print_table(store: Store, options: ExportOptions) -> str:
    """Return Table 1, or Table 3 if ``against`` is given, as text; in markdown for the format ``all``.

    Raises:
        ExportError: There is nothing to export, or the format is not text.
    """
    if options.file_format == "parquet":
        raise ExportError("-o -: parquet is not text", hint="Use --format csv or json.")
    group = _chosen_group(store, options)
    table = _comparison(store, group, options.against) if options.against else results_table(group)
    match options.file_format:
        case "json":
            return _to_json(table.data)
        case "all":
            return table.render("markdown")
        case text_format:
            return table.render(text_format, siunitx=options.siunitx)


def export_automatically(store: Store, out: Path) -> list[Path]:
    """Write all exports when the queue is empty, and return the paths written.

    If ``out`` shows another group, the files go to a subfolder named after the preset.

    Raises:
        ExportError: As for ``export``.
    """
    group = choose_group(store.runs())
    preset, corpus = group.reference.preset, group.reference.corpus.sha256
    names = (".", preset, f"{preset}-{group.key[:8]}", f"{preset}-{group.key[:8]}-{corpus[:8]}")
    folders = [out / name for name in names]
    free = next((each for each in folders if _read_manifest(each).is_free_for(group)), folders[-1])
    return _write(store, group, free, ExportOptions())


def keep_current(store: Store, out: Path, options: ExportOptions, report: Callable[[Sequence[Path]], None]) -> None:
    """Export whenever a run has completed an epoch or changed its status, until no run is active.

    ``report`` receives the paths after each export. As long as runs are active, a group without a complete epoch is
    waited for.

    Raises:
        ExportError: As for ``export``.
    """
    exported: object = None
    while True:
        runs = store.runs()
        active = any(run.status.active for run in runs)
        progress = [(run.run, run.status, len(run.state.epochs)) for run in runs]
        if progress != exported:
            try:
                group = _chosen_group(store, options)
            except ExportError:
                if not active:
                    raise
            else:
                report(_write(store, group, out, options))
                exported = progress
        if not active:
            return
        time.sleep(POLL_S)


class _Manifest(msgspec.Struct, frozen=True):
    """Contents of ``MANIFEST``."""

    group: str | None = None
    """Key of the group; None if there is no export."""
    corpus_sha256: str | None = None
    """None in exports of version 0.1.0."""
    preset: str = ""
    files: tuple[str, ...] = ()

    def shows(self, group: Group) -> bool:
        return self.group == group.key and self.corpus_sha256 in (None, group.reference.corpus.sha256)

    def is_free_for(self, group: Group) -> bool:
        return self.group is None or self.shows(group)


def _read_manifest(out: Path) -> _Manifest:
    """Read the manifest of a folder; a damaged or missing one counts as no export."""
    try:
        found = msgspec.json.decode((out / MANIFEST).read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Manifest()
    inside = tuple(name for name in found.files if ".." not in PurePosixPath(name).parts and not name.startswith("/"))
    return msgspec.structs.replace(found, files=inside)


def _chosen_group(store: Store, options: ExportOptions) -> Group:
    return choose_group(store.runs(), preset=options.preset, run_id=options.run, imported=options.imported)


def _comparison(store: Store, group: Group, against: str) -> Table:
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


def _write(store: Store, group: Group, out: Path, options: ExportOptions) -> list[Path]:
    made = dict(_files(store, group, options))
    shown = _read_manifest(out)
    kept = shown.files if shown.shows(group) else ()
    manifest = _Manifest(
        group=group.key,
        corpus_sha256=group.reference.corpus.sha256,
        preset=group.reference.preset,
        files=tuple(sorted({*made, *kept})),
    )
    changes: dict[str, bytes | None] = dict(made)
    if options.file_format == "all" and not shown.shows(group):
        # Files of another group would be mistaken for files of this one.
        changes |= dict.fromkeys(set(shown.files) - set(made))
    if options.file_format == "all" or shown.is_free_for(group):
        changes[MANIFEST] = msgspec.json.encode(manifest) + b"\n"
    try:
        replace_files(out, changes)
    except OSError as error:
        path = error.filename2 or error.filename or out
        raise ExportError(
            f"{path}: cannot be written: {error.strerror}", hint="Use --out to name another folder."
        ) from None
    return [out / name for name in made]


_TEXT_FORMATS: Mapping[FileFormat, Sequence[TextFormat]] = {
    "markdown": ("markdown",),
    "latex": ("latex",),
    "csv": ("csv",),
    "all": ("markdown", "latex", "csv"),
}


def _files(store: Store, group: Group, options: ExportOptions) -> Iterator[tuple[str, bytes]]:
    """Yield relative paths and contents of all files, the most useful first."""
    if options.file_format == "parquet":
        _require_pyarrow()
    if options.file_format in ("json", "parquet"):
        yield from _data_files(group, options.file_format)
        return
    text_formats = _TEXT_FORMATS[options.file_format]
    tables = {name: make(group) for name, make in TABLES.items()}
    if options.against:
        tables["table-3-against"] = _comparison(store, group, options.against)
    if options.file_format != "csv":
        yield from _report_files(group, tables, text_formats, options)
    for name, table in tables.items():
        for text_format in text_formats:
            yield f"{name}.{SUFFIXES[text_format]}", table.render(text_format, siunitx=options.siunitx).encode()
    if "csv" in text_formats:
        yield from _data_files(group, "csv")


def _report_files(
    group: Group, tables: Mapping[str, Table], text_formats: Sequence[TextFormat], options: ExportOptions
) -> Iterator[tuple[str, bytes]]:
    """Yield the report, the captions and the figures."""
    from lmconsole.report import draw  # matplotlib is slow to load

    figures = figure_specs(group)
    blocks = document.build_report(group, tables, figures, findings(group))
    if "markdown" in text_formats:
        captions = "\n\n".join(document.caption_markdown(figure) for figure in figures)
        yield "report.md", document.to_markdown(group, blocks).encode()
        yield "figures/captions.md", f"{captions}\n".encode()
    if "latex" in text_formats:
        captions = "\n".join(document.caption_latex(figure) for figure in figures)
        yield "report.tex", document.to_latex(group, blocks, siunitx=options.siunitx).encode()
        yield "figures/captions.tex", f"{captions}\n".encode()
    image_formats: dict[ImageFormat, None] = {"png": None, options.figure_format: None}
    for figure in figures:
        drawn = draw.draw_figure(figure.content)
        for image_format in image_formats:
            yield f"figures/{figure.name}.{image_format}", draw.encode_figure(drawn, image_format)


def _data_files(group: Group, data_format: DataFormat) -> Iterator[tuple[str, bytes]]:
    for name, make in FRAMES.items():
        yield f"data/{name}.{data_format}", _encode_frame(make(group), data_format)


def _encode_frame(frame: pd.DataFrame, data_format: DataFormat) -> bytes:
    match data_format:
        case "csv":
            return frame_to_csv(frame).encode()
        case "json":
            return _to_json(frame).encode()
        case "parquet":
            return bytes(frame.to_parquet(None, index=False, engine="pyarrow"))


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ExportError(
            "--format parquet needs pyarrow, which is not installed",
            hint="Install pyarrow into the environment of lmconsole, for example: uv tool install '.[parquet]'",
        ) from None


def _to_json(frame: pd.DataFrame) -> str:
    """Return one object per row; unknown and non-finite values are null."""
    return escape_json(frame.to_json(orient="records", indent=1, double_precision=15)) + "\n"
