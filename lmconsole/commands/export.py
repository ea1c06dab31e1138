"""`lmconsole export`: write figures, tables and the report, or print a table."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmconsole.commands.output import print_data, print_json, print_json_line, print_message
from lmconsole.errors import LmconsoleError
from lmconsole.formatting import counted
from lmconsole.runs.store import Store

if TYPE_CHECKING:
    from lmconsole.report.export_options import ExportOptions


class ExportResult(msgspec.Struct, frozen=True, kw_only=True):
    """Files of an export, as `export --json` prints them; with `--watch` on one line after each export."""

    folder: str
    """Absolute path of the folder."""
    files: tuple[str, ...]
    """Absolute paths of the files that were written, the most useful first."""


def export(root: Path, options: "ExportOptions", out: Path, *, output: str | None, watch: bool, json: bool) -> None:
    """Export a group of runs from the store at ``root`` into the folder ``out`` and print the paths.

    With ``output`` "-" print the results table instead; with ``watch`` export again as runs progress. Raises
    LmconsoleError if options contradict each other or nothing can be exported.
    """
    from lmconsole.report.export import export as write
    from lmconsole.report.export import keep_current, print_table
    from lmconsole.report.tensorboard import FOLDER, require_tensorboard

    if json and output is not None:
        raise LmconsoleError("-o -: --json lists files, and none is written", hint="Use --format json for the table.")
    _check_effect(options)
    event_files = options.file_format == "tensorboard"
    store, folder = Store(root, recent=1 if event_files else None), out.absolute()
    program = "tensorboard" if shutil.which("tensorboard") else f"{shlex.quote(sys.executable)} -m tensorboard.main"
    how_to_view = f"View them with: {program} --logdir {shlex.quote(str(out / FOLDER))}"
    if options.run:
        options = replace(options, run=store.find(options.run).run)
    if output is not None:
        if output != "-":
            raise LmconsoleError("-o accepts only -, for standard output; use --out for a folder")
        if watch:
            raise LmconsoleError("-o -: --watch writes files", hint="Leave one of the two out.")
        print_data(print_table(store, options).removesuffix("\n"))
    elif watch:
        if event_files:
            require_tensorboard()
            print_message(how_to_view)
        keep_current(store, folder, options, lambda paths: _report_again(folder, paths, json=json), warn=print_message)
    else:
        paths = write(store, folder, options, warn=print_message)
        if json:
            print_json(_result(folder, paths))
        else:
            for path in paths:
                print_data(str(path))
        if event_files:
            print_message(how_to_view)


def _check_effect(options: "ExportOptions") -> None:
    """Raise LmconsoleError if an option has no effect on the chosen format."""
    has_effect = {
        "--figures": options.figure_format == "png" or options.file_format in ("all", "markdown", "latex"),
        "--siunitx": not options.siunitx or options.file_format in ("all", "latex"),
        "--template": options.template is None or options.file_format in ("all", "markdown", "latex", "html"),
        "--against": not options.against or options.file_format != "tensorboard",
    }
    for option, effect in has_effect.items():
        if not effect:
            raise LmconsoleError(f"{option} has no effect on --format {options.file_format}", hint="Leave it out.")


def _report_again(folder: Path, paths: Sequence[Path], *, json: bool) -> None:
    if json:
        print_json_line(_result(folder, paths))
    else:
        print_data(f"{counted(len(paths), 'file')}: {folder}")


def _result(folder: Path, paths: Sequence[Path]) -> ExportResult:
    return ExportResult(folder=str(folder), files=tuple(map(str, paths)))
