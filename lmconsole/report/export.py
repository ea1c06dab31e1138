"""Writing the exports: everything is made before the first file is touched, each file is replaced whole or not at all,
and the same data gives the same bytes."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
import pandas as pd

from lmconsole.errors import ExportError
from lmconsole.report import document
from lmconsole.report.against import against_document, group_results, published_results
from lmconsole.report.figures import illustrations
from lmconsole.report.findings import findings
from lmconsole.report.markup import SUFFIXES, Document, Form, Picture, frame_to_csv
from lmconsole.report.result_tables import DOCUMENTS, results_document
from lmconsole.report.results import FRAMES
from lmconsole.report.selection import Group, choose_group
from lmconsole.runs.store import Store

Format = Literal["markdown", "latex", "csv", "json", "parquet", "all"]

GROUP_FILE = ".group.json"
"""Which group the files beside it show, and which files those are."""

POLL_S = 2.0
"""How often ``keep_current`` looks for news."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how."""

    form: Format = "all"
    figures: Picture = "png"
    """A format of the figures besides PNG."""
    preset: str | None = None
    run: str | None = None
    imported: bool | None = None
    against: str | None = None
    """``published``, ``imported``, or the folder of another store."""
    siunitx: bool = False


def chosen_group(store: Store, options: ExportOptions) -> Group:
    """The group that ``options`` ask for. Raises ExportError."""
    return choose_group(store.runs(), preset=options.preset, run=options.run, imported=options.imported)


def export(store: Store, out: Path, options: ExportOptions) -> list[Path]:
    """Write the exports of a group into ``out``; the paths written. Raises ExportError."""
    return _write(store, chosen_group(store, options), out, options)


def print_table(store: Store, options: ExportOptions) -> str:
    """Table 1 as text, or what ``against`` asks for; markdown if all formats are as good. Raises ExportError."""
    if options.form == "parquet":
        raise ExportError("-o -: parquet is not text", hint="--format csv and json are.")
    group = chosen_group(store, options)
    table = _against(store, group, options.against) if options.against else results_document(group)
    match options.form:
        case "json":
            return _to_json(table.data)
        case "all":
            return table.render("markdown")
        case form:
            return table.render(form, siunitx=options.siunitx)


def export_automatically(store: Store, out: Path) -> list[Path]:
    """What the runner does when the queue drains: like ``export``, but where ``out`` shows another group, into a folder
    in it that is named for the preset. Raises ExportError."""
    group = choose_group(store.runs())
    preset = group.reference.preset
    places = (out, out / preset, out / f"{preset}-{group.key[:8]}")
    free = next((place for place in places if _shown(place).group in (None, group.key)), places[-1])
    return _write(store, group, free, ExportOptions())


def keep_current(store: Store, out: Path, options: ExportOptions, wrote: Callable[[Sequence[Path]], None]) -> None:
    """Export whenever a run of the store has completed an epoch or ended, until none is active; ``wrote`` is told each
    time. Waits while what is asked for has no epoch yet. Raises ExportError."""
    before: object = None
    while True:
        runs = store.runs()
        active = any(run.status.active for run in runs)
        now = [(run.run, run.status, len(run.state.epochs)) for run in runs]
        if now != before:
            try:
                group = chosen_group(store, options)
            except ExportError:
                if not active:
                    raise
            else:
                wrote(_write(store, group, out, options))
                before = now
        if not active:
            return
        time.sleep(POLL_S)


def _against(store: Store, group: Group, against: str) -> Document:
    """Table 3. Raises ExportError if there is nothing to compare with."""
    if against == "published":
        return against_document(group, published_results(group))
    if against == "imported":
        return against_document(group, group_results(group, choose_group(store.runs(), imported=True), "Imported"))
    folder = Path(against)
    if not folder.is_dir():
        raise ExportError(
            f"--against {against}: no such folder",
            hint="--against takes published, imported, or the folder of a store.",
        )
    other = Store(folder).runs()
    preset = group.reference.preset
    preset_there = preset if any(run.info.preset == preset and run.state.epochs for run in other) else None
    try:
        found = choose_group(other, preset=preset_there)
    except ExportError as error:
        raise ExportError(f"--against {against}: {error.message}", hint=error.hint) from None
    return against_document(group, group_results(group, found, "Other store"))


