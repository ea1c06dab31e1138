"""Writing of exports.

All contents are made before the first file is replaced, an export that fails leaves the earlier one untouched, and
equal data give equal bytes.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from lmconsole.errors import ExportError
from lmconsole.files import file_name_part
from lmconsole.formatting import counted
from lmconsole.report.document import choose_template
from lmconsole.report.export_files import can_be_made, comparison, export_files, report_tables, to_json
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.manifest import (
    MANIFEST,
    Manifest,
    in_folder,
    make_room_for_manifest,
    read_manifest,
    removable_files,
)
from lmconsole.report.result_tables import RESULTS
from lmconsole.report.selection import Group, choose_group, matching_runs
from lmconsole.report.tensorboard import EventFiles
from lmconsole.report.transaction import cannot_be_written, check_folders, replace_files
from lmconsole.runs.permissions import pending
from lmconsole.runs.store import Store

POLL_S = 2.0
"""Seconds between two reads of the store in ``keep_current``."""


def export(
    store: Store, out: Path, options: ExportOptions, *, warn: Callable[[str], object] = lambda _: None
) -> list[Path]:
    """Write the exports of a group into ``out``, and return the paths written.

    Files of an earlier export that are not part of this one are removed if they have the same formats, or if this is an
    export of everything and they belong to another group. ``warn`` receives a message on each such file that has been
    changed, and is kept.

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
    if options.against:
        table = comparison(store, group, options.against)
    else:
        table = report_tables(group, options.template or choose_template(group))[RESULTS]
    match file_format:
        case "json":
            return to_json(table.data)
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
        check_folders(out, in_folder(name, MANIFEST))
    except OSError:
        return False
    return read_manifest(out / name).is_free_for(group)


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
                report(_write(store, group, out, options, warn=warn))
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


def _chosen_group(store: Store, options: ExportOptions) -> Group:
    return choose_group(store.runs(), preset=options.preset, run_id=options.run, imported=options.imported)


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
    made = dict(export_files(store, group, options))
    folder = out / subfolder
    shown = read_manifest(folder)
    same = shown.shows(group)
    # What this export could have made but has not would be mistaken for a part of it, and so would files of another
    # group if it is an export of everything.
    stale = {name for name in shown.files if can_be_made(name, options.file_format)} if same else set(shown.files)
    stale -= made.keys()
    kept = set(shown.files) - stale if same else set()
    hashes = {name: shown.sha256[name] for name in kept if name in shown.sha256}
    manifest = Manifest(
        group=group.key,
        corpus_sha256=group.reference.corpus.sha256,
        preset=group.reference.preset,
        files=tuple(sorted({*made, *kept})),
        sha256=hashes | {name: hashlib.sha256(content).hexdigest() for name, content in made.items()},
    )
    changes: dict[str, bytes | None] = dict(made)
    if options.file_format == "all" or same:
        changes |= dict.fromkeys(removable_files(out, subfolder, shown, stale, warn))
    if options.file_format == "all" or shown.is_free_for(group):
        changes[MANIFEST] = msgspec.json.encode(manifest) + b"\n"
    try:
        make_room_for_manifest(folder, warn)
        replace_files(out, {in_folder(subfolder, name): content for name, content in changes.items()})
    except OSError as error:
        raise cannot_be_written(error, out) from None
    return [folder / name for name in made]
