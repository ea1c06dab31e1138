"""The event log of a run: its events, a writer that appends them, and a reader that works while another process writes.

The log is JSON Lines and the only source of truth about a run; ``runs/state.py`` folds it into the present state.
"""

import errno
import math
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import LineTail

MAX_LOSS_NATS = 700.0
"""Losses above this have an infinite perplexity: exp(710) overflows."""

Phase = Literal["setup", "train", "valid", "test"]

NonFinite = dict[str, Literal["nan", "inf", "-inf"]]
"""Metrics that are NaN or infinite, by field. JSON has no such numbers: the log has null in their place and names them
here. The fields of an event that is read back hold the numbers themselves, so that None always means unknown."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind"):
    """One line of the log. ``EventLog.append`` sets ``seq``, counted from 1, and ``t``, UTC in ISO 8601."""

    seq: int = 0
    t: str = ""


class Queued(Event, frozen=True, kw_only=True, gc=False, tag="queued"):
    """The run was put into the queue, for the first time or again. The last such event says how to start it."""

    devices: tuple[str, ...]
    """The run may use any one of these: ``cpu``, or GPUs by UUID, which is the same in every process."""
    jobs: int
    """Most runs at once on one device, this one included."""
    place: int = 0
    """Position in the queue, counted over all runs ever queued in the store; 0 in logs of version 0.1.0."""
    exports: str | None = None
    """Folder to export to when the queue is empty; None for no export."""
    on_finish: tuple[str, ...] = ()
    """Program (absolute path) and arguments to run when the queue is empty."""
    cwd: str = ""
    """Working directory of that program."""


class Started(Event, frozen=True, kw_only=True, gc=False, tag="started"):
    """A worker started an attempt."""

    attempt: int
    pid: int
    host: str
    device: str
    device_name: str
    device_uuid: str | None
    versions: dict[str, str | None]
    threads: int
    precision: str
    parameters_total: int
    parameters_trainable: int
    shared_gpu: bool | None = None
    """Whether other processes used the GPU when the attempt began; None where that cannot be known."""
    peak_matmul_gflops: float | None = msgspec.field(name="ceiling_gflops", default=None)
    """Peak matmul throughput of the device in this precision, if `lmconsole bench` had measured it."""
    attention: str | None = None
    """Implementation of attention (``lm/gpt1.py`` has the names); None for an LSTM."""


class Resumed(Event, frozen=True, kw_only=True, gc=False, tag="resumed"):
    """The attempt continues after ``step`` steps of ``epoch`` (from 1); earlier events beyond that point are void."""

    epoch: int
    step: int


class Progress(Event, frozen=True, kw_only=True, gc=False, tag="progress"):
    """Progress of training, at most twice a second. ``train_loss_nats`` is the mean since the last such event."""

    epoch: int
    step: int
    steps: int
    train_loss_nats: float | None
    tokens_per_s: float | None
    elapsed_train_s: float
    non_finite: NonFinite = {}


class Epoch(Event, frozen=True, kw_only=True, gc=False, tag="epoch"):
    """End of an epoch.

    Losses are means over the target tokens; ``elapsed_train_s`` is cumulative over epochs. Times are None only in
    imported runs whose source does not state them.
    """

    epoch: int
    train_loss_nats: float | None
    train_ppl: float | None
    valid_loss_nats: float | None
    valid_ppl: float | None
    train_s: float | None
    valid_s: float | None
    elapsed_train_s: float | None
    energy_j: float | None = None
    """Energy that the whole GPU board used for training and validation, from the driver's counter. None on a CPU, for
    an epoch shorter than two seconds, on a shared GPU, and where the driver has no counter."""
    non_finite: NonFinite = {}


class Telemetry(Event, frozen=True, kw_only=True, gc=False, tag="telemetry"):
    """One sample of the device and the worker process. None is unknown."""

    phase: Phase
    samples: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | msgspec.UnsetType = msgspec.UNSET
    """Number of consecutive readings whose mean this is, in imported runs; unset for a single one."""
    epoch: int | None = None
    device_used_mib: float | None = None
    device_total_mib: float | None = None
    process_used_mib: float | None = None
    torch_allocated_mib: float | None = None
    torch_reserved_mib: float | None = None
    utilization_percent: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    rss_mib: float | None = None


class Finished(Event, frozen=True, kw_only=True, gc=False, tag="finished"):
    """The run is complete. Test perplexities are given for the weights of the last epoch and of the best one."""

    test_ppl_final: float | None
    test_ppl_best: float | None
    best_epoch: int | None
    best_valid_ppl: float | None
    setup_s: float | None
    wall_s: float | None
    """Time of the whole run, over all attempts. Like ``setup_s``, None in imported runs."""
    diverged: bool
    stopped_early: bool = False
    torch_peak_mib: float | None = None
    rss_peak_mib: float | None = None
    energy_j: float | None = None
    """Energy that the whole GPU board used from the start of the first epoch to the end of the last, over all attempts,
    without setup and tests. None if training took less than two seconds or a reading of the counter is missing."""
    non_finite: NonFinite = {}


class Stopped(Event, frozen=True, kw_only=True, gc=False, tag="stopped"):
    """The run was stopped by request after ``step`` steps of ``epoch`` and can be resumed."""

    epoch: int
    step: int


class Failed(Event, frozen=True, kw_only=True, gc=False, tag="failed"):
    """The attempt failed. ``error`` is the kind (``TrainingError.kind``), ``hint`` what to do about it."""

    error: str
    message: str
    hint: str


AnyEvent = Queued | Started | Resumed | Progress | Epoch | Telemetry | Finished | Stopped | Failed


class _Header(msgspec.Struct, frozen=True):
    """Fields that events of later versions have too."""

    kind: str
    seq: int


WithMetrics = Progress | Epoch | Finished

E = TypeVar("E", bound=Event)
_KNOWN_KINDS = frozenset(str(kind.__struct_config__.tag) for kind in Event.__subclasses__())
DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Exceptions from decoding damaged bytes."""

