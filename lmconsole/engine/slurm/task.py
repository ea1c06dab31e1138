"""One task of a job array: it claims its run, trains it with the worker, and has itself started again if it was
interrupted.

SLURM may start a task several times, and late. A task trains its run only while the log's last ``queued`` event names
its place in its submission, and no other process has claimed that event. Claims decide, not locks: see
``runs/claim.py``.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lmconsole.engine import stop_signals, worker
from lmconsole.engine.slurm.batch import Batch, array_file, read_batch, read_runs
from lmconsole.engine.slurm.commands import SlurmError, control, describe_job, submit
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.files import open_file
from lmconsole.runs import lock
from lmconsole.runs.claim import Claim, Held, last_claim, log_bytes, make_claim
from lmconsole.runs.cluster import WARNINGS
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Epoch, Failed, Queued, Resumed, SlurmPlace, Stopped
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

CONTINUES = "output continues in "
"""Start of the line after which a task prints into the log of the worker."""
PATIENCE_S = 90.0
"""Time for which SLURM is asked again and again to start the task again, while its controller does not answer."""
QUIET_S = 60.0
"""Time without growth after which the log of an attempt on another host has no writer: more than it takes until what a
node has written is seen by another one."""
LOCK_TIMEOUT_S = 120.0
"""Time for an earlier attempt on this host to notice that it is superseded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The task that this process is."""

    job: int
    """Number of the job."""
    name: str
    """Name for SLURM's commands, such as ``1234_17``."""
    index: int
    """Index of the run in the submission."""
    element: int
    """Number of the task in its array."""
    part: int
    """Index of the first run of the array."""
    restarts: int
    """Times that SLURM has started the job before."""
    node: str


def main(arguments: Sequence[str]) -> int:
    """Train the run of this task, and return the exit code."""
    received = stop_signals.collect()  # until the worker does so: they must not end this process half-way
    try:
        return _main(Store(Path(arguments[0])), arguments[1], _this_task(int(arguments[2])), received)
    except (LmconsoleError, OSError) as error:
        _say(str(error))
        return 1


def _main(store: Store, batch: str, task: Task, received: Sequence[int]) -> int:
    """Train the run of ``task``, unless it is not for this task to train or a signal was ``received`` meanwhile."""
    content = read_batch(store.root, batch)
    place = SlurmPlace(batch=batch, index=task.index)
    names = read_runs(store.root, batch, task.part)
    if task.element >= len(names):
        _say(f"{batch}: no run has the index {task.index}")
        return 0
    name = names[task.element]
    run = store.open(name)
    if run is None:
        _say(f"{name}: no longer in the store")
        return 0
    held = begin(store, run, content, place, task)
    if held is None:
        return 0
    run.refresh()
    if received:
        _start_again(run, content, task, signal.Signals(received[0]).name)
        return 0
    return _train(run, content, task, held)


def _this_task(part: int) -> Task:
    environment = os.environ
    element = int(environment["SLURM_ARRAY_TASK_ID"])
    return Task(
        job=int(environment["SLURM_JOB_ID"]),
        name=f"{environment['SLURM_ARRAY_JOB_ID']}_{element}",
        index=part + element,
        element=element,
        part=part,
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        node=environment.get("SLURMD_NODENAME", environment.get("SLURM_JOB_NODELIST", "")),
    )


