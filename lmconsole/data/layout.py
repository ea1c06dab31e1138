"""The files of a corpus folder: which belongs to which split, by their names.

A name is ``train.txt``, ``ptb.train.txt``, ``wiki.valid.tokens`` or ``val.npy``: any beginning, the split, an ending
for text or for token ids, and ``.gz`` if it is packed. The ending decides whether a file is read as text or as ids, and
its content everything else: npz or npy, packed or not.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmconsole.data.cache import SPLITS
from lmconsole.data.files import list_folder
from lmconsole.errors import CorpusError

Kind = Literal["npz", "text"]
"""Token ids (npz or npy), or text. These words are in run.json."""

_NAME = re.compile(
    r"(?!\.)(?:.*[._-])?(?P<split>train|valid|validation|val|dev|test)"
    r"\.(?:(?P<text>txt|tokens|raw)|npz|npy)(?:\.gz)?",
    re.IGNORECASE | re.DOTALL,
)
_VALIDATION = ("valid", "validation", "val", "dev")

LISTED = 5
"""Most files of one split that a message names."""

FOLDER_HINT = (
    "A corpus folder contains train.txt, valid.txt and test.txt, or token ids as wiki.train.npz, wiki.validation.npz "
    "and wiki.test.npz. Names may begin differently (ptb.train.txt) and end in .txt, .tokens, .raw, .npz or .npy, with "
    ".gz if packed; validation may also be called valid, val or dev."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A file of a corpus. ``pattern`` is its name before and after the split, to name files that are missing."""

    name: str
    split: str
    kind: Kind
    pattern: tuple[str, str]


def split_files(names: Collection[str]) -> list[str]:
    """Return those of these file names that belong to a split, in order."""
    return sorted(name for name in names if _NAME.fullmatch(name))


def corpus_files(folder: Path, names: Collection[str], only: Kind | None = None) -> tuple[Kind, dict[str, Path]]:
    """Return the kind of a corpus folder and the file of each split.

    Args:
        names: names of the files in ``folder``.
        only: leave out files of the other kind.

    Raises:
        CorpusError: a split is missing, has several files, or is text where another is ids.
    """
    found = {split: _parts(names, split, only) for split in SPLITS}
    several = [split for split in SPLITS if len(found[split]) > 1]
    if several:
        pairs = "; ".join(f"{split}: {_listed([part.name for part in found[split]])}" for split in several)
        raise CorpusError(
            f"{folder}: contains several files for one split: {pairs}",
            hint="Keep one for each split, and move or rename the others.",
        )
    parts = [found[split][0] for split in SPLITS if found[split]]
    if not parts:
        raise CorpusError(f"{folder}: no corpus in this folder", hint=FOLDER_HINT)
    if len(parts) < len(SPLITS):
        missing = _listed([_name_for(split, parts[0]) for split in SPLITS if not found[split]])
        have = ", ".join(part.name for part in parts)
        raise CorpusError(
            f"{folder}: {len(parts)} of 3 splits: {have} without {missing}",
            hint=f"Add {missing} to the folder. {FOLDER_HINT}",
        )
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        mixed = ", ".join(f"{part.name} ({'text' if part.kind == 'text' else 'token ids'})" for part in parts)
        raise CorpusError(
            f"{folder}: text and token ids in one corpus: {mixed}", hint="All three splits must be of one kind."
        )
    return kinds.pop(), {part.split: folder / part.name for part in parts}


def _parts(names: Collection[str], split: str, only: Kind | None) -> list[_Part]:
    """Return the files of one split, by name."""
    parts = []
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        word = match["split"].lower()
        kind: Kind = "text" if match["text"] else "npz"
        if split == ("validation" if word in _VALIDATION else word) and only in (None, kind):
            pattern = name[: match.start("split")], name[match.end("split") :]
            parts.append(_Part(name=name, split=split, kind=kind, pattern=pattern))
    return parts


def _name_for(split: str, like: _Part) -> str:
    """Return a name for the file of ``split`` next to the file ``like``."""
    word = "valid" if split == "validation" and like.kind == "text" else split
    return word.join(like.pattern)


def _listed(names: Sequence[str]) -> str:
    """Return the names as in "a, b and c", the first of many."""
    if len(names) > LISTED:
        names = [*names[:LISTED], f"{len(names) - LISTED:,} more"]
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def next_to(path: Path, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that exist in the folder ``path``, or in the folder of the file ``path``."""
    folder = folder_of(path)
    return [name for name in names if os.path.lexists(folder / name)]


def folder_of(path: Path) -> Path:
    """Return the folder of a corpus: ``path`` itself, or the folder that contains the text file ``path``."""
    return path if os.path.isdir(path) else path.parent


def is_text(path: Path) -> bool:
    """Return whether a corpus is text: a single file, which can be nothing else, or a folder with text for a split.
    Raises CorpusError for a folder that cannot be read."""
    if not os.path.isdir(path):
        return os.path.isfile(path)
    return any((match := _NAME.fullmatch(name)) and match["text"] for name in list_folder(path))
