"""The detached process that starts queued runs, oldest first, as many at once as their devices may take.

It owns nothing but the start: workers outlive it, and the next runner finds them by their locks.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from lmconsole.engine.local import python, start_worker
from lmconsole.engine.worker import EXIT_NOT_MINE
from lmconsole.errors import StoreError
from lmconsole.runs import lock
from lmconsole.runs.events import EventLog, Failed, Stopped, utc_now
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

POLL_S = 0.2
EXPORT_TIMEOUT_S = 900.0


def main(root: Path) -> int:
    """Serve the store at ``root`` until there is nothing left to do, or another runner serves it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    store = Store(root)
    while True:
        mine = lock.acquire(store.runner_lock)
        if mine is None:
            return 0
        Runner(store).serve()
        mine.release()
        # whoever queued after the last look and saw this runner still at work did not start another
        if not any(run.status is Status.QUEUED for run in store.runs()):
            return 0


class Runner:
    """One stretch of work, from the first queued run to a drained queue."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._children: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self._served: dict[str, Run] = {}
        self._hopeless: set[str] = set()

    def serve(self) -> None:
        """Start what is queued and see to what ends, until nothing is queued or running; then finish up."""
        while True:
            runs = self.store.runs()
            self._reap(runs)
            busy = self._busy(runs)
            waiting = [run for run in runs if self._waits(run) and run.run not in busy]
            for run in waiting:
                self._served[run.run] = run
                if run.stop_requested:
                    self._append(run, Stopped(epoch=run.state.position[0], step=run.state.position[1]))
                else:
                    self._start(run, busy)
            if not waiting and not busy and not self._children:
                break
            time.sleep(POLL_S)
        self._finish()

    def _waits(self, run: Run) -> bool:
        return run.status is Status.QUEUED and run.state.queued is not None and run.run not in self._hopeless

    def _reap(self, runs: list[Run]) -> None:
        """Forget the workers that have ended; write ``failed`` for one that could not do so itself."""
        by_name = {run.run: run for run in runs}
        for name, (process, _) in list(self._children.items()):
            code = process.poll()
            if code is None:
                continue
            del self._children[name]
            run = by_name.get(name)
            if run is None or code == EXIT_NOT_MINE:
                continue
            run.refresh()
            if run.status in (Status.QUEUED, Status.LOST):
                self._append(run, _obituary(run, code))

    def _busy(self, runs: list[Run]) -> dict[str, tuple[set[str], int]]:
        """Active runs with the devices each may be occupying, and how many at once it accepts there."""
        busy = {}
        for run in runs:
            queued = run.state.queued
            if queued is None:
                continue
            if run.run in self._children:
                busy[run.run] = {self._children[run.run][1]}, queued.jobs
            elif run.status.active and run.worker() is not None:
                started = run.state.started if run.status is Status.RUNNING else None
                busy[run.run] = {started.device} if started else set(queued.devices), queued.jobs
        return busy

    def _start(self, run: Run, busy: dict[str, tuple[set[str], int]]) -> None:
        """Start ``run`` on a device with room for it; where there is none, it blocks those devices for younger runs."""
        queued = run.state.queued
        assert queued is not None
        for device in sorted(queued.devices, key=lambda each: sum(each in on for on, _ in busy.values())):
            others = [jobs for on, jobs in busy.values() if device in on]
            if len(others) < min([queued.jobs, *others]):
                try:
                    process = start_worker(run, device, [child.pid for child, _ in self._children.values()])
                except OSError as error:
                    self._append(run, _cannot_start(run, error))
                    return
                self._children[run.run] = process, device
                busy[run.run] = {device}, queued.jobs
                _say(f"{run.run}: started on {device}, pid {process.pid}")
                return
        busy[f"waiting {run.run}"] = set(queued.devices), 0

    def _append(self, run: Run, event: Failed | Stopped) -> None:
        """Write the last word on a run whose worker is gone or never was; whoever holds its lock knows better."""
        try:
            with lock.held(run.paths.lock, 0.0) as mine:
                if mine is not None:
                    log = EventLog(run.paths.events)
                    log.append(event, sync=True)
                    log.close()
                    _say(f"{run.run}: {'stopped before it began' if isinstance(event, Stopped) else event.message}")
        except OSError as error:
            _say(f"{run.run}: nothing can be written into its log: {error}")
            self._hopeless.add(run.run)

    def _finish(self) -> None:
        """The queue has drained: export, then run what people asked for."""
        asked = [run.state.queued for run in self._served.values() if run.state.queued]
        for folder in dict.fromkeys(queued.exports for queued in asked if queued.exports):
            self._call(python("lmconsole.report", str(self.store.root), folder), EXPORT_TIMEOUT_S)
        for program in dict.fromkeys(queued.on_finish for queued in asked if queued.on_finish):
            self._call(list(program), None)

    def _call(self, command: list[str], timeout_s: float | None) -> None:
        try:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False).returncode
            if code:
                _say(f"{command}: exit code {code}")
        except (OSError, subprocess.TimeoutExpired) as error:
            _say(f"{command}: {error}")


def _obituary(run: Run, code: int) -> Failed:
    """What to say of a worker that ended without a word."""
    again = f"`lmconsole run {run.info.experiment.id}` with the same options resumes from its last checkpoint."
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = " (somebody killed it, or the machine ran out of memory)" if -code == signal.SIGKILL else ""
        return Failed(error="killed", message=f"the worker was killed by {name}{why}", hint=again)
    return Failed(
        error="crash",
        message=f"the worker ended with exit code {code}: {_last_line(run.paths.worker_log)}",
        hint=f"Everything it printed is in {run.paths.worker_log}. {again}",
    )


def _cannot_start(run: Run, error: OSError) -> Failed:
    return Failed(
        error="start",
        message=f"the worker cannot be started: {error}",
        hint=f"When that is mended, `lmconsole run {run.info.experiment.id}` tries again.",
    )


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 4096, 0))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip() if lines else "it printed nothing"


def _say(message: str) -> None:
    print(f"{utc_now()} {message}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except StoreError as error:
        sys.exit(f"{utc_now()} {error}")
