"""`lmconsole export`: write figures, tables and the report, or print a table."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmconsole.commands.output import print_data, print_message
from lmconsole.errors import LmconsoleError
from lmconsole.formatting import counted
from lmconsole.runs.store import Store

if TYPE_CHECKING:
    from lmconsole.report.export import ExportOptions


def export(root: Path, options: "ExportOptions", out: Path, *, output: str | None, watch: bool) -> None:
    """Export a group of runs from the store at ``root`` into the folder ``out`` and print the paths.

    With ``output`` "-" print the results table instead; with ``watch`` export again as runs progress. Raises
    LmconsoleError if options contradict each other or nothing can be exported.
    """
    from lmconsole.report.export import export as write
    from lmconsole.report.export import keep_current, print_table
    from lmconsole.report.tensorboard import FOLDER

    event_files = options.file_format == "tensorboard"
    store = Store(root, recent=1 if event_files else None)
    how_to_view = f"View them with: tensorboard --logdir {shlex.quote(str(out / FOLDER))}"
    if options.run:
        options = replace(options, run=store.find(options.run).run)
    if output is not None:
        if output != "-":
            raise LmconsoleError("-o accepts only -, for standard output; use --out for a folder")
        if watch:
            raise LmconsoleError("-o -: --watch writes files", hint="Leave one of the two out.")
        print_data(print_table(store, options).removesuffix("\n"))
    elif watch:
        folder = out.absolute()
        if event_files:
            print_message(how_to_view)
        keep_current(
            store,
            folder,
            options,
            lambda paths: print_data(f"{counted(len(paths), 'file')}: {folder}"),
            warn=print_message,
        )
    else:
        for path in write(store, out.absolute(), options, warn=print_message):
            print_data(str(path))
        if event_files:
            print_message(how_to_view)
