"""`lmconsole watch`: follow runs that other commands started."""

from collections.abc import Sequence
from pathlib import Path

from lmconsole.commands.display import choose_display
from lmconsole.commands.follow import Follower
from lmconsole.commands.interrupts import Interrupts
from lmconsole.commands.output import print_message
from lmconsole.commands.results import print_results
from lmconsole.engine.submit import keep_polling
from lmconsole.errors import ExitCode
from lmconsole.runs.permissions import pending
from lmconsole.runs.store import Store


def watch(root: Path, names: Sequence[str], *, json: bool) -> ExitCode:
    """Follow the named runs of the store at ``root``, or all active ones, and print their results. An interrupt leaves
    the runs alone."""
    store = Store(root)
    runs = [store.find(name) for name in names] if names else pending(store, store.runs())
    if not runs:
        print_message(f"{store.root}: no active run")
        return ExitCode.OK
    keep_polling(store, runs)
    with Interrupts() as interrupts:
        interrupts.hold()
        with choose_display(json=json) as display:
            follower = Follower(store, [run.run for run in runs], display, interrupts)
            code = follower.follow()
        print_results(follower.runs, stderr=json)
    return code
