"""Following runs until they have finished, stopped or failed. A follower only reads: runs do not depend on it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lmconsole.commands.display import Display, several_seeds
from lmconsole.commands.interrupts import Interrupts
from lmconsole.engine.digest import Result, last_result
from lmconsole.engine.processes import disown, last_line, start_runner
from lmconsole.engine.slurm.batch import last_log
from lmconsole.engine.slurm.tasks import cancel_tasks
from lmconsole.engine.submit import stop_runs
from lmconsole.errors import ExitCode, RunNotFoundError, StoreError
from lmconsole.files import LineTail
from lmconsole.runs.events import AnyEvent, Queued
from lmconsole.runs.permissions import NOT_STARTED, Permissions, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

POLL_S = 0.2
MAX_POLL_S = 1.0
PAUSE_RATIO = 20.0
"""Wait this many times as long as it took to read and show all runs, at most ``MAX_POLL_S``: thousands of runs are read
less often."""
GRACE_S = 5.0
"""Time that a run may look lost, or queued for nobody, before it counts as that: its runner may be about to write what
happened, and a command may be about to permit it."""
_FINISHED: tuple[Result, ...] = ("finished", "diverged")
RUNNER_STARTS = 3
"""Runners that may fail one after the other before the command gives up."""


class Follower:
    """Follows the runs ``names`` until none is active.

    ``own`` runs were queued by this command: it shows them from then on, keeps a runner for them, and an interrupt
    stops them. Runs in ``finished`` were finished before, and their events are not shown again.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        display: Display,
        interrupts: Interrupts,
        *,
        own: frozenset[str] = frozenset(),
        finished: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._display = display
        self._interrupts = interrupts
        self._own = own
        self._unshown = set(own)
        self._handled = 0
        """Interrupts that were acted on."""
        self._permissions = Permissions(store.root)
        self._idle_since: dict[str, float] = {}
        """When a run was first seen lost, or queued for nobody to start it, and has been ever since."""
        self._given_up: set[str] = set()
        """Queued runs that nobody will start, and for which a message was shown."""
        self._runner: subprocess.Popen[bytes] | None = None
        self._failed_starts = 0
        self._runner_log = LineTail(store.runner_log, last_bytes=0)
        existing = {run.run: run for run in Store(store.root).runs()}
        missing = [name for name in names if name not in existing]
        if missing:
            raise RunNotFoundError(f"{store.root}: {', '.join(missing)}: deleted in the meantime")
        found = [existing[name] for name in dict.fromkeys(names)]
        self.runs = [Run(run.paths, run.info, cluster=run.cluster) for run in found]
        display.name_seeds = several_seeds(self.runs)
        self._finished_before = finished
        for run in self.runs:
            if run.run in finished:
                run.refresh()

    def follow(self) -> ExitCode:
        """Wait until no run is active, and return the exit code. Raises StoreError if no runner can work."""
        while True:
            began_s = time.monotonic()
            for run in self.runs:
                self._display.show(run, self._new_events(run))
            self._display.refresh(self.runs)
            took_s = time.monotonic() - began_s
            if self._handled < self._interrupts.count:
                self._handled += 1
                if not self._own:
                    self._display.say("Detached; the runs continue.")
                    return ExitCode.INTERRUPTED
                self._stop()
            if all(self._has_ended(run) for run in self.runs):
                break
            self._ensure_runner()
            time.sleep(min(max(POLL_S, PAUSE_RATIO * took_s), MAX_POLL_S))
        if self._interrupts.count:
            return ExitCode.INTERRUPTED
        finished = all(run.run in self._finished_before or last_result(run) in _FINISHED for run in self.runs)
        return ExitCode.OK if finished else ExitCode.RUN_FAILED

    def _new_events(self, run: Run) -> list[AnyEvent]:
        """Return the events not shown yet. Earlier attempts at a run that this command queued again are left out."""
        events = run.refresh()
        if run.run in self._unshown and events:
            self._unshown.remove(run.run)
            last = max((i for i, event in enumerate(events) if isinstance(event, Queued)), default=0)
            return events[last:]
        return events

    def _stop(self) -> None:
        active = [run for run in self.runs if run.run in self._own and run.status.active]
        stop_runs(self._store, [run for run in active if run.place])  # those that wait leave SLURM's queue
        for run in active:
            run.request_stop()
        if self._handled == 1:
            self._display.say("Stopping the runs; each saves a checkpoint first. Interrupt again to kill them.")
            return
        self._display.say("Killing the runs; each can be resumed from its last checkpoint.")
        cancel_tasks(self._store, active, kill=True)
        for run in active:
            owner, started = run.worker(), run.state.latest
            # Only the kernel says which process that is. The log could name any.
            if owner and owner.pid and owner.is_own and started and owner.pid == started.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(owner.pid, signal.SIGKILL)

    def _has_ended(self, run: Run) -> bool:
        if run.problem or run.run in self._finished_before:
            return True
        if run.slurm.interrupted or run.slurm.unanswered:
            return False
        if not run.status.active and run.status is not Status.LOST:
            return True
        # A file is read only once for each permission.
        if run.status.active and (self._permissions.allows(run) or pending(self._store, [run])):
            self._idle_since.pop(run.run, None)
            return False
        since = self._idle_since.setdefault(run.run, time.monotonic())
        if time.monotonic() - since <= GRACE_S:
            return False
        if run.status is Status.QUEUED and run.run not in self._given_up:
            self._given_up.add(run.run)
            self._display.say(f"{run.run}: {NOT_STARTED}")
        return True

    def _ensure_runner(self) -> None:
        """Start a runner if own runs are active and none is at work, even if the last one was killed."""
        if self._runner is not None:
            code = self._runner.poll()
            if code is None:
                return
            self._failed_starts = self._failed_starts + 1 if code else 0
            self._runner = None
            self._permissions = Permissions(self._store.root)  # it may have ended because one was removed
        if self._failed_starts >= RUNNER_STARTS:
            raise StoreError(
                f"{self._store.root}: the runner fails at once: {last_line(self._store.runner_log)}",
                hint=f"Its output is in {self._store.runner_log}. Queued runs stay queued.",
            )
        if any(run.status.active or run.slurm.stopped for run in self.runs if run.run in self._own):
            self._runner = start_runner(self._store)

    def leave(self) -> None:
        """Let the runner, if this command started it, continue on its own."""
        if self._runner is not None:
            disown(self._runner)

    def _runner_is_at_work(self) -> bool:
        """Return whether a runner of this user is at work, or may be."""
        owner = self._store.runner()
        return (owner is not None and owner.is_own is not False) or (
            self._runner is not None and self._runner.poll() is None
        )

    def wait_for_runner(self, done: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the runner has ended, or ``done``. Return False if other runs keep it busy, or at an interrupt."""
        while self._runner_is_at_work() and not done():
            if self._interrupts.count or pending(self._store, self._store.runs()):
                return False
            time.sleep(POLL_S)
        return True

    def wait_for_exports(self, exports: Path) -> bool:
        """Wait for the runner to write the exports, unless other runs keep it busy, and show where they are.

        Return False if they could not be written: a script that goes on to use them must not find older ones.
        """
        exported: list[str] = []
        batches = {run.place.batch for run in self.runs if run.run in self._own and run.place}
        logs = [self._runner_log, *(LineTail(last_log(self._store.root, batch)) for batch in sorted(batches))]

        def written() -> bool:
            for log in logs:
                with contextlib.suppress(OSError):
                    exported.extend(line for line in log.read_lines() if line.startswith("exports: "))
            # its process may still be giving alerts; on a cluster it may be waiting for the end of the last job
            return bool(exported) and (bool(batches) or self._store.runner() is None)

        self._display.say(
            "Waiting for the last job, which writes the exports …" if batches else "Writing the exports …"
        )
        if not self.wait_for_runner(written):
            self._display.say(
                f"Detached; the exports will be in {exports}."
                if self._interrupts.count
                else f"Other runs are active; the exports follow when they have ended, in {exports}."
            )
            return True
        written()
        where = " and ".join(str(last_log(self._store.root, batch)) for batch in sorted(batches))
        self._display.say(
            exported[-1] if exported else f"exports: none were written; see {where or self._store.runner_log}"
        )
        return bool(exported) and not exported[-1].startswith("exports: none")
