"""The events of a run: the lines of its log, which is JSON Lines and the only source of truth about the run.

``runs/event_log.py`` appends them, ``runs/event_reader.py`` reads them, and ``runs/state.py`` folds them into the
present state.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Literal, TypeVar, get_type_hints

import msgspec

MAX_LOSS_NATS = 700.0
"""Losses above this have an infinite perplexity: exp(710) overflows."""

MAX_JOBS = 1_024
"""Most runs at once on one device."""

# A value outside these ranges makes its line a damaged one, so that all other code can rely on them.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
EpochNumber = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Jobs = Annotated[int, msgspec.Meta(ge=1, le=MAX_JOBS)]
Loss = Annotated[float, msgspec.Meta(ge=-MAX_LOSS_NATS, le=1e40)]
"""Cross-entropy in nats, computed from single precision."""
Ppl = Annotated[float, msgspec.Meta(gt=0.0, le=1e306)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e10)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
"""Text that tables and captions show."""
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]
"""Joules, MiB, tokens per second, GFLOP/s."""

Phase = Literal["setup", "train", "valid", "test"]

NonFinite = dict[str, Literal["nan", "inf", "-inf"]]
"""Metrics that are NaN or infinite, by field. JSON has no such numbers: the log has null in their place and names them
here. The fields of an event that is read back hold the numbers themselves, so that None always means unknown."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind"):
    """One line of the log. ``EventLog.append`` sets ``seq`` and ``t``."""

    seq: int = 0
    """Number of the event in its log, counted from 1 without gaps."""
    t: str = ""
    """Time of writing: UTC, ISO 8601, to the millisecond."""


Device = Annotated[str, msgspec.Meta(pattern=r"\A(cpu|cuda:[0-9]{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{1,100})\Z")]
"""``cpu``, a GPU by the UUID of it or of its MIG slice, or by its number where PyTorch knows no UUIDs."""


BATCH_PATTERN = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}"
"""Id of a submission to SLURM: its time in UTC, and a random part."""
BatchId = Annotated[str, msgspec.Meta(pattern=rf"\A{BATCH_PATTERN}\Z")]


class SlurmPlace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Place of a run in a submission to SLURM."""

    batch: BatchId
    """Id of the submission: a folder in the folder ``.slurm`` of the store, and part of the name of its jobs."""
    index: Number
    """Index of the run in the submission, from 0."""
    restarts: Number = 0
    """Times that SLURM has started the run before, in this submission."""


class Queued(Event, frozen=True, kw_only=True, gc=False, tag="queued"):
    """The run was put into the queue, for the first time or again. The last such event schedules the run.

    It does not allow the run to be started: see ``runs/permissions.py``. Logs of version 0.1.0 also name what to do
    when the queue is empty (``exports``, ``on_finish``, ``cwd``), which is ignored.
    """

    devices: Annotated[tuple[Device, ...], msgspec.Meta(max_length=1_024)]
    """The run may use any one of these. Empty in imported runs."""
    jobs: Jobs
    """Most runs at once on one device, this one included."""
    place: Number = 0
    """Position in the queue, counted over all runs ever queued in the store; 0 in logs of version 0.1.0."""
    test: bool = True
    """Whether the run is tested at its end. A run that has finished without its tests is queued again to be tested, and
    not trained again."""
    registrations: Number = 0
    """Number of the last registration of claims in the store by then, 0 for none: it shows if that is removed later."""
    slurm: SlurmPlace | None = None
    """Place in a submission, for a run that SLURM starts; None for one that the runner on this machine starts."""


class Started(Event, frozen=True, kw_only=True, gc=False, tag="started"):
    """A worker started an attempt."""

    attempt: Positive
    """Number of the attempt at this run, from 1."""
    pid: Number
    """Process id of the worker."""
    host: Name
    """Name of the machine."""
    device: Name
    """Device as PyTorch names it: ``cpu`` or ``cuda:0``."""
    device_name: Name
    """Name of the device for people, such as ``NVIDIA H100``."""
    device_uuid: Name | None
    """UUID of the GPU or its MIG slice; None on a CPU."""
    versions: dict[Name, Name | None]
    """Versions of lmconsole, Python, PyTorch, CUDA and the driver; None where there is none."""
    threads: Positive
    """CPU threads of the worker."""
    precision: Name
    """Precision of matrix products: ``fp32``, ``tf32`` or ``bf16``."""
    parameters_total: Number
    """Parameters of the model, frozen ones included."""
    parameters_trainable: Number
    """Parameters that are trained."""
    shared_gpu: bool | None = None
    """Whether other processes used the GPU when the attempt began; None where that cannot be known."""
    peak_matmul_gflops: Amount | None = msgspec.field(name="ceiling_gflops", default=None)
    """Peak matmul throughput of the device in this precision, in GFLOP/s, if `lmconsole bench` had measured it."""
    attention: str | None = None
    """Implementation of attention (``lm/gpt1.py`` has the names); None for an LSTM."""
    checkpoints_set_aside: Number = 0
    """Checkpoints that could not be used when the attempt began."""
    code_sha256: Name | None = None
    """Hash of the modules of lmconsole that compute results, as the worker has them; None in logs of version 0.1.0."""
    slurm_job: Name | None = None
    """SLURM's job, such as ``1234_17`` for a task of an array; None where the runner started the attempt."""
    slurm_node: Name | None = None
    """SLURM's name of the node; None where the runner started the attempt."""


