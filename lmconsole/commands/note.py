"""`lmconsole note`: show and change the note and the tags of runs."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmconsole.commands.output import print_data, print_json, print_message
from lmconsole.errors import StoreError
from lmconsole.runs.notes import change_notes, parse_tag
from lmconsole.runs.store import Store


class RunNotes(msgspec.Struct, frozen=True, kw_only=True):
    """Note and tags of one run, as `note --json` prints them."""

    run: str
    """Id of the run: the name of its folder."""
    note: str | None
    """Note; null if there is none."""
    tags: tuple[str, ...]
    """Tags, in the order in which they were added."""


def note(
    root: Path, names: Sequence[str], text: str | None, add: Sequence[str], remove: Sequence[str], *, json: bool
) -> None:
    """Change the notes of the named runs, if a note or tags are given, and print them."""
    tags, gone = [[parse_tag(each) for each in given] for given in (add, remove)]
    store = Store(root)
    runs = list({run.run: run for run in [store.find(name) for name in names]}.values())
    for run in runs:
        if run.notes_problem:
            raise StoreError(run.notes_problem)
    if text is not None or tags or gone:
        found = [(run, change_notes(run.paths, note=text, add=tags, remove=gone)) for run in runs]
    else:
        found = [(run, run.notes) for run in runs]
    if json:
        print_json([RunNotes(run=run.run, note=notes.note or None, tags=notes.tags) for run, notes in found])
        return
    for run, notes in found:
        if notes.text:
            print_data(f"{run.run}  {notes.text}")
        else:
            print_message(f"{run.run}: no note and no tags")
