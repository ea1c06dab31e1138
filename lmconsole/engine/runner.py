"""The runner: a detached process that starts queued runs in order, as many at once as their devices allow.

It only starts runs: workers outlive it, and the next runner finds them by their locks.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from lmconsole.engine import prepared_workers, stop_signals, worker
from lmconsole.engine.alerts import Alerts
from lmconsole.engine.finish import Finish
from lmconsole.engine.prepared_workers import PreparedWorkers
from lmconsole.engine.processes import last_line
from lmconsole.engine.shared_data import shared_folder
from lmconsole.engine.slurm.last import conclude
from lmconsole.engine.slurm.poll import Poller
from lmconsole.engine.worker import EXIT_NOT_TRAINED, Train
from lmconsole.errors import LmconsoleError, StoreError, escape_control_characters
from lmconsole.runs import lock
from lmconsole.runs.events import Failed, Stopped, utc_now
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, has_room, queue_order

POLL_S = 0.2
CLUSTER_POLL_S = 2.0
"""Interval at which the logs are read while SLURM alone has runs."""
CLUSTER_MAX_POLL_S = 5.0
CLUSTER_PAUSE_RATIO = 20.0
"""Wait this many times as long as the last reading took, at most ``CLUSTER_MAX_POLL_S``."""
OTHER_USER_POLL_S = 1.0
"""Interval at which a runner checks whether that of another user has ended."""
FORK_SERVER_GONE = 255
"""Exit code that multiprocessing reports for a process whose fork server has ended."""


def main(root: Path) -> int:
    """Serve the store at ``root`` until the queue is empty or another runner of this user serves it, and return the
    exit code. Raises StoreError if the store cannot be served."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in stop_signals.BATCH_SIGNALS:  # meant for the workers
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the programs that it starts would inherit
    stop_signals.release()
    store = Store(root.absolute())
    with contextlib.suppress(OSError):
        os.chdir(store.root)  # the folder of the command may be removed, and no process starts in one that is gone
    runner = Runner(store)
    code = _serve(store, runner)
    runner.alerts.close()  # another runner may serve the queue by now
    return code


def _serve(store: Store, runner: "Runner") -> int:
    """Serve the store as ``main`` does."""
    waited = False
    while True:
        try:
            held = lock.acquire(store.runner_lock)
        except OSError as error:
            raise StoreError(f"{store.runner_lock}: cannot be opened: {error.strerror}") from None
        if held is None:
            owner = store.runner()
            if (owner is not None and owner.is_own) or not runner.has_work():
                return 0
            if not waited:
                _log("the runner of another user is at work; waiting until it ends")
                waited = True
            began_s = time.monotonic()
            runner.follow_cluster(store.runs())  # which needs no lock: each runner asks about the runs of its user
            time.sleep(_pause_s(time.monotonic() - began_s, OTHER_USER_POLL_S))
            continue
        with shared_folder(store.root) as runner.shared:
            runner.serve()
        held.release()
        # a command that queued after the last check saw this runner still at work and started no other
        if not runner.has_work():
            return 0


@dataclass(frozen=True)
class _Occupancy:
    """Devices that an active run may occupy."""

    devices: set[str]
    jobs: int
    """Runs at once that it allows there; 0 reserves the devices for a run that is next."""


@dataclass(frozen=True)
class _Worker:
    """A worker that this runner started."""

    process: BaseProcess
    device: str
    queued_seq: int
    """Number of the ``queued`` event that it serves."""