class Resumed(Event, frozen=True, kw_only=True, gc=False, tag="resumed"):
    """The attempt continues after ``step`` steps of ``epoch``; earlier events beyond that point are void."""

    epoch: EpochNumber
    """Epoch in which it continues, from 1."""
    step: Number
    """Steps of this epoch that are done."""


class Progress(Event, frozen=True, kw_only=True, gc=False, tag="progress"):
    """Progress of training: at most twice a second, and before each evaluation."""

    epoch: EpochNumber
    """Epoch in progress, from 1."""
    step: Number
    """Steps of this epoch that are done."""
    steps: Positive
    """Steps in an epoch."""
    train_loss_nats: Loss | None
    """Mean train loss since the last such event, in nats per target token."""
    tokens_per_s: Amount | None
    """Target tokens trained per second since the last such event."""
    elapsed_train_s: Seconds
    """Training time since the first step, over all attempts, in seconds; without setup and evaluation."""
    non_finite: NonFinite = {}
    """Metrics that are NaN or infinite, and therefore null in the log, by field."""


class Evaluation(Event, frozen=True, kw_only=True, gc=False, tag="evaluation"):
    """Evaluation of the validation split within an epoch, as ``evaluate_every_steps`` asks for it. The one at the end
    of an epoch is part of ``epoch``."""

    epoch: EpochNumber
    """Epoch in progress, from 1."""
    step: Positive
    """Steps of this epoch that are done."""
    steps: Positive
    """Steps in an epoch."""
    valid_loss_nats: Loss | None
    """Mean validation loss, in nats per target token."""
    valid_ppl: Ppl | None
    """Validation perplexity: exp of the validation loss."""
    valid_s: Seconds
    """Time of the evaluation, in seconds."""
    elapsed_train_s: Seconds
    """Training time up to the evaluation, over all attempts, in seconds."""
    non_finite: NonFinite = {}
    """Metrics that are NaN or infinite, and therefore null in the log, by field."""

    @property
    def passes(self) -> float:
        """Passes over the train split up to the evaluation."""
        return self.epoch - 1 + min(self.step / self.steps, 1.0)


class Epoch(Event, frozen=True, kw_only=True, gc=False, tag="epoch"):
    """End of an epoch. Times are None only in imported runs whose source does not state them."""

    epoch: EpochNumber
    """Number of the epoch, from 1."""
    train_loss_nats: Loss | None
    """Mean train loss of the epoch, in nats per target token."""
    train_ppl: Ppl | None
    """Train perplexity of the epoch: exp of the train loss."""
    valid_loss_nats: Loss | None
    """Mean validation loss after the epoch, in nats per target token."""
    valid_ppl: Ppl | None
    """Validation perplexity after the epoch: exp of the validation loss."""
    train_s: Seconds | None
    """Training time of the epoch, in seconds."""
    valid_s: Seconds | None
    """Time of the validation, in seconds."""
    elapsed_train_s: Seconds | None
    """Training time up to the end of the epoch, over all attempts, in seconds."""
    energy_j: Amount | None = None
    """Energy in joules that the whole GPU board used for training and validation, also within the epoch, from the
    driver's counter. None on a CPU, for an epoch shorter than two seconds, on a shared GPU, and where the driver has no
    counter."""
    non_finite: NonFinite = {}
    """Metrics that are NaN or infinite, and therefore null in the log, by field."""

    @property
    def passes(self) -> float:
        """Passes over the train split up to the end of the epoch."""
        return float(self.epoch)


class Telemetry(Event, frozen=True, kw_only=True, gc=False, tag="telemetry"):
    """One sample of the device and the worker process. None is unknown. Unlike those of other events, the numbers may
    have any size: a third of all lines are samples, and checking them would make reading slower."""

    phase: Phase
    """Activity of the run at that moment."""
    samples: Positive | msgspec.UnsetType = msgspec.UNSET
    """Number of consecutive readings whose mean this is, in imported runs; unset for a single one."""
    epoch: EpochNumber | None = None
    """Epoch in progress, from 1."""
    device_used_mib: float | None = None
    """Memory of the GPU that all processes use, in MiB."""
    device_total_mib: float | None = None
    """Memory of the GPU, in MiB."""
    process_used_mib: float | None = None
    """Memory of the GPU that the worker uses, in MiB."""
    torch_allocated_mib: float | None = None
    """Memory of tensors on the GPU, in MiB."""
    torch_reserved_mib: float | None = None
    """Memory of the GPU that PyTorch's allocator holds, in MiB."""
    utilization_percent: float | None = None
    """Share of the time in which the GPU computed, in percent."""
    power_w: float | None = None
    """Power of the GPU board, in watts."""
    temperature_c: float | None = None
    """Temperature of the GPU, in degrees Celsius."""
    rss_mib: float | None = None
    """Resident memory of the worker in host memory, in MiB."""


