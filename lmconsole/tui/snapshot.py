"""Snapshots of the store and the machine, from which everything in the console is drawn."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lmconsole.plan import flops
from lmconsole.runs.cluster import ClusterStatus, SlurmState
from lmconsole.runs.events import (
    Epoch,
    Failed,
    Finished,
    Progress,
    Queued,
    SlurmPlace,
    Started,
    Stopped,
    Telemetry,
    Validation,
)
from lmconsole.runs.info import RunInfo
from lmconsole.runs.notes import Notes
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run
from lmconsole.telemetry.gpu import GpuSample
from lmconsole.telemetry.host import HostMemory
from lmconsole.tui.plot.curve import Curve

FILES_BLOCKED = "its files do not answer"
"""Reason in ``Snapshot.problems`` for a run whose files take too long."""


class RunView(msgspec.Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """One run at one moment, but ``curve`` is shared with later views and keeps growing.

    A struct with ``gc=False`` is not tracked by the cyclic garbage collector: a store may hold thousands of runs.
    """

    run: str
    folder: Path
    info: RunInfo
    status: Status
    stopping: bool
    """Whether it is active and has been asked to stop."""
    unattended: bool
    """Whether it is queued, and nobody will start it."""
    problem: str | None
    """Error in the files of the run, if there is one."""
    damage: tuple[str, ...]
    """Phrases on what is damaged; empty if nothing is."""
    notes: Notes
    notes_problem: str | None
    """Reason why the notes cannot be read."""
    attempt: int
    """Count of starts, from 1; 0 before the first."""
    position: tuple[int, int]
    """Current epoch, from 1, and steps done in it."""
    epochs: tuple[Epoch, ...]
    validations: tuple[Validation, ...]
    """Ends of epochs, and evaluations within them, in the order of training."""
    best: Epoch | None
    progress: Progress | None
    telemetry: Telemetry | None
    queued: Queued | None
    slurm: SlurmState
    """State in SLURM of a run that it starts."""
    started: Started | None
    """Latest attempt at the training."""
    latest: Started | None
    """Latest attempt: another than ``started`` in a run that is tested later."""
    finished: Finished | None
    stopped: Stopped | None
    failed: Failed | None
    test_is_missing: bool
    """Whether the run has finished, and its later test failed or was stopped."""
    elapsed_train_s: float | None
    seconds_left: float | None
    train_seconds_left: float | None
    """``seconds_left`` without evaluations."""
    curve: Curve
    has_whole_curve: bool
    """Whether ``curve`` is that of the whole log, and not empty because the run comes from a cache."""

    @property
    def place(self) -> SlurmPlace | None:
        """Place in a submission to SLURM that starts the run; None if the runner on this machine starts it."""
        return self.queued.slurm if self.queued else None

    @property
    def active_on_slurm(self) -> bool:
        """Whether the run trains or waits on SLURM."""
        return self.place is not None and not self.problem and (self.status.active or self.slurm.interrupted)

    @property
    def node(self) -> str:
        """Name of the node on which the run trains or is about to; empty if there is none."""
        if self.status is Status.RUNNING and not self.slurm.interrupted and self.latest:
            return self.latest.slurm_node or ""
        return self.slurm.task.node if self.slurm.task and self.status is Status.QUEUED else ""

    @property
    def shown_epoch(self) -> Epoch | None:
        """The best epoch, or the last one before there is a best; None before the first."""
        return self.best or (self.epochs[-1] if self.epochs else None)

    @property
    def share_of_peak(self) -> float | None:
        """Share of the device's measured peak matmul throughput that the run reached last; None if unknown."""
        tokens_per_s = self.progress and self.progress.tokens_per_s
        peak_gflops = self.started and self.started.peak_matmul_gflops
        if not tokens_per_s or not math.isfinite(tokens_per_s) or not peak_gflops:
            return None
        return flops.share_of_peak(self.info.settings, self.info.corpus.vocabulary, tokens_per_s, peak_gflops)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSample:
    """The GPUs at one moment, or the host's memory where there is none."""

    gpus: tuple[GpuSample, ...] = ()
    gpu_reason: str | None = None
    """Reason why no GPU is shown."""
    host: HostMemory | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """The store and the machine at one moment."""

    number: int = 0
    """Count of snapshots so far; 0 before the store has been read."""
    runs: dict[str, RunView] = field(default_factory=dict)
    """Runs by name, oldest first."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reasons why run directories cannot be read, or take too long, by name."""
    error: str | None = None
    """Reason why the store as a whole cannot be read."""
    machine: MachineSample = MachineSample()
    cluster: ClusterStatus | None = None
    """Last answer of SLURM about the runs; None if it has not been asked."""
    messages: tuple[str, ...] = ()
    """Messages of the runner about exports since the console opened."""


def view_of(run: Run, curve: Curve, *, stopping: bool, unattended: bool, has_whole_curve: bool = True) -> RunView:
    """Return a run as it is now."""
    state = run.state
    epochs = tuple(state.epochs)
    return RunView(
        run=run.run,
        folder=run.paths.folder,
        info=run.info,
        status=run.status,
        stopping=stopping,
        unattended=unattended,
        problem=run.problem,
        damage=state.damage,
        notes=run.notes,
        notes_problem=run.notes_problem,
        attempt=state.attempt,
        position=state.position,
        epochs=epochs,
        validations=tuple(state.validations) if state.evaluations else epochs,
        best=state.best_epoch,
        progress=state.progress[-1] if state.progress else None,
        telemetry=state.telemetry[-1] if state.telemetry else None,
        queued=state.queued,
        slurm=run.slurm,
        started=state.started,
        latest=state.latest,
        finished=state.finished,
        stopped=state.stopped,
        failed=state.failed,
        test_is_missing=run.test_is_missing,
        elapsed_train_s=state.elapsed_train_s,
        seconds_left=state.seconds_left(run.info.settings.epochs),
        train_seconds_left=state.train_seconds_left(run.info.settings.epochs),
        curve=curve,
        has_whole_curve=has_whole_curve,
    )
