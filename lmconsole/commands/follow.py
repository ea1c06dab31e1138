"""Following runs until they are over. Looking is all it takes: the runs do not need anybody to watch."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lmconsole.commands.display import Display
from lmconsole.commands.interrupts import Interrupts
from lmconsole.engine.processes import disown, last_line, start_runner
from lmconsole.errors import ExitCode, RunNotFoundError, StoreError
from lmconsole.runs.events import AnyEvent, Queued
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

POLL_S = 0.2
GRACE_S = 5.0
"""How long a run may look lost before it is taken to be: its runner may be about to write what happened."""
RUNNER_STARTS = 3
"""Runners that may end at once before something must be wrong with them."""


class Follower:
    """Follows the runs ``names`` until all are over.

    ``mine`` are those this command queued: it shows them from there on, keeps a runner for them, and an interrupt stops
    them. ``known`` were finished before, and their past is not told again.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        display: Display,
        interrupts: Interrupts,
        *,
        mine: frozenset[str] = frozenset(),
        known: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._display = display
        self._interrupts = interrupts
        self._mine = mine
        self._untold = set(mine)
        self._heeded = 0
        self._lost_since: dict[str, float] = {}
        self._runner: subprocess.Popen[bytes] | None = None
        self._failed_starts = 0
        self._log_end = _size(store.runner_log)
        there = {run.run: run for run in Store(store.root).runs()}
        gone = [name for name in names if name not in there]
        if gone:
            raise RunNotFoundError(f"{store.root}: {', '.join(gone)}: deleted meanwhile")
        self.runs = [Run(there[name].paths, there[name].info) for name in dict.fromkeys(names)]
        for run in self.runs:
            if run.run in known:
                run.refresh()

    def follow(self) -> ExitCode:
        """Wait for the end of all runs; the exit code says how it went. Raises StoreError if no runner can work."""
        while True:
            for run in self.runs:
                self._display.show(run, self._new_events(run))
            self._display.refresh(self.runs)
            if self._heeded < self._interrupts.count:
                self._heeded += 1
                if not self._mine:
                    self._display.say("Left; the runs go on.")
                    return ExitCode.INTERRUPTED
                self._stop()
            if all(self._over(run) for run in self.runs):
                break
            self._keep_a_runner()
            time.sleep(POLL_S)
        if self._interrupts.count:
            return ExitCode.INTERRUPTED
        finished = all(run.status is Status.FINISHED for run in self.runs)
        return ExitCode.OK if finished else ExitCode.RUN_FAILED

    def _new_events(self, run: Run) -> list[AnyEvent]:
        """Events not shown yet; of a run that this command queued again, none of its earlier attempts."""
        events = run.refresh()
        if run.run in self._untold and events:
            self._untold.remove(run.run)
            last = max((i for i, event in enumerate(events) if isinstance(event, Queued)), default=0)
            return events[last:]
        return events

    def _stop(self) -> None:
        active = [run for run in self.runs if run.run in self._mine and run.status.active]
        for run in active:
            run.request_stop()
        if self._heeded == 1:
            self._display.say("Stopping the runs; each saves a checkpoint first. Interrupt again to kill them.")
            return
        self._display.say("Killing the runs; each can be resumed from its last checkpoint.")
        for run in active:
            owner, started = run.worker(), run.state.started
            if owner and owner.pid and started and owner.pid == started.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(owner.pid, signal.SIGKILL)

    def _over(self, run: Run) -> bool:
        if run.problem:
            return True
        if run.status is not Status.LOST:
            self._lost_since.pop(run.run, None)
            return not run.status.active
        since = self._lost_since.setdefault(run.run, time.monotonic())
        return time.monotonic() - since > GRACE_S

    def _keep_a_runner(self) -> None:
        """While runs of ours are to come or under way there must be a runner, even if somebody killed the last one."""
        if self._runner is not None:
            code = self._runner.poll()
            if code is None:
                return
            self._failed_starts = self._failed_starts + 1 if code else 0
            self._runner = None
        if self._failed_starts >= RUNNER_STARTS:
            raise StoreError(
                f"{self._store.root}: the runner ends at once: {last_line(self._store.runner_log)}",
                hint=f"Everything it printed is in {self._store.runner_log}. What was queued stays queued.",
            )
        if any(run.status.active for run in self.runs if run.run in self._mine):
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
            if self._interrupts.count:
                self._display.say(f"Left; the exports will be in {exports}.")
                return
            time.sleep(POLL_S)
        said = [line for line in _lines(self._store.runner_log, self._log_end) if line.startswith("exports: ")]
        self._display.say(said[-1] if said else f"exports: none were written; see {self._store.runner_log}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