_METRICS = {
    kind: frozenset(field.name for field in msgspec.structs.fields(kind) if field.type == float | None)
    for kind in (Progress, Epoch, Finished)
}
"""Fields that may hold NaN or infinity."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_header_decoder = msgspec.json.Decoder(_Header)


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


def _restore_non_finite(events: Sequence[AnyEvent]) -> None:
    """Put NaN and infinity back into events that were just decoded. Nothing else may refer to these events yet."""
    # A large store has a million events, hardly any of them to be restored: hence no function call for each.
    named = [
        event
        for event in events
        if (type(event) is Progress or type(event) is Epoch or type(event) is Finished) and event.non_finite
    ]
    for event in named:
        for name, value in event.non_finite.items():
            if name in _METRICS[type(event)]:
                msgspec.structs.force_setattr(event, name, float(value))


def utc_now() -> str:
    """Return the present time as events have it, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """Appends events to a log. The process must hold the run's lock."""

    def __init__(self, path: Path) -> None:
        """Open the log and cut off the incomplete last line that a crash may have left.

        Raises:
            OSError: the file cannot be opened or created.
        """
        self._path = path
        self._mutex = threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        complete = data.rfind(b"\n") + 1
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if complete < len(data):
            os.ftruncate(self._descriptor, complete)
        self.seq = max((_seq(line) for line in data[:complete].splitlines()[-64:]), default=0)

    def append(self, event: E, *, sync: bool = False) -> E:
        """Append ``event`` with the next ``seq`` and the time, and return it with them. Thread-safe.

        Args:
            sync: force the log to the disk.

        Raises:
            OSError: the disk is full, for example. The log then ends with the line before.
        """
        with self._mutex:
            event = name_non_finite(msgspec.structs.replace(event, seq=self.seq + 1, t=utc_now()))
            line = _encoder.encode(event) + b"\n"
            size = os.fstat(self._descriptor).st_size
            try:
                written = os.write(self._descriptor, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
            self.seq += 1
            if sync:
                os.fsync(self._descriptor)
            return event

    def sync(self) -> None:
        """Force the log to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _seq(line: bytes) -> int:
    try:
        return _header_decoder.decode(line).seq
    except DAMAGED:
        return 0


class EventReader:
    """Reads the events that were appended since the last call.

    An incomplete last line waits for its rest. Damaged lines are skipped and counted in ``damaged``; events of unknown
    kinds, which a later version wrote, are skipped without counting.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A log that becomes shorter must not be read again: its events have already been folded into a state.
        self._tail = LineTail(path, restart=False)
        self.damaged = 0

    def read_new(self) -> Sequence[AnyEvent]:
        """Return the new events in order.

        Raises:
            FileNotFoundError: the log does not exist.
            StoreError: it cannot be read.
        """
        try:
            data = self._tail.read_new()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error.strerror}") from None
        if not data:
            return ()
        try:
            events = _decoder.decode_lines(data)
        except DAMAGED:
            events = self._decode_each(data)
        _restore_non_finite(events)
        return events

    def _decode_each(self, data: bytes) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for line in data.split(b"\n"):
            if not line:
                continue
            try:
                events.append(_decoder.decode(line))
            except DAMAGED:
                if not self._is_unknown_kind(line):
                    self.damaged += 1
        return events

    def _is_unknown_kind(self, line: bytes) -> bool:
        try:
            return _header_decoder.decode(line).kind not in _KNOWN_KINDS
        except DAMAGED:
            return False
