"""Status of the runs of a store in SLURM, as a poller last asked for it, in a file that every viewer reads.

One process a store asks SLURM, for all runs at once. Viewers never do. A run on SLURM is alive as long as its log
grows, and otherwise if SLURM says so; growth is compared, not clocks.
"""

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from lmconsole.files import atomic_write, read_file
from lmconsole.runs.claim import log_bytes
from lmconsole.runs.events import DAMAGED, SlurmPlace
from lmconsole.runs.paths import SLURM, RunPaths
from lmconsole.runs.state import RunState, Status

MAX_BYTES = 2**26
LIVE = frozenset(
    {
        "COMPLETING",
        "CONFIGURING",
        "PENDING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "RESV_DEL_HOLD",
        "RUNNING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    }
)
"""States of a job that has not ended, or will be started again."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a job that waits for its start."""
INTERRUPTED = frozenset({"BOOT_FAIL", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REQUEUED", "TIMEOUT"})
"""States in which SLURM leaves a job that it, and not a person, has ended."""
WARNINGS = ("SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that SLURM sends ahead of the time limit, and sites ahead of a preemption: the run saves a checkpoint and
ends, and its job is started again."""


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Status of the task of one run in SLURM."""

    job: str = ""
    """Job, such as ``1234_17`` for a task of an array; empty if SLURM does not know one."""
    state: str = ""
    """State in SLURM's words, such as ``PENDING``; empty if SLURM does not know the job."""
    reason: str = ""
    """Reason why the job waits, in SLURM's words."""
    node: str = ""
    """Name of the node."""
    log_bytes: int | None = None
    """Size of the run's log when SLURM was asked: if it has grown since, the answer is older than its last event."""
    ended: bool = False
    """Whether SLURM has ended the job, as far as can be known."""

    @property
    def is_live(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in LIVE

    @property
    def waits(self) -> bool:
        """Whether the job waits for its start, the first one or another."""
        return self.state in WAITING

    @property
    def is_held(self) -> bool:
        """Whether the job waits until a person releases it."""
        return self.waits and (self.state.endswith("HOLD") or "held" in self.reason.lower() or "Hold" in self.reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmState:
    """State of a run that SLURM starts, from its log and the status of its task, as of one moment."""

    task: TaskStatus | None = None
    """Status of the task while the run is active, or may be started again; None without one."""
    stopped: bool = False
    """Whether a signal has stopped the run in its job, and no person has asked it to stop."""
    unanswered: bool = False
    """Whether the run is ``stopped``, and SLURM has yet to answer whether it starts the run again."""
    left: bool = False
    """Whether the log says that the run waits or trains, but SLURM has ended its job, and the log has not grown."""
    interrupted: bool = False
    """Whether SLURM has interrupted the run, and starts it again, or the last job of its submission does. The log ends
    with a signal, or as a node that failed has left it."""


NOT_ON_SLURM = SlurmState()
"""State of a run that SLURM does not start."""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the tasks of all active runs of a store."""

    t: str
    """Time at which SLURM was asked: UTC, ISO 8601."""
    places: dict[str, TaskStatus]
    """Status of each task, by ``place_key``."""
    problem: str = ""
    """Reason why SLURM did not answer since then; empty if it did."""


def place_key(place: SlurmPlace) -> str:
    """Return the key of a run's place in ``ClusterStatus``."""
    return f"{place.batch}/{place.index}"


def last_job_key(place: SlurmPlace) -> str:
    """Return the key of the last job of a submission in ``ClusterStatus``."""
    return f"{place.batch}/last"


def status_file(store: Path) -> Path:
    """Return the file with the status of the runs of the store in SLURM."""
    return store / SLURM / "status.json"


class StatusReader:
    """Reads the status of the runs of a store in SLURM, again when the file has changed."""

    def __init__(self, store: Path) -> None:
        self._path = status_file(store)
        self._version: tuple[int, int, int] | None = None
        self._has_changed = False
        self.status: ClusterStatus | None = None
        """Latest status; None if there is none."""

    @property
    def expects_answers(self) -> bool:
        """Whether SLURM is asked: this machine has its commands, or another one has saved an answer since the file was
        first read. Otherwise the store may be a copy."""
        return self._has_changed or self.has_slurm

    @cached_property
    def has_slurm(self) -> bool:
        """Whether this machine has SLURM's commands."""
        return shutil.which("squeue") is not None

    def refresh(self) -> None:
        """Read the file if it has changed."""
        try:
            found = os.lstat(self._path)
        except OSError:
            self._version = self.status = None
            return
        version = found.st_mtime_ns, found.st_size, found.st_ino
        if version != self._version:
            self._has_changed |= self._version is not None
            self._version = version
            self.status = _read(self._path)

    def task(self, place: SlurmPlace | None) -> TaskStatus | None:
        """Return the status of the run in ``place``; None if it was not asked about it."""
        if place is None or self.status is None:
            return None
        return self.status.places.get(place_key(place))

    def last_job_is_live(self, place: SlurmPlace) -> bool:
        """Return whether the last job of a submission waits or runs: it submits interrupted runs again."""
        last = self.status.places.get(last_job_key(place)) if self.status else None
        return last is not None and last.is_live


def slurm_state(reader: StatusReader, paths: RunPaths, state: RunState) -> SlurmState:
    """Return the state of a run with this ``state`` of its log, and read the status of its task for that."""
    place, stopped = state.queued.slurm if state.queued else None, state.stopped
    if place is None:
        return NOT_ON_SLURM
    by_signal = state.status is Status.STOPPED and stopped is not None and stopped.signal is not None
    by_slurm = by_signal and not paths.stop_requested
    if not state.status.active and not by_slurm:
        return NOT_ON_SLURM
    reader.refresh()
    task = reader.task(place)
    # the log of a run that waits is not compared: a large store has thousands
    compared = task is not None and (task.ended or state.status is not Status.QUEUED)
    answered = compared and task is not None and task.log_bytes == log_bytes(paths.events)
    left = state.status.active and answered and task is not None and task.ended
    warned = by_slurm and stopped is not None and stopped.signal in WARNINGS
    if by_slurm and not answered:
        interrupted = warned and reader.expects_answers
    elif by_slurm and task is not None and not task.ended:
        interrupted = task.is_live
    elif state.status is Status.RUNNING and answered and task is not None and task.waits:
        interrupted = True
    else:
        ended = by_slurm or left
        again = task is not None and (task.state in INTERRUPTED or (warned and task.state != "CANCELLED"))
        interrupted = ended and again and reader.last_job_is_live(place) and not paths.stop_requested
    return SlurmState(
        task=task,
        stopped=by_slurm,
        unanswered=by_slurm and not answered and reader.expects_answers,
        left=left,
        interrupted=interrupted,
    )


def _read(path: Path) -> ClusterStatus | None:
    try:
        return msgspec.json.decode(read_file(path, MAX_BYTES, follow=False), type=ClusterStatus)
    except (OSError, *DAMAGED):
        return None


def write_status(store: Path, status: ClusterStatus) -> None:
    """Save the status for all viewers. Raises OSError."""
    path = status_file(store)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(status))