class Runner:
    """Starts the runs of one store until its queue is empty, and then exports.

    It acts only on runs that its user has permitted. All others in the store, and their workers, are left alone.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._permissions = Permissions(store.root)
        self.alerts = Alerts(store, self._permissions, _log)
        self.shared: Path | None = None
        """Folder of the data that workers share; None: each reads its own."""
        self._workers: dict[str, _Worker] = {}
        self._prepared = PreparedWorkers(_log)
        self._served: dict[str, Run] = {}
        """Runs that were queued or running since the queue was last empty."""
        self._poller = Poller(store, _log)
        self._unwritable: set[str] = set()
        """Runs whose logs cannot be written, so that they are not started."""

    def serve(self) -> None:
        """Start queued runs and record how they end, until none is queued or running; then finish."""
        self.alerts.resume()
        while True:
            began_s = time.monotonic()
            runs = self.store.runs()
            read_s = time.monotonic() - began_s
            self.alerts.check(runs, self._workers)
            self._reap(runs)
            busy = self._busy(runs)
            self._served |= {run.run: run for run in runs if run.run in busy}
            waiting = [run for run in runs if self._waits(run) and run.run not in busy]
            waiting.sort(key=lambda run: queue_order(run.info, run.state.queued))
            for run in waiting:
                self._served[run.run] = run
                if run.run in self._prepared.by_run and run.stop_requested:
                    continue  # its worker records that itself
                if run.stop_requested:
                    epoch, step = run.state.position
                    self._append(run, Stopped(epoch=epoch, step=step), after=run.state.queued_seq)
                else:
                    self._start(run, busy)
            self._prepare_ahead(waiting, busy, runs)
            on_cluster = self.follow_cluster(runs)
            if not waiting and not busy and not self._workers and not self._prepared.by_run:
                if not on_cluster:
                    break
                time.sleep(_pause_s(read_s, CLUSTER_POLL_S))
                continue
            self._pause()
        Finish(self.store, self._permissions, self.alerts, _log).run(self._served)
        self._served.clear()

    def follow_cluster(self, runs: list[Run]) -> bool:
        """Ask SLURM about the runs that it starts, and return whether a submission of this user has not ended. Where
        SLURM has no job left, do what the last one was to do, in case that it could not."""
        for batch in self._poller.poll(runs):
            try:
                conclude(self.store, batch, _log)
            except (LmconsoleError, OSError) as error:
                _log(f"submission {batch}: {error}")
        return self._poller.watch(runs)

    def has_work(self) -> bool:
        """Return whether a queued run can be started, or SLURM is to be asked about one."""
        runs = self.store.runs()
        return any(map(self._waits, runs)) or self._poller.watch(runs)

    def _waits(self, run: Run) -> bool:
        return (
            run.status is Status.QUEUED
            and run.place is None
            and not run.problem
            and run.info.origin == "trained"
            and run.run not in self._unwritable
            and self._permissions.find(run) is not None
        )

    def _pause(self) -> None:
        """Wait for the next check, or until a worker ends, since its device is free then."""
        # The sentinel of a worker whose fork server has ended is always ready, whether or not the worker runs.
        ends = [child.process.sentinel for child in self._workers.values() if child.process.exitcode is None]
        if ends:
            wait(ends, POLL_S)
        else:
            time.sleep(POLL_S)

    def _reap(self, runs: list[Run]) -> None:
        """Remove workers that have ended, and record the death of one that could not do so itself."""
        by_name = {run.run: run for run in runs}
        for name, prepared in list(self._prepared.by_run.items()):
            run = by_name.get(name)
            code = self._exit_code(prepared.process, run)
            if code is not None:
                self._prepared.remove_ended(name, code)
            elif run is None or not self._waits(run):
                prepared.dismiss()  # the run was deleted or stopped
        for name, child in list(self._workers.items()):
            run = by_name.get(name)
            code = self._exit_code(child.process, run)
            if code is None:
                continue
            del self._workers[name]
            if run is not None and code != EXIT_NOT_TRAINED:
                self._append(run, _worker_death(run, code), after=child.queued_seq)

    def _exit_code(self, process: BaseProcess, run: Run | None) -> int | None:
        """Return the exit code of the worker of ``run``; None if it is at work."""
        code = process.exitcode
        return None if code == FORK_SERVER_GONE and run and self._worker_pid(run) is not None else code

    def _busy(self, runs: list[Run]) -> dict[str, _Occupancy]:
        """Return the devices that each active run of this user occupies."""
        busy: dict[str, _Occupancy] = {}
        for run in runs:
            queued = run.state.queued
            if queued is None or run.place is not None or run.run in self._prepared.by_run:
                continue
            if run.run in self._workers:
                busy[run.run] = _Occupancy({self._workers[run.run].device}, queued.jobs)
            elif self._is_own_worker(run):
                started = run.state.latest if run.status is Status.RUNNING else None
                devices = {started.device_uuid or started.device} if started else set(queued.devices)
                busy[run.run] = _Occupancy(devices, queued.jobs)
        return busy

    def _start(self, run: Run, busy: dict[str, _Occupancy]) -> None:
        """Start ``run`` on a device with room for it. Without one, it reserves its devices against later runs."""
        queued = run.state.queued
        assert queued is not None
        for device in sorted(queued.devices, key=lambda each: sum(each in other.devices for other in busy.values())):
            others = [other.jobs for other in busy.values() if device in other.devices]
            if self._prepared.allows(run.run, device, queued.seq) and has_room(queued.jobs, others):
                if self._permissions.read(run) is None:  # its files were replaced while it waited
                    return
                sibling_pids = [pid for pid in map(self._worker_pid, self._active(busy)) if pid]
                try:
                    process = self._start_on(run, device, sibling_pids)
                except OSError as error:
                    self._append(run, _cannot_start(run, error), after=queued.seq)
                    return
                if process is None:
                    break
                self._workers[run.run] = _Worker(process, device, queued.seq)
                busy[run.run] = _Occupancy({device}, queued.jobs)
                _log(f"{run.run}: started on {device}, pid {process.pid}")
                return
        prepared = self._prepared.by_run.get(run.run)
        devices = {prepared.device} if prepared and prepared.device else set(queued.devices)
        busy[f"waiting {run.run}"] = _Occupancy(devices, jobs=0)

    def _start_on(self, run: Run, device: str, sibling_pids: Sequence[int]) -> BaseProcess | None:
        """Start a worker, or let the waiting one train. Return None if the waiting one has just ended. Raises
        OSError if a worker cannot be started."""
        self._prepared.free_device(device, run.run)
        prepared = self._prepared.by_run.get(run.run)
        if prepared is None:
            return worker.start(run, device, sibling_pids, self.shared)
        environment, sent_at_s = worker.cuda_environment(device), time.monotonic()
        if not prepared.send(Train(environment=environment, sibling_pids=tuple(sibling_pids), sent_at_s=sent_at_s)):
            return None
        prepared.dismiss()
        del self._prepared.by_run[run.run]
        return prepared.process

    def _prepare_ahead(self, waiting: list[Run], busy: dict[str, _Occupancy], runs: list[Run]) -> None:
        """Prepare the next run for each GPU that trains one run."""
        by_name = {run.run: run for run in runs}
        training = {
            device: by_name[name]
            for name, occupancy in busy.items()
            for device in occupancy.devices
            if occupancy.jobs == 1
            and prepared_workers.prepares_ahead(device)
            and name in by_name
            and by_name[name].status is Status.RUNNING
        }
        self._prepared.prepare(
            [run for run in waiting if run.run not in busy],
            training,
            self.shared,
            lambda run: self._permissions.read(run) is not None,
        )

    def _active(self, busy: dict[str, _Occupancy]) -> list[Run]:
        return [self._served[name] for name in busy if name in self._served]

    def _worker_pid(self, run: Run) -> int | None:
        """Return the pid of the process that holds the run's lock, 0 if unknown; None if the lock is free."""
        try:
            owner = run.worker()
        except StoreError as error:
            _log(f"{run.run}: {error}")
            return None
        return None if owner is None else owner.pid or 0

    def _is_own_worker(self, run: Run) -> bool:
        """Return whether a process of this user, or one that this user permitted, holds the lock of ``run``."""
        try:
            owner = run.worker()
        except StoreError:
            return False
        return owner is not None and (self._permissions.find(run) is not None or owner.is_own is True)

    def _append(self, run: Run, event: Failed | Stopped, *, after: int) -> None:
        """Record the end of a run that has no worker, as ``Run.record_end`` does."""
        try:
            if run.record_end(event, after=after):
                _log(f"{run.run}: {'stopped before it started' if isinstance(event, Stopped) else event.message}")
        except OSError as error:
            _log(f"{run.run}: its log cannot be written: {error}")
            self._unwritable.add(run.run)


