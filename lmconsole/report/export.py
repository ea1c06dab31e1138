"""Writing the tables: each file replaced whole or not at all, the same data giving the same bytes."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from lmconsole.errors import ExportError
from lmconsole.report.groups import Group, choose_group
from lmconsole.report.tables import DOCUMENTS, SUFFIXES, Form, results_document
from lmconsole.runs.store import Store

Format = Literal["markdown", "latex", "csv", "all"]
GROUP_FILE = ".group.json"
"""Which group the files beside it show."""


def export_tables(
    store: Store, out: Path, form: Format, *, preset: str | None = None, run: str | None = None
) -> list[Path]:
    """Write the tables of a group into ``out``; the paths written. Raises ExportError."""
    return write_group(choose_group(store.runs(), preset=preset, run=run), out, form)


def print_table(store: Store, form: Format, *, preset: str | None = None, run: str | None = None) -> str:
    """Table 1 as text, markdown if all formats are as good. Raises ExportError."""
    group = choose_group(store.runs(), preset=preset, run=run)
    return results_document(group).render("markdown" if form == "all" else form)


def export_automatically(store: Store, out: Path) -> list[Path]:
    """What the runner does when the queue drains: like ``export_tables``, but where ``out`` shows another group, into a
    folder in it that is named for the preset. Raises ExportError."""
    group = choose_group(store.runs())
    preset = group.reference.preset
    places = (out, out / preset, out / f"{preset}-{group.key[:8]}")
    free = next((place for place in places if _shown_group(place) in (None, group.key)), places[-1])
    return write_group(group, free, "all")


def _shown_group(out: Path) -> str | None:
    try:
        found = msgspec.json.decode((out / GROUP_FILE).read_bytes())
        return str(found["group"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None


def write_group(group: Group, out: Path, form: Format) -> list[Path]:
    """Write every table of ``group`` into ``out``. Raises ExportError if that cannot be done."""
    forms: Sequence[Form] = ("markdown", "latex", "csv") if form == "all" else (form,)
    texts = {
        f"{name}.{SUFFIXES[each]}": document.render(each)
        for name, make in DOCUMENTS.items()
        for document in [make(group)]
        for each in forms
    }
    label = {"group": group.key, "preset": group.reference.preset}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _replace(out / name, text)
        if form == "all" or _shown_group(out) is None:
            _replace(out / GROUP_FILE, msgspec.json.encode(label).decode() + "\n")
    except OSError as error:
        raise ExportError(
            f"{error.filename or out}: cannot be written: {error.strerror}", hint="--out names another folder."
        ) from None
    return [out / name for name in texts]


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
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
