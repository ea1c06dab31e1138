"""`lmconsole import`: runs made elsewhere into the store."""

from pathlib import Path

from lmconsole.commands.output import print_data, print_message
from lmconsole.errors import ExitCode, LmconsoleError
from lmconsole.importing.import_runs import import_runs as import_into
from lmconsole.plan.load import load_plan
from lmconsole.runs.store import Store


def import_runs(root: Path, source: Path, experiments: Path | None) -> ExitCode:
    """Import the runs in ``source`` into the store at ``root``, and print what became of each.

    The exit code is RUN_FAILED if only some could be imported, and USAGE if none could.
    """
    try:
        report = import_into(Store(root), source, load_plan(experiments))
    except UnicodeEncodeError:
        raise LmconsoleError(f"{source}: the name of a folder here is not UTF-8; rename it, or link to it") from None
    for place, run in report.imported.items():
        print_data(f"{run}: imported from {place}")
    for place, run in report.imported_before.items():
        print_data(f"{run}: already imported from {place}")
    for problem in report.problems:
        print_message(f"not imported: {problem}")
    if not report.problems:
        return ExitCode.OK
    return ExitCode.RUN_FAILED if report.imported or report.imported_before else ExitCode.USAGE
