"""The runner: a detached process that starts queued runs in order, as many at once as their devices allow.

It only starts runs: workers outlive it, and the next runner finds them by their locks.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from lmconsole.engine import stop_signals, worker
from lmconsole.engine.alerts import Alerts
from lmconsole.engine.digest import summarize, write_digest
from lmconsole.engine.processes import last_line, python, start_program
from lmconsole.engine.shared_data import shared_folder
from lmconsole.engine.worker import EXIT_NOT_TRAINED, Command, PrepareOnDevice, Train
from lmconsole.errors import StoreError, escape_control_characters
from lmconsole.runs import lock
from lmconsole.runs.events import Failed, Queued, Stopped, utc_now
from lmconsole.runs.permissions import Permission, Permissions, text_of
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, has_room, queue_order

POLL_S = 0.2
OTHER_USER_POLL_S = 1.0
"""Interval at which a runner checks whether that of another user has ended."""
EXPORT_TIMEOUT_S = 900.0
EXPORT_POLL_S = 0.05
"""Interval at which alerts are given while the exports are written."""
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
            time.sleep(OTHER_USER_POLL_S)
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


@dataclass
class _PreparedWorker:
    """A worker that prepares its run and waits for the command to train it."""

    process: BaseProcess
    commands: Connection
    queued_seq: int
    """Number of the ``queued`` event that it serves."""
    device: str | None = None
    """Device that it may already use."""

    def send(self, command: Command) -> bool:
        """Send a command. Return False if the worker has ended."""
        try:
            self.commands.send(command)
        except OSError:
            return False
        return True


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
        self._prepared: dict[str, _PreparedWorker] = {}
        self._served: dict[str, Run] = {}
        """Runs that were queued or running since the queue was last empty."""
        self._unwritable: set[str] = set()
        """Runs whose logs cannot be written, so that they are not started."""
        self._not_ahead: set[str] = set()
        """Runs that are not prepared ahead, because their waiting worker died."""

    def serve(self) -> None:
        """Start queued runs and record how they end, until none is queued or running; then finish."""
        self.alerts.resume()
        while True:
            runs = self.store.runs()
            self.alerts.check(runs, self._workers)
            self._reap(runs)
            busy = self._busy(runs)
            self._served |= {run.run: run for run in runs if run.run in busy}
            waiting = [run for run in runs if self._waits(run) and run.run not in busy]
            waiting.sort(key=lambda run: queue_order(run.info, run.state.queued))
            for run in waiting:
                self._served[run.run] = run
                if run.run in self._prepared and run.stop_requested:
                    continue  # its worker records that itself
                if run.stop_requested:
                    epoch, step = run.state.position
                    self._append(run, Stopped(epoch=epoch, step=step), after=run.state.queued_seq)
                else:
                    self._start(run, busy)
            self._prepare_ahead(waiting, busy, runs)
            if not waiting and not busy and not self._workers and not self._prepared:
                break
            self._pause()
        self._finish()

    def has_work(self) -> bool:
        """Return whether a queued run can be started."""
        return any(self._waits(run) for run in self.store.runs())

    def _waits(self, run: Run) -> bool:
        return (
            run.status is Status.QUEUED
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
        for name, ahead in list(self._prepared.items()):
            code = ahead.process.exitcode
            run = by_name.get(name)
            if code is None or (code == FORK_SERVER_GONE and run and self._worker_pid(run) is not None):
                if run is None or not self._waits(run):
                    ahead.commands.close()  # the run was deleted or stopped, so its worker is to end
                continue
            dismissed = ahead.commands.closed
            ahead.commands.close()
            del self._prepared[name]
            if code and not dismissed:
                self._not_ahead.add(name)
                _log(f"{name}: its worker ended before its turn (exit code {code}); the run will start at its turn")
        for name, child in list(self._workers.items()):
            code = child.process.exitcode
            run = by_name.get(name)
            if code is None or (code == FORK_SERVER_GONE and run and self._worker_pid(run) is not None):
                continue
            del self._workers[name]
            if run is not None and code != EXIT_NOT_TRAINED:
                self._append(run, _worker_death(run, code), after=child.queued_seq)

    def _busy(self, runs: list[Run]) -> dict[str, _Occupancy]:
        """Return the devices that each active run of this user occupies."""
        busy: dict[str, _Occupancy] = {}
        for run in runs:
            queued = run.state.queued
            if queued is None or run.run in self._prepared:
                continue
            if run.run in self._workers:
                busy[run.run] = _Occupancy({self._workers[run.run].device}, queued.jobs)
            elif self._is_own_worker(run):
                started = run.state.started if run.status is Status.RUNNING else None
                devices = {started.device_uuid or started.device} if started else set(queued.devices)
                busy[run.run] = _Occupancy(devices, queued.jobs)
        return busy

    def _start(self, run: Run, busy: dict[str, _Occupancy]) -> None:
        """Start ``run`` on a device with room for it. Without one, it reserves its devices against later runs."""
        queued = run.state.queued
        assert queued is not None
        for device in sorted(queued.devices, key=lambda each: sum(each in other.devices for other in busy.values())):
            others = [other.jobs for other in busy.values() if device in other.devices]
            ahead = self._prepared.get(run.run)
            if ahead is not None and (ahead.device not in (None, device) or ahead.queued_seq != queued.seq):
                continue
            if has_room(queued.jobs, others):
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
        ahead = self._prepared.get(run.run)
        devices = {ahead.device} if ahead and ahead.device else set(queued.devices)
        busy[f"waiting {run.run}"] = _Occupancy(devices, jobs=0)

    def _start_on(self, run: Run, device: str, sibling_pids: Sequence[int]) -> BaseProcess | None:
        """Start a worker, or let the waiting one train. Return None if the waiting one has just ended. Raises
        OSError if a worker cannot be started."""
        for name, other in self._prepared.items():
            if name != run.run and other.device == device:
                other.commands.close()  # its worker ends and its run stays queued; this run has the device alone
        ahead = self._prepared.get(run.run)
        if ahead is None:
            return worker.start(run, device, sibling_pids, self.shared)
        environment, sent_at_s = worker.cuda_environment(device), time.monotonic()
        if not ahead.send(Train(environment=environment, sibling_pids=tuple(sibling_pids), sent_at_s=sent_at_s)):
            return None
        ahead.commands.close()
        del self._prepared[run.run]
        return ahead.process

    def _prepare_ahead(self, waiting: list[Run], busy: dict[str, _Occupancy], runs: list[Run]) -> None:
        """Prepare the next run for each GPU that trains one run: on the host at once, and on the device as soon as the
        other run only has its tests left, so that measurements of a run in training are not disturbed."""
        by_name = {run.run: run for run in runs}
        trains = {
            device: by_name[name]
            for name, occupancy in busy.items()
            for device in occupancy.devices
            if occupancy.jobs == 1
            and prepares_ahead(device)
            and name in by_name
            and by_name[name].status is Status.RUNNING
        }
        for run in [run for run in waiting if run.run not in busy][: len(trains)]:  # only the runs that are next
            queued = run.state.queued
            if queued is None or queued.jobs != 1 or run.stop_requested:
                continue
            others = {device: trains[device] for device in queued.devices if device in trains}
            if run.run not in self._prepared and others and len(self._prepared) < len(trains):
                self._start_waiting(run, queued)
            if run.run in self._prepared:
                self._let_use_device(self._prepared[run.run], others)

    def _start_waiting(self, run: Run, queued: Queued) -> None:
        if run.run in self._not_ahead or self._permissions.read(run) is None:
            return
        try:
            process, commands = worker.start_waiting(run, queued.devices[0], self.shared)
        except OSError as error:
            self._not_ahead.add(run.run)
            _log(f"{run.run}: cannot be prepared before its turn: {error}")
        else:
            self._prepared[run.run] = _PreparedWorker(process, commands, queued.seq)

    def _let_use_device(self, ahead: _PreparedWorker, others: Mapping[str, Run]) -> None:
        """Let a waiting worker use the first device on which the current run only has its tests left."""
        taken = {each.device for each in self._prepared.values()}
        for device, other in others.items():
            if ahead.device is None and device not in taken and _only_tests(other) and _leaves_memory(other):
                ahead.device = device
                ahead.send(PrepareOnDevice(environment=worker.cuda_environment(device)))

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

    def _finish(self) -> None:
        """Export and run the programs that this user asked for, now that the queue is empty, write the digest, and
        remove the permissions of runs that have ended."""
        fulfilled = self._ended()
        runs = self.store.runs()
        self.alerts.resume()  # some may have been queued and ended between two checks
        self.alerts.check(runs, ())
        self._served.clear()
        for folder in dict.fromkeys(each.after.exports for each in fulfilled if each.after.exports):
            self._call(python("lmconsole.report", str(self.store.root), folder), EXPORT_TIMEOUT_S)
        ended = {each.run for each in fulfilled}
        digest = summarize(self.store, [run for run in runs if text_of(run.run) in ended or self._is_lost(run)], runs)
        if ended:
            try:
                write_digest(self.store, digest)
            except OSError as error:
                _log(f"the digest cannot be written: {error.strerror}")
        removed = []
        for each in fulfilled:  # first, so that no program is started twice, whatever happens to this process
            if self._permissions.remove(each):
                removed.append(each)
            else:
                _log(f"{each.run}: its permission cannot be removed, so no program is started for it")
        self.alerts.add_digest(digest, removed)
        self.alerts.mark_pending()
        programs = ((each.after.on_finish, each.after.cwd) for each in removed if each.after.on_finish)
        for program, cwd in dict.fromkeys(programs):
            try:
                start_program(program, cwd, self.store.runner_log)
            except OSError as error:
                _log(f"{program[0]}: cannot be started: {error}")

    def _ended(self) -> list[Permission]:
        """Return the permissions of runs that have ended, under this runner or an earlier one, and remove those of runs
        that were deleted, or queued again by someone else."""
        saved = self._permissions.saved()  # before the logs, so that each has the event that a permission covers
        runs = {text_of(run.run): run for run in self.store.runs()}
        names = {text_of(name) for name in self.store.names()}
        ended = []
        for permission in saved:
            run = runs.get(permission.run)
            if run is None or run.problem:
                if permission.run not in names:
                    self._permissions.remove(permission)
            elif run.state.queued_seq > permission.queued_seq:
                self._permissions.remove(permission)
            elif not self._goes_on(run) and self._permissions.read(run) == permission:
                ended.append(permission)
        return ended

    def _is_lost(self, run: Run) -> bool:
        """Return whether ``run`` was lost, and waits to be resumed by this user."""
        return run.status is Status.LOST and self._permissions.find(run) is not None

    def _goes_on(self, run: Run) -> bool:
        """Return whether ``run`` has not ended yet. One that was lost under an earlier runner can be resumed."""
        return run.status.active or (run.status is Status.LOST and run.run not in self._served)

    def _call(self, command: list[str], timeout_s: float) -> None:
        """Run a program to its end, and give alerts meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            _log(f"{command}: {error}")
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
            _log(f"{command}: exit code {code}")


