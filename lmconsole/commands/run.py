"""`lmconsole run --headless` and `watch`."""

import sys
from collections.abc import Sequence

from rich.text import Text

from lmconsole.commands.display import choose_display
from lmconsole.commands.dry_run import overview, time_expected
from lmconsole.commands.follow import Follower
from lmconsole.commands.interrupts import Interrupts
from lmconsole.commands.listing import RESULTS_NOTE, console, results_table
from lmconsole.engine.estimate import estimates
from lmconsole.engine.probe import ask
from lmconsole.engine.queue import Action, QueueDecision
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.submit import submit
from lmconsole.errors import ExitCode
from lmconsole.runs.store import Run, Store


def run_headless(request: RunRequest) -> ExitCode:
    """Queue, follow until everything is over, print the results. Raises LmconsoleError for what cannot be queued."""
    store = Store(request.runs)
    with Interrupts() as interrupts:
        with choose_display(json=request.json) as display:
            if sys.stderr.isatty():
                display.say("Looking at data and devices …")
            answer = ask(request)
            for name, value in overview(answer, request):
                if name:
                    display.say(f"{name:<10} {value}")
            for warning in answer.warnings:
                display.say(f"warning: {warning}")
            interrupts.hold()
            decisions = submit(store, answer, request)
            several_seeds = len({decision.resolved.seed for decision in decisions}) > 1
            for decision in decisions:
                display.say(_announcement(decision, several_seeds=several_seeds))
            expected = estimates(answer, decisions, store.runs())
            for name, value in time_expected(answer, decisions, expected, request):
                display.say(f"{name:<10} {value}")
            mine = frozenset(str(d.run) for d in decisions if d.action in (Action.NEW, Action.RESUME))
            known = frozenset(str(d.run) for d in decisions if d.action is Action.FINISHED)
            ids = [run.experiment.id for run in answer.runs]
            by_experiment = sorted(decisions, key=lambda each: ids.index(each.resolved.experiment.id))
            names = [str(decision.run) for decision in by_experiment]
            follower = Follower(store, names, display, interrupts, mine=mine, known=known)
            try:
                code = follower.follow()
                if mine and request.exports and code is not ExitCode.INTERRUPTED:
                    follower.wait_for_exports(request.exports)
            finally:
                follower.leave()
        _print_results(follower.runs, to_stderr=request.json)
    return code


def _announcement(decision: QueueDecision, *, several_seeds: bool) -> str:
    resolved = decision.resolved
    name = f"{resolved.experiment.id:>2} {resolved.experiment.label}"
    if several_seeds:
        name += f"  seed {resolved.seed}"
    match decision.action:
        case Action.FINISHED:
            return f"{name}  finished before; --fresh trains it anew"
        case Action.RESUME:
            return f"{name}  queued to resume in epoch {decision.epoch}"
        case Action.ACTIVE:
            return f"{name}  already under way"
        case Action.NEW:
            return f"{name}  queued"


def watch(store: Store, names: Sequence[str], *, json: bool) -> ExitCode:
    """Follow runs that somebody else started; an interrupt leaves them alone."""
    with Interrupts() as interrupts:
        interrupts.hold()
        with choose_display(json=json) as display:
            follower = Follower(store, names, display, interrupts)
            code = follower.follow()
        _print_results(follower.runs, to_stderr=json)
    return code


def _print_results(runs: Sequence[Run], *, to_stderr: bool) -> None:
    out = console(stderr=to_stderr)
    out.print()
    out.print(results_table(runs))
    out.print(Text(RESULTS_NOTE, style="dim"))
