"""Writing of exports.

All contents are made before the first file is replaced, an export that fails leaves the earlier one untouched, and
equal data give equal bytes.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
import pandas as pd

from lmconsole.errors import ExportError, escape_json
from lmconsole.files import file_name_part, open_file, read_file
from lmconsole.formatting import counted
from lmconsole.report import document, numbers
from lmconsole.report.against import OtherResults, comparison_table, group_results, published_results
from lmconsole.report.figures import figure_specs
from lmconsole.report.findings import findings
from lmconsole.report.html_page import SvgImages, to_html
from lmconsole.report.result_tables import TABLES, results_table
from lmconsole.report.results import FRAMES
from lmconsole.report.selection import Group, choose_group, matching_runs
from lmconsole.report.table import SUFFIXES, Table, TextFormat, frame_to_csv
from lmconsole.report.tensorboard import EventFiles
from lmconsole.report.transaction import cannot_be_written, check_folders, replace_files
from lmconsole.runs.events import DAMAGED
from lmconsole.runs.permissions import pending
from lmconsole.runs.store import Store

if TYPE_CHECKING:
    from lmconsole.report.draw import ImageFormat

FileFormat = Literal["markdown", "latex", "html", "csv", "json", "parquet", "tensorboard", "all"]
DataFormat = Literal["csv", "json", "parquet"]

MANIFEST = ".group.json"
"""File that names the group shown in a folder and the files of the export."""
MAX_MANIFEST_BYTES = 2**20
MAX_REMOVED_BYTES = 2**30
"""Size above which a file of another group is kept, since it would take long to compare."""

COMPARISON = "table-3-against"
"""Name of the table with other results, without suffix."""

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


def export(
    store: Store, out: Path, options: ExportOptions, *, warn: Callable[[str], object] = lambda _: None
) -> list[Path]:
    """Write the exports of a group into ``out``, and return the paths written.

    ``warn`` receives a message on each file in ``out`` that belongs to another group but is kept.

    Raises:
        ExportError: There is nothing to export, or the files could not be written. ``out`` is unchanged then.
    """
    if options.file_format == "tensorboard":
        return _write_event_files(_event_files(store, out, options, warn))
    return _write(store, _chosen_group(store, options), out, options, warn=warn)


def _event_files(store: Store, out: Path, options: ExportOptions, warn: Callable[[str], object]) -> EventFiles:
    """Return the event files of all runs that the options name, comparable or not: TensorBoard chooses among them."""
    choose = partial(matching_runs, preset=options.preset, run_id=options.run, imported=options.imported)
    return EventFiles(store, out, choose, warn)


def _write_event_files(files: EventFiles) -> list[Path]:
    files.update()
    if not files.paths:
        hint = "`lmconsole status` lists the runs."
        raise ExportError(f"nothing to export: {counted(len(files.runs), 'run')}, none of which has started", hint=hint)
    return files.paths


def print_table(store: Store, options: ExportOptions) -> str:
    """Return Table 1, or Table 3 if ``against`` is given, as text; in markdown for the format ``all``.

    Raises:
        ExportError: There is nothing to export, or the format is not text.
    """
    file_format = options.file_format
    if file_format == "html" or file_format == "parquet" or file_format == "tensorboard":
        hint = "Use --format markdown, latex, csv or json."
        raise ExportError(f"-o -: {file_format} is not a table of text", hint=hint)
    group = _chosen_group(store, options)
    table = _comparison(store, group, options.against) if options.against else results_table(group)
    match file_format:
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
    preset, corpus = file_name_part(group.reference.preset), file_name_part(group.reference.corpus.sha256[:8])
    names = ("", preset, f"{preset}-{group.key[:8]}", f"{preset}-{group.key[:8]}-{corpus}")
    free = next((each for each in names if _is_free(out, each, group)), names[-1])
    return _write(store, group, out, ExportOptions(), subfolder=free)


def _is_free(out: Path, name: str, group: Group) -> bool:
    """Return whether ``group`` can be exported to the subfolder ``name`` of ``out``, or to ``out`` itself if empty."""
    try:
        check_folders(out, _in_folder(name, MANIFEST))
    except OSError:
        return False
    return _read_manifest(out / name).is_free_for(group)


def keep_current(
    store: Store,
    out: Path,
    options: ExportOptions,
    report: Callable[[Sequence[Path]], None],
    *,
    warn: Callable[[str], object] = lambda _: None,
) -> None:
    """Export whenever a run has completed an epoch or changed its status, until no run is active. Event files for
    TensorBoard are appended to whenever the log of a run is.

    ``report`` receives the paths after each export; those of event files when there is another one. As long as runs are
    active, a group without a complete epoch is waited for.

    Raises:
        ExportError: As for ``export``.
    """
    if options.file_format == "tensorboard":
        _keep_event_files_current(store, _event_files(store, out, options, warn), report)
        return
    exported: object = None
    while True:
        runs = store.runs()
        active = bool(pending(store, runs))
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


def _keep_event_files_current(store: Store, files: EventFiles, report: Callable[[Sequence[Path]], None]) -> None:
    reported: list[Path] = []
    while True:
        files.update()
        active = bool(pending(store, files.runs))
        if files.paths != reported:
            reported = files.paths
            report(reported)
        if not active:
            _write_event_files(files)  # with what was written between the two
            return
        time.sleep(POLL_S)


def _in_folder(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


class _Manifest(msgspec.Struct, frozen=True):
    """Contents of ``MANIFEST``. It may have been written by anyone."""

    group: str | None = None
    """Key of the group; None if there is no export."""
    corpus_sha256: str | None = None
    """None in exports of version 0.1.0."""
    preset: str = ""
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = {}
    """Hashes of the files as they were written; none in exports of version 0.1.0."""

    def shows(self, group: Group) -> bool:
        return self.group == group.key and self.corpus_sha256 in (None, group.reference.corpus.sha256)

    def is_free_for(self, group: Group) -> bool:
        return self.group is None or self.shows(group)


def _read_manifest(out: Path) -> _Manifest:
    """Read the manifest of a folder; a damaged or missing one counts as no export."""
    try:
        found = msgspec.json.decode(read_file(out / MANIFEST, MAX_MANIFEST_BYTES, follow=False), type=_Manifest)
    except (OSError, *DAMAGED):
        return _Manifest()
    return msgspec.structs.replace(found, files=tuple(name for name in found.files if _EXPORTED.fullmatch(name)))


_EXPORTED = re.compile(
    r"report\.(md|tex|html)|numbers\.tex|figures/captions\.(md|tex)|figures/figure-[0-9]{1,3}\.(png|pdf|svg)"
    rf"|({'|'.join([*TABLES, COMPARISON])})\.({'|'.join(SUFFIXES.values())})"
    rf"|data/({'|'.join(FRAMES)})\.({'|'.join(get_args(DataFormat))})"
)
"""Names of the files that an export can have."""


def _is_unchanged(path: Path, sha256: str | None) -> bool:
    """Return whether a file has the content with which it was exported."""
    try:
        with open(open_file(path, follow=False), "rb") as file:
            if sha256 is None or os.fstat(file.fileno()).st_size > MAX_REMOVED_BYTES:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


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


def _write(
    store: Store,
    group: Group,
    out: Path,
    options: ExportOptions,
    *,
    subfolder: str = "",
    warn: Callable[[str], object] = lambda _: None,
) -> list[Path]:
    """Write the exports into ``out``, or a ``subfolder`` of it, and return the paths. Links in ``out`` are not
    followed."""
    made = dict(_files(store, group, options))
    folder = out / subfolder
    shown = _read_manifest(folder)
    kept = shown.files if shown.shows(group) else ()
    hashes = {name: shown.sha256[name] for name in kept if name in shown.sha256}
    manifest = _Manifest(
        group=group.key,
        corpus_sha256=group.reference.corpus.sha256,
        preset=group.reference.preset,
        files=tuple(sorted({*made, *kept})),
        sha256=hashes | {name: hashlib.sha256(content).hexdigest() for name, content in made.items()},
    )
    changes: dict[str, bytes | None] = dict(made)
    if options.file_format == "all" and not shown.shows(group):
        # Files of another group would be mistaken for files of this one.
        changes |= dict.fromkeys(_removable(out, subfolder, shown, made, warn))
    if options.file_format == "all" or shown.is_free_for(group):
        changes[MANIFEST] = msgspec.json.encode(manifest) + b"\n"
    try:
        _make_room_for_manifest(folder, warn)
        replace_files(out, {_in_folder(subfolder, name): content for name, content in changes.items()})
    except OSError as error:
        raise cannot_be_written(error, out) from None
    return [folder / name for name in made]


def _removable(
    out: Path, subfolder: str, shown: _Manifest, made: Mapping[str, bytes], warn: Callable[[str], object]
) -> Iterator[str]:
    """Yield the files of an export of another group that would remain next to those in ``made``.

    Only files are removed that are as they were exported, so that nothing of anyone else is lost. Others are kept, and
    ``warn`` receives a message.
    """
    for name in sorted(set(shown.files) - set(made)):
        path = out / subfolder / name
        with contextlib.suppress(OSError):
            check_folders(out, _in_folder(subfolder, name))
            if _is_unchanged(path, shown.sha256.get(name)):
                yield name
            elif os.path.lexists(path):
                why = "changed since it was exported" if name in shown.sha256 else "exported by version 0.1.0"
                warn(f"{path}: kept, although it belongs to other runs: {why}. Remove it if you do not need it.")


def _make_room_for_manifest(folder: Path, warn: Callable[[str], object]) -> None:
    """Rename a folder that is in place of the manifest. Raises OSError."""
    manifest = folder / MANIFEST
    if manifest.is_dir() and not manifest.is_symlink():
        renamed = manifest.with_name(f"{MANIFEST}-{secrets.token_hex(4)}")
        manifest.rename(renamed)
        warn(f"{manifest}: this folder is now called {renamed.name}; lmconsole keeps a file here.")


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
    tables = {name: make(group) for name, make in TABLES.items()}
    if options.against:
        tables[COMPARISON] = _comparison(store, group, options.against)
    if options.file_format == "html":
        yield "report.html", _html_page(group, tables).encode()
        return
    text_formats = _TEXT_FORMATS[options.file_format]
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
        against = tables.get(COMPARISON)
        found = numbers.quantities(group, None if against is None else against.data)
        yield "numbers.tex", numbers.to_latex(group, found, siunitx=options.siunitx).encode()
    image_formats: dict[ImageFormat, None] = {"png": None, options.figure_format: None}
    for figure in figures:
        drawn = draw.draw_figure(figure.content)
        for image_format in image_formats:
            yield f"figures/{figure.name}.{image_format}", draw.encode_figure(drawn, image_format)


def _html_page(group: Group, tables: Mapping[str, Table]) -> str:
    """Return the report with its figures in it."""
    from lmconsole.report import draw  # matplotlib is slow to load

    figures = figure_specs(group)
    images = {}
    for figure in figures:
        narrow = draw.in_one_column(figure.content)
        images[figure.number] = SvgImages(
            wide=draw.encode_figure(draw.draw_figure(figure.content), "svg"),
            narrow=None if narrow is None else draw.encode_figure(draw.draw_figure(narrow), "svg"),
        )
    return to_html(group, document.build_report(group, tables, figures, findings(group)), images)


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
