"""Record of the files in an export folder, by which a later export knows what it may replace and remove."""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec

from lmconsole.files import open_file, read_file
from lmconsole.report.claims import TABLE as CLAIMS
from lmconsole.report.export_files import COMPARISON
from lmconsole.report.export_options import DataFormat
from lmconsole.report.result_tables import MEMORY, RESULTS
from lmconsole.report.results import FRAMES
from lmconsole.report.selection import Group
from lmconsole.report.table import SUFFIXES
from lmconsole.report.transaction import check_folders
from lmconsole.runs.events import DAMAGED

MANIFEST = ".group.json"
"""File that names the group shown in a folder and the files of the export."""
MAX_MANIFEST_BYTES = 2**20
MAX_REMOVED_BYTES = 2**30
"""Size above which a file of an earlier export is kept, since it would take long to compare."""


def in_folder(subfolder: str, name: str) -> str:
    """Return the path of a file in a subfolder, which may be empty."""
    return f"{subfolder}/{name}" if subfolder else name


class Manifest(msgspec.Struct, frozen=True):
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
        """Return whether the folder shows this group."""
        return self.group == group.key and self.corpus_sha256 in (None, group.reference.corpus.sha256)

    def is_free_for(self, group: Group) -> bool:
        """Return whether the folder shows this group or none."""
        return self.group is None or self.shows(group)


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a folder; a damaged or missing one counts as no export."""
    try:
        found = msgspec.json.decode(read_file(out / MANIFEST, MAX_MANIFEST_BYTES, follow=False), type=Manifest)
    except (OSError, *DAMAGED):
        return Manifest()
    return msgspec.structs.replace(found, files=tuple(name for name in found.files if _EXPORTED.fullmatch(name)))


_EXPORTED = re.compile(
    r"report\.(md|tex|html)|numbers\.tex|figures/captions\.(md|tex)"
    r"|figures/(figure-[0-9]{1,3}|overview|claims)\.(png|pdf|svg)"
    rf"|({'|'.join([RESULTS, MEMORY, COMPARISON, CLAIMS])})\.({'|'.join(SUFFIXES.values())})"
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


def removable_files(
    out: Path, subfolder: str, shown: Manifest, stale: Iterable[str], warn: Callable[[str], object]
) -> Iterator[str]:
    """Yield the ``stale`` files of an earlier export that are as they were exported, so that nothing of anyone else is
    lost. Others are kept, and ``warn`` receives a message."""
    for name in sorted(stale):
        path = out / subfolder / name
        with contextlib.suppress(OSError):
            check_folders(out, in_folder(subfolder, name))
            if _is_unchanged(path, shown.sha256.get(name)):
                yield name
            elif os.path.lexists(path):
                why = "changed since it was exported" if name in shown.sha256 else "exported by version 0.1.0"
                warn(f"{path}: kept, although it is not part of this export: {why}. Remove it if you do not need it.")


def make_room_for_manifest(folder: Path, warn: Callable[[str], object]) -> None:
    """Rename a folder that is in place of the manifest. Raises OSError."""
    manifest = folder / MANIFEST
    if manifest.is_dir() and not manifest.is_symlink():
        renamed = manifest.with_name(f"{MANIFEST}-{secrets.token_hex(4)}")
        manifest.rename(renamed)
        warn(f"{manifest}: this folder is now called {renamed.name}; lmconsole keeps a file here.")
