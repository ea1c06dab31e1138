"""Workers that prepare the next runs while others train, so that a GPU does not wait for them.

On the host they prepare at once, and on the device as soon as the run that uses it only has its tests left, so that
measurements of a run in training are not disturbed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from lmconsole.engine import worker
from lmconsole.engine.worker import Command, PrepareOnDevice
from lmconsole.runs.store import Run


@dataclass
class PreparedWorker:
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

    def dismiss(self) -> None:
        """Close the connection: a worker without the command to train ends, and its run stays queued."""
        self.commands.close()


@dataclass
class PreparedWorkers:
    """The prepared workers of a runner, by run."""

    log: Callable[[str], None]
    by_run: dict[str, PreparedWorker] = field(default_factory=dict)
    not_ahead: set[str] = field(default_factory=set)
    """Runs that are not prepared ahead, because their waiting worker died."""

    def remove_ended(self, name: str, code: int) -> None:
        """Remove the worker of a run that has ended with this exit code. One that was not dismissed is not tried
        again."""
        ended = self.by_run.pop(name)
        dismissed = ended.commands.closed
        ended.dismiss()
        if code and not dismissed:
            self.not_ahead.add(name)
            self.log(f"{name}: its worker ended before its turn (exit code {code}); the run will start at its turn")

    def allows(self, run: str, device: str, queued_seq: int) -> bool:
        """Return whether a run can start on a device: one that is prepared, only where and as what that was done."""
        prepared = self.by_run.get(run)
        return prepared is None or (prepared.device in (None, device) and prepared.queued_seq == queued_seq)

    def free_device(self, device: str, run: str) -> None:
        """Dismiss the workers of other runs that have prepared on a device, so that ``run`` has it alone."""
        for name, other in self.by_run.items():
            if name != run and other.device == device:
                other.dismiss()

    def prepare(
        self,
        waiting: Sequence[Run],
        training: Mapping[str, Run],
        shared: Path | None,
        may_start: Callable[[Run], bool],
    ) -> None:
        """Prepare the next runs of the queue, one for each GPU that trains one run.

        Args:
            waiting: queued runs, the next one first.
            training: the run that trains on each such GPU.
            shared: folder of the data that workers share.
            may_start: whether the user has permitted a run, asked before a worker is started.
        """
        for run in waiting[: len(training)]:
            queued = run.state.queued
            if queued is None or queued.jobs != 1 or run.stop_requested:
                continue
            others = {device: training[device] for device in queued.devices if device in training}
            wanted = others and run.run not in self.by_run and run.run not in self.not_ahead
            if wanted and len(self.by_run) < len(training) and may_start(run):
                self._start(run, queued.devices[0], shared)
            if run.run in self.by_run:
                self._let_use_device(self.by_run[run.run], others)

    def _start(self, run: Run, device: str, shared: Path | None) -> None:
        try:
            process, commands = worker.start_waiting(run, device, shared)
        except OSError as error:
            self.not_ahead.add(run.run)
            self.log(f"{run.run}: cannot be prepared before its turn: {error}")
        else:
            self.by_run[run.run] = PreparedWorker(process, commands, run.state.queued_seq)

    def _let_use_device(self, prepared: PreparedWorker, others: Mapping[str, Run]) -> None:
        """Let a waiting worker use the first device on which the current run only has its tests left."""
        taken = {each.device for each in self.by_run.values()}
        for device, other in others.items():
            if prepared.device is None and device not in taken and _only_tests(other) and _leaves_memory(other):
                prepared.device = device
                prepared.send(PrepareOnDevice(environment=worker.cuda_environment(device)))


def prepares_ahead(device: str) -> bool:
    """Return whether the next run is prepared while another uses this device: a CPU has no cores to spare."""
    return worker.is_gpu_uuid(device)


def _only_tests(run: Run) -> bool:
    """Return whether this attempt has finished training, so that only its tests are left."""
    state = run.state
    if state.latest is None:
        return False
    sample, epoch = state.telemetry[-1] if state.telemetry else None, state.last_epoch
    testing = sample is not None and sample.seq > state.latest.seq and sample.phase == "test"
    trained = epoch is not None and epoch.seq > state.latest.seq and state.epochs_done >= run.info.settings.epochs
    return testing or trained


def _leaves_memory(run: Run) -> bool:
    """Return whether a run leaves as much memory of its device free as it uses; True where that is unknown."""
    sample = run.state.telemetry[-1] if run.state.telemetry else None
    if sample is None or sample.device_total_mib is None or sample.device_used_mib is None:
        return True
    return sample.device_total_mib - sample.device_used_mib >= (sample.torch_reserved_mib or 0.0)
