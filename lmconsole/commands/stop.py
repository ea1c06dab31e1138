"""`lmconsole stop`: ask runs to stop."""

from collections.abc import Sequence
from pathlib import Path

from lmconsole.commands.output import print_message
from lmconsole.engine.submit import stop_runs
from lmconsole.errors import LmconsoleError
from lmconsole.runs.store import Store


def stop(root: Path, names: Sequence[str], *, everything: bool) -> None:
    """Ask the named runs of the store at ``root``, or with ``everything`` all active ones, to stop."""
    store = Store(root)
    if everything:
        runs = [run for run in store.runs() if run.status.active]
    elif names:
        runs = [store.find(name) for name in names]
    else:
        raise LmconsoleError("name at least one run, or --all", hint="`lmconsole status` lists the runs.")
    for line in stop_runs(store, runs) or [f"{store.root}: no active run"]:
        print_message(line)