def _write(store: Store, group: Group, out: Path, options: ExportOptions) -> list[Path]:
    files = dict(_files(store, group, options))
    shown = _shown(out)
    ours = shown.group == group.key
    label = _Shown(
        group=group.key,
        preset=group.reference.preset,
        files=tuple(sorted({*files, *(shown.files if ours else ())})),
    )
    try:
        for name, content in files.items():
            _replace(out / name, content)
        if options.form == "all" and not ours:
            for name in set(shown.files) - set(files):  # it would show other runs than the files beside it
                (out / name).unlink(missing_ok=True)
        if options.form == "all" or ours or shown.group is None:
            _replace(out / GROUP_FILE, msgspec.json.encode(label) + b"\n")
    except OSError as error:
        where = error.filename2 or error.filename or out
        raise ExportError(f"{where}: cannot be written: {error.strerror}", hint="--out names another folder.") from None
    return [out / name for name in files]


_FORMS: Mapping[Format, Sequence[Form]] = {
    "markdown": ("markdown",),
    "latex": ("latex",),
    "csv": ("csv",),
    "all": ("markdown", "latex", "csv"),
}


def _files(store: Store, group: Group, options: ExportOptions) -> Iterator[tuple[str, bytes]]:
    """Every file of the export by its path under the folder, in the order in which it is worth reading."""
    if options.form == "parquet":
        _need_pyarrow()
    if options.form in ("json", "parquet"):
        yield from _frames(group, options.form)
        return
    forms = _FORMS[options.form]
    tables = {name: make(group) for name, make in DOCUMENTS.items()}
    if options.against:
        tables["table-3-against"] = _against(store, group, options.against)
    if options.form != "csv":
        yield from _write_up(group, tables, forms, options)
    for name, table in tables.items():
        for form in forms:
            yield f"{name}.{SUFFIXES[form]}", table.render(form, siunitx=options.siunitx).encode()
    if "csv" in forms:
        yield from _frames(group, "csv")


def _write_up(
    group: Group, tables: dict[str, Document], forms: Sequence[Form], options: ExportOptions
) -> Iterator[tuple[str, bytes]]:
    """Report, captions and figures."""
    from lmconsole.report.draw import encoded

    figures = illustrations(group)
    blocks = document.report(group, tables, figures, findings(group))
    if "markdown" in forms:
        captions = "\n\n".join(document.caption_markdown(figure) for figure in figures)
        yield "report.md", document.to_markdown(group, blocks).encode()
        yield "figures/captions.md", f"{captions}\n".encode()
    if "latex" in forms:
        captions = "\n".join(document.caption_latex(figure) for figure in figures)
        yield "report.tex", document.to_latex(group, blocks, siunitx=options.siunitx).encode()
        yield "figures/captions.tex", f"{captions}\n".encode()
    for figure in figures:
        drawn = figure.draw()
        for form in dict.fromkeys(("png", options.figures)):
            yield f"figures/{figure.name}.{form}", encoded(drawn, form)


def _frames(group: Group, form: Literal["csv", "json", "parquet"]) -> Iterator[tuple[str, bytes]]:
    for name, make in FRAMES.items():
        yield f"data/{name}.{form}", _encoded(make(group), form)


def _encoded(frame: pd.DataFrame, form: Literal["csv", "json", "parquet"]) -> bytes:
    if form == "csv":
        return frame_to_csv(frame).encode()
    if form == "json":
        return _to_json(frame).encode()
    return bytes(frame.to_parquet(None, index=False, engine="pyarrow"))


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ExportError(
            "--format parquet needs pyarrow, which is not installed", hint="pip install 'lmconsole[parquet]'"
        ) from None


def _to_json(frame: pd.DataFrame) -> str:
    """One object a row; what is unknown or not a finite number is null."""
    return frame.to_json(orient="records", indent=1, double_precision=15) + "\n"


class _Shown(msgspec.Struct, frozen=True):
    """What GROUP_FILE says."""

    group: str | None = None
    preset: str = ""
    files: tuple[str, ...] = ()


def _shown(out: Path) -> _Shown:
    try:
        found = msgspec.json.decode((out / GROUP_FILE).read_bytes(), type=_Shown)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Shown()
    ours = tuple(name for name in found.files if ".." not in PurePosixPath(name).parts and not name.startswith("/"))
    return msgspec.structs.replace(found, files=ours)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