def begin(store: Store, run: Run, content: Batch, place: SlurmPlace, task: Task) -> Held | None:
    """Claim the run, and queue it again if this is not its first start. Return None, and say why, if it is not for this
    task to train.

    Raises:
        LmconsoleError: the permission of the user cannot be read or saved.
        OSError: the run cannot be read or written.
    """
    number, last = last_claim(run.paths)  # before the log, so that what is claimed is not older than what is read
    run.refresh()
    if (why := why_not(run, place, task, last)) is not None:
        _say(f"{run.run}: {why}")
        return None
    permissions = Permissions(store.root)
    permission = permissions.read(run)
    if permission is None:
        _say(
            f"{run.run}: you have not permitted to start it, as far as {host_name()} knows. Permissions are in the "
            "state folder of your home (XDG_STATE_HOME), which the nodes must share with the submit host."
        )
        return None
    held = make_claim(
        run.paths,
        number,
        queued_seq=run.state.queued_seq,
        job=task.job,
        restarts=task.restarts,
        node=task.node,
    )
    if held is None:
        _say(f"{run.run}: another process has just claimed it")
        return None
    if run.state.status is Status.QUEUED and last_job(last) != task.job:
        return held
    if not _earlier_attempt_has_ended(run.paths, last):
        _say(f"{run.run}: an earlier attempt still holds its lock after {LOCK_TIMEOUT_S:.0f} s")
        return None
    event = _queue_again(held, content)
    if event is None:
        return None
    permissions.grant(run.paths, event.seq, permission.after)
    permissions.remove(permission)
    return held


def last_job(last: Claim | None) -> int:
    """Return the job that made a claim; 0 for none, or for a command."""
    return last.job if last else 0


def why_not(run: Run, place: SlurmPlace, task: Task, last: Claim | None) -> str | None:
    """Return why a run is not for this task to train; None if it is."""
    state, queued = run.state, run.state.queued
    if queued is None or queued.slurm is None or (queued.slurm.batch, queued.slurm.index) != (place.batch, place.index):
        return "it was queued again elsewhere"
    own = last_job(last) == task.job
    if state.status is Status.FINISHED and not run.test_is_missing:
        return "it has finished"
    if run.stop_requested or (state.status is Status.STOPPED and state.stopped and state.stopped.signal is None):
        return "it was stopped"
    if state.status is Status.QUEUED:
        # A command claims a run before it queues it; a task that queues it again is about to train it.
        if last is None or (not last.job and last.queued_seq < state.queued_seq):
            return None
        return None if own and last.restarts < task.restarts else "another process has claimed it"
    if not own:
        return "another job has it"
    return None if last is not None and last.restarts < task.restarts else "this job has had it"


def _earlier_attempt_has_ended(paths: RunPaths, last: Claim | None) -> bool:
    """Wait until the process of the last claim writes the log no more: it sees that it is superseded.

    On this host its lock says so. On another one, and on a file system without locks, it is the log, which grows as
    long as the process lives.
    """
    if last is None or last.host == host_name():
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        with contextlib.suppress(lock.NoLocksError):
            while lock.owner(paths.lock) is not None:
                if time.monotonic() > deadline_s:
                    return False
                time.sleep(0.1)
            return True
    state = RunState()
    state.read(EventReader(paths.events))
    if not state.status.active:
        return True  # it has recorded its end
    size, since_s = log_bytes(paths.events), time.monotonic()
    while time.monotonic() - since_s < QUIET_S:
        time.sleep(1.0)
        if (now := log_bytes(paths.events)) != size:
            size, since_s = now, time.monotonic()
    return True


def _queue_again(held: Held, content: Batch) -> Queued | None:
    """Append the event that the run is queued again; None, and say why, if it is no longer for this task to train, or
    has been started too often, which is recorded."""
    paths = held.paths
    with lock.held(paths.lock, worker.LOCK_TIMEOUT_S, optional=True):  # for processes on this host that respect it
        if held.superseded:  # while it waited for the end of the earlier attempt
            _say(f"{paths.run}: another process has claimed it")
            return None
        log = EventLog(paths.events, fenced=True)
        try:
            state = RunState()
            state.read(EventReader(paths.events))
            assert state.queued is not None
            assert state.queued.slurm is not None
            if attempts_in_vain(paths) > content.restarts:
                failed = log.append(too_often(content.restarts), sync=True)
                _say(f"{paths.run}: {failed.message}")
                return None
            slurm = msgspec.structs.replace(state.queued.slurm, restarts=state.queued.slurm.restarts + 1)
            return log.append(msgspec.structs.replace(state.queued, slurm=slurm, seq=0, t=""), sync=True)
        finally:
            log.close()