def _pause_s(read_s: float, least_s: float) -> float:
    """Return the pause after the store was read in ``read_s``."""
    return min(max(least_s, CLUSTER_PAUSE_RATIO * read_s), CLUSTER_MAX_POLL_S)


def _worker_death(run: Run, code: int) -> Failed:
    """Return the event for a worker that ended without recording an outcome."""
    does = "tests it again" if run.state.finished else "resumes from its last checkpoint"
    again = f"{run.info.resume_command} {does}."
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = (
            " (sent by a user, or by the system because the machine ran out of memory)"
            if -code == signal.SIGKILL
            else ""
        )
        return Failed(error="killed", message=f"the worker was killed by {name}{why}", hint=again)
    return Failed(
        error="crash",
        message=f"the worker ended with exit code {code}: {last_line(run.paths.worker_log)}",
        hint=f"Its output is in {run.paths.worker_log}. {again}",
    )


def _cannot_start(run: Run, error: OSError) -> Failed:
    return Failed(
        error="start",
        message=f"the worker cannot be started: {_describe(error)}",
        hint=f"Fix that. Then {run.info.resume_command} resumes it.",
    )


def _describe(error: OSError) -> str:
    name = "" if error.filename is None else f"{error.filename}: "
    return escape_control_characters(f"{name}{error.strerror or error}")


def _log(message: str) -> None:
    line = escape_control_characters(message).replace("\n", "\\n")  # names of folders are not ours
    print(f"{utc_now()} {line}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except StoreError as error:
        _log(str(error))
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
    # Only errors get here. A normal exit would wait for the workers, while a new runner could serve the queue.
    sys.stderr.flush()
    os._exit(1)
