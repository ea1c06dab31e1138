"""`lmconsole run --headless`, `watch` and `stop`."""

import contextlib
import os
import sys
from collections.abc import Sequence

from rich.text import Text

from lmconsole.engine.local import disown, start_runner
from lmconsole.engine.probe import ProbeAnswer, ask
from lmconsole.engine.queue import Action, Decision, enqueue, wanted_runs
from lmconsole.errors import ExitCode, StoreError
from lmconsole.headless.display import choose_display
from lmconsole.headless.dryrun import overview
from lmconsole.headless.follow import Follower
from lmconsole.headless.interrupts import Interrupts
from lmconsole.headless.listing import RESULTS_NOTE, console, results_table
from lmconsole.headless.options import RunOptions, threads_per_run
from lmconsole.runs.events import Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store


def run_headless(options: RunOptions) -> ExitCode:
    """Queue, follow until everything is over, print the results. Raises LmconsoleError for what cannot be queued."""
    store = Store(options.store)
    with Interrupts() as interrupts:
        with choose_display(json=options.json) as display:
            if sys.stderr.isatty():
                display.say("Looking at data and devices …")
            answer = ask(options.probe)
            for name, value in overview(answer, options):
                if name:
                    display.say(f"{name:<10} {value}")
            for warning in answer.warnings:
                display.say(f"warning: {warning}")
            interrupts.hold()
            decisions = _enqueue(store, answer, options)
            for decision in decisions:
                display.say(_announcement(decision))
            mine = frozenset(str(d.run) for d in decisions if d.action in (Action.NEW, Action.RESUME))
            known = frozenset(str(d.run) for d in decisions if d.action is Action.FINISHED)
            names = [str(decision.run) for decision in decisions]
            follower = Follower(store, names, display, interrupts, mine=mine, known=known)
            try:
                code = follower.follow()
                if mine and options.exports and code is not ExitCode.INTERRUPTED:
                    follower.wait_for_exports(options.exports)
            finally:
                follower.leave()
        _print_results(follower.runs, to_stderr=options.json)
    return code


def _enqueue(store: Store, answer: ProbeAnswer, options: RunOptions) -> list[Decision]:
    """Queue what is wanted. If that fails half-way, a runner sees to what has been queued."""
    queued = Queued(
        devices=answer.device_keys,
        jobs=options.jobs,
        exports=None if options.exports is None else str(options.exports),
        on_finish=options.on_finish,
        cwd=os.getcwd(),
    )
    try:
        return enqueue(
            store,
            wanted_runs(answer, options.seeds),
            queued,
            fresh=options.fresh,
            refuse_active=not options.everything,
            threads=threads_per_run(options.jobs),
        )
    except BaseException:
        with contextlib.suppress(StoreError):
            if any(run.status is Status.QUEUED for run in store.runs()):
                _wake_runner(store)
        raise


def _wake_runner(store: Store) -> None:
    runner = start_runner(store)
    if runner is not None:
        disown(runner)


def _announcement(decision: Decision) -> str:
    name = f"{decision.wanted.prepared.experiment.id:>2} {decision.wanted.prepared.experiment.label}"
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


def stop_runs(store: Store, runs: Sequence[Run]) -> list[str]:
    """Ask active ``runs`` to stop and see that queued ones are taken out; what was done, a line each."""
    lines = []
    for run in runs:
        if run.status.active:
            run.request_stop()
            lines.append(f"{run.run}: asked to stop; it saves a checkpoint first")
        else:
            lines.append(f"{run.run}: not active ({run.status.value})")
    if any(run.status is Status.QUEUED for run in runs):
        _wake_runner(store)
    return lines


def _print_results(runs: Sequence[Run], *, to_stderr: bool) -> None:
    out = console(stderr=to_stderr)
    out.print()
    out.print(results_table(runs))
    out.print(Text(RESULTS_NOTE, style="dim"))
