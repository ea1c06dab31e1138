"""Running without the app: queue, show progress, wait, print the results. The runs do not need anybody to watch."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.text import Text

from lmconsole.engine.local import disown, start_runner
from lmconsole.engine.probe import ask
from lmconsole.engine.queue import Action, Decision, enqueue, wanted_runs
from lmconsole.errors import ExitCode
from lmconsole.headless.display import Display, choose_display
from lmconsole.headless.dryrun import overview
from lmconsole.headless.listing import RESULTS_NOTE, console, results_table
from lmconsole.headless.options import RunOptions, threads_per_run
from lmconsole.runs.events import AnyEvent, Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

POLL_S = 0.2
SAME_INTERRUPT_S = 0.5
GRACE_S = 5.0
"""How long a run may look lost before it is taken to be: its runner may be about to write what happened."""


def run_headless(options: RunOptions) -> ExitCode:
    """Queue, follow until everything is over, print the results. Raises LmconsoleError for what cannot be queued."""
    store = Store(options.store)
    with choose_display(json=options.json) as display:
        display.say("Looking at data and devices …" if sys.stderr.isatty() else f"runs: {store.root}")
        answer = ask(options.probe)
        for name, value in overview(answer, options):
            if name:
                display.say(f"{name:<10} {value}")
        for warning in answer.warnings:
            display.say(f"warning: {warning}")
        queued = Queued(
            devices=answer.devices,
            jobs=options.jobs,
            exports=None if options.exports is None else str(options.exports),
            on_finish=options.on_finish,
        )
        decisions = enqueue(
            store,
            wanted_runs(answer, options.seeds),
            queued,
            fresh=options.fresh,
            refuse_active=not options.everything,
            threads=threads_per_run(options.jobs),
            announce=lambda decision: display.say(_announcement(decision)),
        )
        names = [str(decision.run) for decision in decisions]
        mine = {str(d.run) for d in decisions if d.action in (Action.NEW, Action.RESUME)}
        follower = Follower(store, names, mine, display)
        code = follower.follow()
        if mine and options.exports and code is not ExitCode.INTERRUPTED:
            follower.wait_for_exports(options.exports)
        follower.leave()
    _print_results(follower.runs, to_stderr=options.json)
    return code


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
    with choose_display(json=json) as display:
        follower = Follower(store, names, set(), display)
        code = follower.follow()
        follower.leave()
    _print_results(follower.runs, to_stderr=json)
    return code


def _print_results(runs: Sequence[Run], *, to_stderr: bool) -> None:
    out = console(stderr=to_stderr)
    out.print()
    out.print(results_table(runs))
    out.print(Text(RESULTS_NOTE, style="dim"))


class Follower:
    """Follows runs until all are over. ``mine`` are those this command queued: an interrupt stops them."""

    def __init__(self, store: Store, names: Sequence[str], mine: set[str], display: Display) -> None:
        self._store = store
        self._mine = mine
        self._fresh = set(mine)
        self._display = display
        self._interrupts = 0
        self._last_interrupt = -math.inf
        self._heeded = 0
        self._lost_since: dict[str, float] = {}
        self._runner: subprocess.Popen[bytes] | None = None
        known = {run.run: run for run in Store(store.root).runs()}
        self.runs = [Run(known[name].paths, known[name].info) for name in dict.fromkeys(names)]

    def follow(self) -> ExitCode:
        """Wait for the end of all runs; the exit code says how it went."""
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                for run in self.runs:
                    self._display.show(run, self._new_events(run))
                self._display.refresh(self.runs)
                if self._heeded < self._interrupts:
                    self._heeded += 1
                    if self._stop():
                        return ExitCode.INTERRUPTED
                if all(self._over(run) for run in self.runs):
                    break
                self._keep_a_runner()
                time.sleep(POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._interrupts:
            return ExitCode.INTERRUPTED
        finished = all(run.status is Status.FINISHED for run in self.runs)
        return ExitCode.OK if finished else ExitCode.RUN_FAILED

    def _new_events(self, run: Run) -> Sequence[AnyEvent]:
        """Events not shown yet; of a run that this command queued again, none of its earlier attempts."""
        events = run.refresh()
        if run.run in self._fresh and events:
            self._fresh.remove(run.run)
            last = max((i for i, event in enumerate(events) if isinstance(event, Queued)), default=0)
            return events[last:]
        return events

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Count it, unless it is the same one arriving by two ways, as from a tool that signals a whole group."""
        now = time.monotonic()
        if now - self._last_interrupt > SAME_INTERRUPT_S:
            self._interrupts += 1
            self._last_interrupt = now

    def _stop(self) -> bool:
        """Heed an interrupt; True if there is nothing more to wait for."""
        active = [run for run in self.runs if run.run in self._mine and run.status.active]
        if not self._mine:
            self._display.say("Left; the runs go on.")
            return True
        if self._heeded == 1:
            self._display.say("Stopping the runs; each saves a checkpoint first. Interrupt again to kill them.")
            for run in active:
                run.request_stop()
            return False
        self._display.say("Killing the runs; each can be resumed from its last checkpoint.")
        for run in active:
            run.request_stop()
            owner = run.worker()
            if owner is not None and owner.pid is not None:
                os.kill(owner.pid, signal.SIGKILL)
        return False

    def _over(self, run: Run) -> bool:
        if run.problem:
            return True
        if run.status is not Status.LOST:
            self._lost_since.pop(run.run, None)
            return not run.status.active
        since = self._lost_since.setdefault(run.run, time.monotonic())
        return time.monotonic() - since > GRACE_S

    def _keep_a_runner(self) -> None:
        """Runs are queued: see that a runner is there to start them, even if somebody killed it."""
        if self._runner is not None and self._runner.poll() is None:
            return
        if any(run.status is Status.QUEUED for run in self.runs):
            self._runner = start_runner(self._store)

    def leave(self) -> None:
        """The runner, if this command started it, goes on alone."""
        if self._runner is not None:
            disown(self._runner)

    def wait_for_exports(self, exports: Path) -> None:
        """Wait for the runner to write the exports, unless other people's runs keep it busy; say where they are."""
        self._display.say("Writing the exports …")
        while self._store.runner() is not None or (self._runner is not None and self._runner.poll() is None):
            if any(run.status.active for run in self._store.runs()):
                self._display.say(f"Other runs are under way; the exports come after them, in {exports}.")
                return
            time.sleep(POLL_S)
        self._display.say(_exports_line(self._store, exports))


def _exports_line(store: Store, exports: Path) -> str:
    """What the runner said about its exports, as it is the last thing in its log."""
    try:
        lines = store.runner_log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line for line in lines[-20:] if line.startswith("exports: ")]
    return said[-1] if said else f"exports: none were written to {exports}; see {store.runner_log}"


def stop_runs(store: Store, runs: Sequence[Run]) -> list[str]:
    """Ask active ``runs`` to stop and see that queued ones are taken out; what was done, a line each."""
    lines = []
    for run in runs:
        if run.status.active:
            run.request_stop()
            lines.append(f"{run.run}: asked to stop; it saves a checkpoint first")
        else:
            lines.append(f"{run.run}: not active ({run.status.value})")
    runner = start_runner(store) if any(run.status is Status.QUEUED for run in runs) else None
    if runner is not None:
        disown(runner)
    return lines
