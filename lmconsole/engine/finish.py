"""Work of the runner when its queue is empty: exports, the digest, and the programs that were asked for."""

import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lmconsole.engine.alerts import Alerts
from lmconsole.engine.digest import summarize, write_digest
from lmconsole.engine.processes import python, start_program
from lmconsole.runs.permissions import Permission, Permissions, text_of
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

EXPORT_TIMEOUT_S = 900.0
EXPORT_POLL_S = 0.05
"""Interval at which alerts are given while the exports are written."""


@dataclass(frozen=True)
class Finish:
    """Finishes the queue of a store, for the runs that the user of this runner has permitted."""

    store: Store
    permissions: Permissions
    alerts: Alerts
    log: Callable[[str], None]
    covers: Callable[[Run], bool] = lambda run: run.place is None
    """Whether a run belongs to this queue: by default, all that SLURM does not start."""

    def run(self, served: Collection[str]) -> None:
        """Export, write the digest, remove the permissions of runs that have ended, and start programs.

        ``served`` are the runs that were queued or running under this runner. Raises StoreError.
        """
        fulfilled = self._ended(served)
        runs = self.store.runs()
        self.alerts.resume()  # some may have been queued and ended between two checks
        self.alerts.check(runs, ())
        for folder in dict.fromkeys(each.after.exports for each in fulfilled if each.after.exports):
            self._call(python("lmconsole.report", str(self.store.root), folder), EXPORT_TIMEOUT_S)
        ended = {each.run for each in fulfilled}
        digest = summarize(self.store, [run for run in runs if text_of(run.run) in ended or self._is_lost(run)], runs)
        if ended:
            try:
                write_digest(self.store, digest)
            except OSError as error:
                self.log(f"the digest cannot be written: {error.strerror}")
        removed = []
        for each in fulfilled:  # first, so that no program is started twice, whatever happens to this process
            if self.permissions.remove(each):
                removed.append(each)
            else:
                self.log(f"{each.run}: its permission cannot be removed, so no program is started for it")
        self.alerts.add_digest(digest, removed)
        self.alerts.mark_pending()
        programs = ((each.after.on_finish, each.after.cwd) for each in removed if each.after.on_finish)
        for program, cwd in dict.fromkeys(programs):
            try:
                start_program(program, cwd, self.store.runner_log)
            except OSError as error:
                self.log(f"{program[0]}: cannot be started: {error}")

    def _ended(self, served: Collection[str]) -> list[Permission]:
        """Return the permissions of runs that have ended, under this runner or an earlier one, and remove those of runs
        that were deleted, or queued again by someone else."""
        saved = self.permissions.saved()  # before the logs, so that each has the event that a permission covers
        runs = {text_of(run.run): run for run in self.store.runs()}
        names = {text_of(name) for name in self.store.names()}
        ended = []
        for permission in saved:
            run = runs.get(permission.run)
            if run is None or run.problem:
                if permission.run not in names:
                    self.permissions.remove(permission)
            elif not self.covers(run):
                continue
            elif run.state.queued_seq > permission.queued_seq:
                self.permissions.remove(permission)
            elif not _goes_on(run, served) and self.permissions.read(run) == permission:
                ended.append(permission)
        return ended

    def _is_lost(self, run: Run) -> bool:
        """Return whether ``run`` was lost, and waits to be resumed by this user."""
        return run.status is Status.LOST and self.covers(run) and self.permissions.find(run) is not None

    def _call(self, command: list[str], timeout_s: float) -> None:
        """Run a program to its end, and give alerts meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            self.log(f"{command}: {error}")
            return
        try:
            while process.poll() is None and time.monotonic() < deadline_s:
                self.alerts.poll()
                time.sleep(EXPORT_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
        if code:
            self.log(f"{command}: exit code {code}")


def _goes_on(run: Run, served: Collection[str]) -> bool:
    """Return whether ``run`` has not ended yet. One that was lost under an earlier runner can be resumed."""
    return run.status.active or (run.status is Status.LOST and run.run not in served)