class Finished(Event, frozen=True, kw_only=True, gc=False, tag="finished"):
    """The run is complete. Test perplexities are given for the weights of the last epoch and of the best one.

    A run that is tested later has a second such event, with the numbers of the first and those of the test.
    """

    test_ppl_final: Ppl | None
    """Test perplexity with the weights of the last epoch. None if the run was not tested, or was tested later and the
    best epoch is not the last: only the best weights are kept."""
    test_ppl_best: Ppl | None
    """Test perplexity with the weights of the best epoch. None if the run was not tested, and in imported runs."""
    best_epoch: EpochNumber | None
    """Epoch with the lowest validation loss, from 1; None if no loss was finite."""
    best_valid_ppl: Ppl | None
    """Validation perplexity of that epoch."""
    setup_s: Seconds | None
    """Time of loading, building and capturing, over all attempts, in seconds. None in imported runs."""
    wall_s: Seconds | None
    """Time of the whole run, over all attempts, in seconds. None in imported runs."""
    diverged: bool
    """Whether the loss became NaN or infinite."""
    stopped_early: bool = False
    """Whether training ended before the last epoch because the validation perplexity no longer improved."""
    torch_peak_mib: Amount | None = None
    """Peak memory of tensors on the GPU, in MiB."""
    rss_peak_mib: Amount | None = None
    """Peak resident memory of the worker in host memory, in MiB."""
    energy_j: Amount | None = None
    """Energy in joules that the whole GPU board used from the start of the first epoch to the end of the last, over all
    attempts, without setup and tests. None if training took less than two seconds or a reading of the counter is
    missing."""
    non_finite: NonFinite = {}
    """Metrics that are NaN or infinite, and therefore null in the log, by field."""

    @property
    def tested(self) -> bool:
        """Whether there are test results. A diverged run has some, which may be NaN."""
        return self.test_ppl_best is not None or self.test_ppl_final is not None


class Stopped(Event, frozen=True, kw_only=True, gc=False, tag="stopped"):
    """The run was stopped by request after ``step`` steps of ``epoch`` and can be resumed."""

    epoch: EpochNumber
    """Epoch in which it stopped, from 1; one more than the last if all epochs were complete."""
    step: Number
    """Steps of this epoch that are done."""
    signal: Name | None = None
    """Name of the signal that stopped it, such as ``SIGTERM``; None if it was asked to stop."""


class Failed(Event, frozen=True, kw_only=True, gc=False, tag="failed"):
    """The attempt failed. The run can be resumed."""

    error: str
    """Kind of the error (``TrainingError.kind``), such as ``out-of-memory``."""
    message: str
    """Message for people: what happened."""
    hint: str
    """Message for people: what to do about it."""


AnyEvent = Queued | Started | Resumed | Progress | Evaluation | Epoch | Telemetry | Finished | Stopped | Failed


WithMetrics = Progress | Evaluation | Epoch | Finished
Validation = Evaluation | Epoch
"""Events with a validation loss, at ``passes`` over the train split."""

E = TypeVar("E", bound=Event)
DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Exceptions from decoding damaged bytes."""

encoder = msgspec.json.Encoder()
decoder = msgspec.json.Decoder(AnyEvent)


@cache
def _metrics(kind: type[Event]) -> frozenset[str]:
    """Return the fields that may hold NaN or infinity."""
    return frozenset(name for name, type_ in get_type_hints(kind).items() if type_ == float | None)


def perplexity(loss_nats: float) -> float:
    """Return exp(loss): infinity above ``MAX_LOSS_NATS``, and NaN for NaN."""
    return math.inf if loss_nats > MAX_LOSS_NATS else math.exp(loss_nats)


def name_non_finite(event: E) -> E:
    """Return ``event`` with ``non_finite`` filled in, as the log has it."""
    if not isinstance(event, WithMetrics):
        return event
    values = ((name, getattr(event, name)) for name in event.__struct_fields__)
    non_finite = {name: str(x) for name, x in values if isinstance(x, float) and not math.isfinite(x)}
    return msgspec.structs.replace(event, non_finite=non_finite) if non_finite else event


def check_readable(event: Event) -> None:
    """Raise ValueError, with the field and its bounds, if readers would take the line of ``event`` for damaged."""
    try:
        decoder.decode(encoder.encode(name_non_finite(event)))
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "").replace("$.", "")) from None


def restore_non_finite(events: Sequence[AnyEvent]) -> None:
    """Put NaN and infinity back into events that were just decoded. Nothing else may refer to these events yet."""
    # A large store has a million events, hardly any of them to be restored: hence no function call for each.
    named = [
        event
        for event in events
        if (type(event) is Progress or type(event) is Epoch or type(event) is Finished or type(event) is Evaluation)
        and event.non_finite
    ]
    for event in named:
        for name, value in event.non_finite.items():
            if name in _metrics(type(event)):
                msgspec.structs.force_setattr(event, name, float(value))


def utc_now() -> str:
    """Return the present time as events have it, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
