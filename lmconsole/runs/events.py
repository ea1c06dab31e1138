"""The event log of a run: what its lines hold, appending them, and reading them while somebody else appends."""

import errno
import math
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import LineTail

MAX_LOSS_NATS = 700.0
"""exp() of more than this counts as infinite."""

Phase = Literal["setup", "train", "valid", "test"]

NonFinite = dict[str, Literal["nan", "inf", "-inf"]]
"""Metrics that are NaN or infinite, by field. JSON has no such numbers: the log has null in their place and names them
here. The fields of an event that is read back hold the numbers themselves, so that None always means unknown."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind"):
    """A line of the log. ``seq`` counts from 1 without gaps; ``t`` is UTC, ISO 8601. Both are set when appended."""

    seq: int = 0
    t: str = ""


class Queued(Event, frozen=True, kw_only=True, gc=False, tag="queued"):
    """The run was put in the queue, for the first time or again; the last one says how it is to be started."""

    devices: tuple[str, ...]
    """The run may be put on any one of them: ``cpu``, or GPUs by their UUIDs, which mean the same in every process."""
    jobs: int
    """Runs at once on one device, this one among them."""
    place: int = 0
    """Waiting runs are started in this order. It counts up over all that is queued in a store; 0 in logs of 0.1.0."""
    exports: str | None = None
    """Folder for the exports when the queue drains; None for none."""
    on_finish: tuple[str, ...] = ()
    """Program, by its absolute path, and arguments to run when the queue drains."""
    cwd: str = ""
    """Folder to run it in."""


class Started(Event, frozen=True, kw_only=True, gc=False, tag="started"):
    """A worker began an attempt."""

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
    ceiling_gflops: float | None = None
    """Rate of plain matrix products on this device in this precision, if `lmconsole bench` had measured it."""
    attention: str | None = None
    """How attention is computed (`lm/gpt1.py` has the names); None for an LSTM."""


class Resumed(Event, frozen=True, kw_only=True, gc=False, tag="resumed"):
    """The attempt goes on after ``step`` steps of ``epoch`` (from 1): what lies beyond in the log never happened."""

    epoch: int
    step: int


class Progress(Event, frozen=True, kw_only=True, gc=False, tag="progress"):
    """How training goes, twice a second at most. ``train_loss_nats`` is the mean since the last such event."""

    epoch: int
    step: int
    steps: int
    train_loss_nats: float | None
    tokens_per_s: float | None
    elapsed_train_s: float
    non_finite: NonFinite = {}


class Epoch(Event, frozen=True, kw_only=True, gc=False, tag="epoch"):
    """An epoch is over. Losses are means over targets, in nats; ``elapsed_train_s`` is cumulated over epochs. Times are
    None only where an imported run does not say."""

    epoch: int
    train_loss_nats: float | None
    train_ppl: float | None
    valid_loss_nats: float | None
    valid_ppl: float | None
    train_s: float | None
    valid_s: float | None
    elapsed_train_s: float | None
    energy_j: float | None = None
    """Joules that the whole board of the GPU used in training and validation, by the driver's counter. None on a CPU,
    for an epoch of less than two seconds, where the GPU was shared, and where the driver does not tell."""
    non_finite: NonFinite = {}


class Telemetry(Event, frozen=True, kw_only=True, gc=False, tag="telemetry"):
    """One sample of the machine. None is unknown."""

    phase: Phase
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
    """The run is complete. Test perplexities: of the last epoch's weights, and of the best epoch's."""

    test_ppl_final: float | None
    test_ppl_best: float | None
    best_epoch: int | None
    best_valid_ppl: float | None
    setup_s: float | None
    wall_s: float | None
    """Both None for an imported run."""
    diverged: bool
    stopped_early: bool = False
    torch_peak_mib: float | None = None
    rss_peak_mib: float | None = None
    energy_j: float | None = None
    """Joules that the whole board of the GPU used from the start of the first epoch to the end of the last, over all
    attempts, by the driver's counter; set-up and tests are left out. None if training took less than two seconds or
    some reading of the counter is missing."""
    non_finite: NonFinite = {}


class Stopped(Event, frozen=True, kw_only=True, gc=False, tag="stopped"):
    """Somebody stopped the run after ``step`` steps of ``epoch``; it can be resumed."""

    epoch: int
    step: int


class Failed(Event, frozen=True, kw_only=True, gc=False, tag="failed"):
    """The attempt failed: what kind of error, what happened, and what to do."""

    error: str
    message: str
    hint: str


AnyEvent = Queued | Started | Resumed | Progress | Epoch | Telemetry | Finished | Stopped | Failed


class _Header(msgspec.Struct, frozen=True):
    """What every event has, known kind or not."""

    kind: str
    seq: int


WithMetrics = Progress | Epoch | Finished

E = TypeVar("E", bound=Event)
_KNOWN_KINDS = frozenset(str(kind.__struct_config__.tag) for kind in Event.__subclasses__())
DAMAGED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding bytes that are not ours can raise."""

