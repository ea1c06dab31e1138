"""notes.json: the note and the tags of a run. People change them at any time, and nothing that is computed uses them.

This module is the only writer. Writers of one store take turns by ``.notes.lock``, so no change is lost, and the file
is replaced as a whole, so readers need no lock.
"""

import os
import re
from collections.abc import Collection
from typing import Annotated

import msgspec

from lmconsole.errors import LmconsoleError, StoreError
from lmconsole.files import atomic_write, read_file
from lmconsole.runs import lock
from lmconsole.runs.events import DAMAGED
from lmconsole.runs.paths import NOTES_LOCK, RunPaths

MAX_BYTES = 64 * 1024
"""Size of the largest notes.json that is read."""
MAX_NOTE, MAX_TAGS, MAX_TAG = 2_000, 32, 32
"""Characters of a note, number of tags, and characters of a tag."""
LOCK_TIMEOUT_S = 10.0
_TAG = rf"^[\w.+-]{{1,{MAX_TAG}}}\Z"

Tag = Annotated[str, msgspec.Meta(pattern=_TAG)]


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """Content of notes.json."""

    note: Annotated[str, msgspec.Meta(max_length=MAX_NOTE)] = ""
    tags: Annotated[tuple[Tag, ...], msgspec.Meta(max_length=MAX_TAGS)] = ()

    @property
    def text(self) -> str:
        """Tags, with ``#`` in front, and the note on one line. The text can contain control characters."""
        return " ".join([*(f"#{tag}" for tag in self.tags), *self.note.split()])


NO_NOTES = Notes()
_decoder = msgspec.json.Decoder(Notes)


def parse_tag(text: str) -> str:
    """Return the tag that a person wrote, with or without ``#``.

    Raises:
        LmconsoleError: it has characters that a tag cannot have, or too many.
    """
    tag = text.strip().removeprefix("#")
    if re.search(_TAG, tag) is None:
        raise LmconsoleError(
            f"{text[:80]!r} cannot be a tag",
            hint=f"A tag has 1 to {MAX_TAG} letters, digits, or characters of the set _ . + -",
        )
    return tag


def read_notes(paths: RunPaths) -> Notes:
    """Return the notes of a run; ``NO_NOTES`` if it has none.

    Raises:
        StoreError: the file cannot be read, or is not a notes.json.
    """
    path = paths.notes
    try:
        return _decoder.decode(read_file(path, MAX_BYTES, follow=False))
    except FileNotFoundError:
        return NO_NOTES
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}", hint="Remove it to write notes again.") from None
    except DAMAGED as error:
        raise StoreError(f"{path}: not notes of a run: {error}", hint="Remove it to write notes again.") from None


def change_notes(
    paths: RunPaths, *, note: str | None = None, add: Collection[str] = (), remove: Collection[str] = ()
) -> Notes:
    """Change the note of a run, if one is given, and add and remove tags. Return its notes after that.

    An empty note removes it. Without a note and tags, the file is removed. Tags are those that ``parse_tag`` returns.

    Raises:
        LmconsoleError: the note or the list of tags becomes too long.
        StoreError: the present notes cannot be read, or the new ones cannot be written.
    """
    file = paths.folder.parent / NOTES_LOCK
    try:
        with lock.held(file, LOCK_TIMEOUT_S) as held:
            if held is None:
                raise StoreError(f"{file}: another command is changing notes", hint="Try again later.")
            file = paths.notes
            return _change(paths, note, add, remove)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or "the note is not Unicode text"
        raise StoreError(f"{file}: cannot be written: {reason}") from None


def _change(paths: RunPaths, note: str | None, add: Collection[str], remove: Collection[str]) -> Notes:
    """Change the notes while the lock is held. Raises OSError or UnicodeEncodeError if they cannot be written."""
    if os.path.islink(paths.folder):
        raise StoreError(f"{paths.folder}: expected a folder, found a symbolic link, which is not followed")
    old = read_notes(paths)
    tags = [tag for tag in dict.fromkeys((*old.tags, *add)) if tag not in remove]
    new = Notes(note=old.note if note is None else " ".join(note.split()), tags=tuple(tags))
    if len(new.note) > MAX_NOTE:
        raise LmconsoleError(f"{paths.run}: a note has at most {MAX_NOTE:,} characters, not {len(new.note):,}")
    if len(new.tags) > MAX_TAGS:
        raise LmconsoleError(f"{paths.run}: a run has at most {MAX_TAGS} tags, not {len(new.tags)}")
    if new != old:
        _write(paths, new)
    return new


def _write(paths: RunPaths, notes: Notes) -> None:
    if notes == NO_NOTES:
        paths.notes.unlink(missing_ok=True)
    else:
        encoded = msgspec.json.format(msgspec.json.encode(notes), indent=2) + b"\n"
        with atomic_write(paths.notes) as file:
            file.write(encoded)