def prepares_ahead(device: str) -> bool:
    """Return whether the next run is prepared while another uses this device: a CPU has no cores to spare."""
    return worker.is_gpu_uuid(device)


def _only_tests(run: Run) -> bool:
    """Return whether this attempt has finished training, so that only its tests are left."""
    state = run.state
    if state.started is None:
        return False
    sample, epoch = state.telemetry[-1] if state.telemetry else None, state.last_epoch
    testing = sample is not None and sample.seq > state.started.seq and sample.phase == "test"
    trained = epoch is not None and epoch.seq > state.started.seq and state.epochs_done >= run.info.settings.epochs
    return testing or trained


def _leaves_memory(run: Run) -> bool:
    """Return whether a run leaves as much memory of its device free as it uses; True where that is unknown."""
    sample = run.state.telemetry[-1] if run.state.telemetry else None
    if sample is None or sample.device_total_mib is None or sample.device_used_mib is None:
        return True
    return sample.device_total_mib - sample.device_used_mib >= (sample.torch_reserved_mib or 0.0)


def _worker_death(run: Run, code: int) -> Failed:
    """Return the event for a worker that ended without recording an outcome."""
    again = f"`lmconsole run {run.info.experiment.id}` with the same options resumes from its last checkpoint."
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
        hint=f"Fix that, then run `lmconsole run {run.info.experiment.id}` again.",
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
