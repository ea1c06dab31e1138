"""`lmconsole import`: runs made elsewhere into the store."""

from collections.abc import Sequence
from pathlib import Path

from lmconsole.commands.output import print_data, print_message
from lmconsole.errors import ExitCode
from lmconsole.formatting import counted
from lmconsole.importing.import_runs import import_runs as import_into
from lmconsole.plan.load import load_plan
from lmconsole.runs.store import Store

MOST_PROBLEMS = 100
"""Most problems that are printed; the others are counted."""

LONGEST_PROBLEM = 1_000
"""Most characters of a problem."""


def import_runs(root: Path, source: Path, experiments: Path | None) -> ExitCode:
    """Import the runs in ``source`` into the store at ``root``, and print what became of each.

    The exit code is RUN_FAILED if only some could be imported, and USAGE if none could.
    """
    report = import_into(Store(root), source, load_plan(experiments))
    for place, run in report.imported.items():
        print_data(f"{run}: imported from {place}")
    for place, update in report.updated.items():
        print_data(
            f"{update.run}: updated from {place}: {update.changes}; "
            f"the earlier import, {update.replaced}, is in the trash"
        )
    for place, run in report.imported_before.items():
        print_data(f"{run}: already imported from {place}")
    for note, places in report.notes.items():
        print_message(f"note: {_name_places(places)}: {note}")
    for problem in report.problems[:MOST_PROBLEMS]:
        print_message(f"not imported: {_shorten(problem)}")
    if (more := len(report.problems) - MOST_PROBLEMS) > 0:
        print_message(f"not imported: {more:,} more")
    if not report.problems:
        return ExitCode.OK
    return ExitCode.RUN_FAILED if report.imported or report.updated or report.imported_before else ExitCode.USAGE


def _name_places(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {counted(len(places) - 1, 'other run')}"


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_PROBLEM else f"{text[:LONGEST_PROBLEM]} …"
