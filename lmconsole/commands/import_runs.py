"""`lmconsole import`: runs made elsewhere into the store."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmconsole.commands.output import print_data, print_json, print_message
from lmconsole.errors import ExitCode
from lmconsole.formatting import counted
from lmconsole.importing.import_runs import ImportReport
from lmconsole.importing.import_runs import import_runs as import_into
from lmconsole.plan.load import load_plan
from lmconsole.runs.store import Store

MOST_PROBLEMS = 100
"""Most problems that are printed; the others are counted."""

LONGEST_PROBLEM = 1_000
"""Most characters of a problem."""


class ImportedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source, and the run that has its results."""

    source: str
    """Place of the source: a folder, or a file and lines of it."""
    run: str
    """Id of the run in the store."""


class UpdatedSource(ImportedSource, frozen=True, kw_only=True):
    """A source that has more than when it was imported."""

    replaced: str
    """Id of the earlier import, which is in the trash now."""
    changes: str
    """Parts of the source that are new."""


class ImportNote(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was inferred or left out."""

    note: str
    """Message for people."""
    sources: tuple[str, ...]
    """Places of the sources that it concerns."""


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an import, as `import --json` prints it."""

    imported: tuple[ImportedSource, ...]
    """Sources that are new runs."""
    updated: tuple[UpdatedSource, ...]
    """Sources whose runs were replaced."""
    imported_before: tuple[ImportedSource, ...]
    """Sources that have nothing new."""
    notes: tuple[ImportNote, ...]
    """Everything that was inferred or left out."""
    problems: tuple[str, ...]
    """Sources that could not be imported, and the reasons."""


def import_runs(root: Path, source: Path, experiments: Path | None, *, json: bool) -> ExitCode:
    """Import the runs in ``source`` into the store at ``root``, and print what became of each.

    The exit code is RUN_FAILED if only some could be imported, and USAGE if none could.
    """
    report = import_into(Store(root), source, load_plan(experiments))
    if json:
        print_json(_result(report))
    else:
        _print_runs(report)
    for note, places in report.notes.items():
        print_message(f"note: {_name_places(places)}: {note}")
    for problem in report.problems[:MOST_PROBLEMS]:
        print_message(f"not imported: {_shorten(problem)}")
    if (more := len(report.problems) - MOST_PROBLEMS) > 0:
        print_message(f"not imported: {more:,} more")
    if not report.problems:
        return ExitCode.OK
    return ExitCode.RUN_FAILED if report.imported or report.updated or report.imported_before else ExitCode.USAGE


def _print_runs(report: ImportReport) -> None:
    for place, run in report.imported.items():
        print_data(f"{run}: imported from {place}")
    for place, update in report.updated.items():
        print_data(
            f"{update.run}: updated from {place}: {update.changes}; "
            f"the earlier import, {update.replaced}, is in the trash"
        )
    for place, run in report.imported_before.items():
        print_data(f"{run}: already imported from {place}")


def _result(report: ImportReport) -> ImportResult:
    return ImportResult(
        imported=tuple(ImportedSource(source=place, run=run) for place, run in report.imported.items()),
        updated=tuple(
            UpdatedSource(source=place, run=update.run, replaced=update.replaced, changes=update.changes)
            for place, update in report.updated.items()
        ),
        imported_before=tuple(ImportedSource(source=place, run=run) for place, run in report.imported_before.items()),
        notes=tuple(ImportNote(note=note, sources=tuple(places)) for note, places in report.notes.items()),
        problems=tuple(report.problems),
    )


def _name_places(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {counted(len(places) - 1, 'other run')}"


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_PROBLEM else f"{text[:LONGEST_PROBLEM]} …"