_METRICS = {
    kind: frozenset(field.name for field in msgspec.structs.fields(kind) if field.type == float | None)
    for kind in (Progress, Epoch, Finished)
}
"""Fields that may hold NaN or infinity."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_header_decoder = msgspec.json.Decoder(_Header)


def perplexity(loss_nats: float) -> float:
    """exp(loss); infinite above ``MAX_LOSS_NATS``, NaN of NaN."""
    return math.inf if loss_nats > MAX_LOSS_NATS else math.exp(loss_nats)


def name_non_finite(event: E) -> E:
    """Return ``event`` as it goes to the log, with ``non_finite`` filled in."""
    if not isinstance(event, WithMetrics):
        return event
    values = ((name, getattr(event, name)) for name in event.__struct_fields__)
    non_finite = {name: str(x) for name, x in values if isinstance(x, float) and not math.isfinite(x)}
    return msgspec.structs.replace(event, non_finite=non_finite) if non_finite else event


def _restore_non_finite(events: Sequence[AnyEvent]) -> None:
    """Replace None by the number that ``non_finite`` names, in events just decoded and seen by nobody else."""
    # Most events have nothing to restore and there are a million of them in a large store: no call for each.
    for event in [event for event in events if type(event) in _METRICS and event.non_finite]:  # type: ignore[union-attr]
        assert isinstance(event, WithMetrics)
        for name, value in event.non_finite.items():
            if name in _METRICS[type(event)]:
                msgspec.structs.force_setattr(event, name, float(value))


def utc_now() -> str:
    """The time as events carry it, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """The writing end. Whoever makes one must hold the run's lock."""

    def __init__(self, path: Path) -> None:
        """Open the log for appending, cutting off the torn line that a crash may have left. Raises OSError."""
        self._path = path
        self._mutex = threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        complete = data.rfind(b"\n") + 1
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if complete < len(data):
            os.ftruncate(self._descriptor, complete)
        self.seq = max((_seq(line) for line in data[:complete].splitlines()[-64:]), default=0)

    def append(self, event: E, *, sync: bool = False) -> E:
        """Write ``event`` as one line with the next ``seq`` and the time, and return it so. Any thread may call.

        Raises OSError on a full disk; the log then ends at its last complete line.
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
        """Force what was appended to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; the lock is another file's."""
        os.close(self._descriptor)


def _seq(line: bytes) -> int:
    try:
        return _header_decoder.decode(line).seq
    except DAMAGED:
        return 0


class EventReader:
    """The reading end: returns the events that were appended since the last call.

    A torn last line waits for its rest; a damaged line is skipped and counted; unknown kinds are passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A log that became shorter must not be read from the start: its events have been folded into a state already.
        self._tail = LineTail(path, restart=False)
        self.damaged = 0

    def read_new(self) -> Sequence[AnyEvent]:
        """Return the new events in order.

        Raises:
            FileNotFoundError: there is no log.
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
            events = self._one_by_one(data)
        _restore_non_finite(events)
        return events

    def _one_by_one(self, data: bytes) -> list[AnyEvent]:
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