def attempts_in_vain(paths: RunPaths) -> int:
    """Return how many of the last attempts, in a row, have not brought the run any further, since a person last queued
    it: no checkpoint is known that is beyond the one before. Raises OSError, StoreError."""
    attempts, furthest = 0, (1, 0)
    for event in EventReader(paths.events).read_new():
        if isinstance(event, Queued):
            again = event.slurm is not None and event.slurm.restarts > 0
            attempts = attempts + 1 if again else 1
        elif isinstance(event, Epoch | Resumed | Stopped):
            saved = (event.epoch + 1, 0) if isinstance(event, Epoch) else (event.epoch, event.step)
            if saved > furthest:
                attempts, furthest = 0, saved
    return attempts


def too_often(restarts: int) -> Failed:
    """Return the event for a run that does not get on, however often it is started again."""
    return Failed(
        error="restarts",
        message=f"it was interrupted {restarts + 1} times in a row without getting any further",
        hint="Find out why, with `lmconsole status` or the output of the tasks, or raise restarts in [executor.slurm]. "
        "Then the same command resumes it from its last checkpoint.",
    )


def _train(run: Run, content: Batch, task: Task, held: Held) -> int:
    """Train the run, and see to it that an interrupted one is started again."""
    _redirect_output(run.paths)
    assert run.state.queued is not None
    arguments = [str(run.paths.folder), "--device", run.state.queued.devices[0]]
    try:
        code = worker.main(arguments, task=worker.SlurmTask(job=task.name, node=task.node, claim=held))
    except OSError:  # the log could not be written
        traceback.print_exc()
        raise
    state = RunState()
    state.read(EventReader(run.paths.events))
    name = state.stopped.signal if state.stopped else None
    if code == 0 and name is not None and not held.superseded:
        run.refresh()
        _start_again(run, content, task, name)
    return code


def _start_again(run: Run, content: Batch, task: Task, name: str) -> None:
    """Have the task started again if it was interrupted by SLURM, and not by a person.

    A warning comes ahead of the time limit or of a preemption. SIGTERM comes with a preemption, and also when SLURM
    starts the job again by itself, or a person cancels it.
    """
    if attempts_in_vain(run.paths) > content.restarts:
        _say(f"stopped by {name}; it does not get on, however often it is started again")
        return
    if name not in WARNINGS:
        try:
            found = describe_job(task.name)
        except SlurmError as error:
            _say(f"stopped by {name}; SLURM does not say why: {error}")
            return
        if int(found.get("Restarts", "0")) > task.restarts:
            _say(f"stopped by {name}; SLURM starts the job again")
            return
        if found.get("PreemptTime", "None") in ("None", "Unknown", "N/A"):
            _say(f"stopped by {name}; it can be resumed")
            return
    try:
        control("requeue", task.name, limit_s=PATIENCE_S)
        _say(f"stopped by {name}; the job is started again")
    except SlurmError as error:
        _say(f"stopped by {name}; this job cannot be started again ({error.message}), so another one is submitted")
        _submit_again(run, task)


def _submit_again(run: Run, task: Task) -> None:
    """Submit this task as a new job. If that is impossible here, the last job does it."""
    from lmconsole.engine.queue import queue_interrupted

    place = run.state.queued.slurm if run.state.queued else None
    assert place is not None
    try:
        store = Store(run.paths.folder.parent)
        if queue_interrupted(store, run):
            submit(array_file(store.root, place.batch, task.part), f"--array={task.element}", limit_s=PATIENCE_S)
    except (LmconsoleError, OSError) as error:
        _say(f"it cannot be submitted here: {error}")


def _redirect_output(paths: RunPaths) -> None:
    """Send what this process prints to the log of the worker, as on one machine. SLURM's own lines stay in the output
    of the task."""
    output = open_file(paths.worker_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=False)
    _say(f"{CONTINUES}{paths.worker_log}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())
    os.close(output)


def _say(message: str) -> None:
    print(escape_control_characters(message), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
