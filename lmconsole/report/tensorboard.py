"""Event files for TensorBoard and other programs that read them: the curves of all runs, one folder per run.

The bytes of a file depend only on run.json and the log of its run, and those of a longer log begin with those of a
shorter one. Files are therefore brought up to date by appending, as TensorBoard expects it, also by a later export.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from lmconsole.errors import ExportError, StoreError
from lmconsole.extras import install_hint
from lmconsole.files import file_name_part, open_file
from lmconsole.plan.experiment import hashed_settings
from lmconsole.report.transaction import cannot_be_written, check_folders, replace_files
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import AnyEvent, Epoch, Evaluation, Finished, Progress, Queued, Resumed, Telemetry
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Run, Store

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event as Record

FOLDER = "tensorboard"
"""Folder of an export for ``tensorboard --logdir``."""

REPRODUCTIONS = "reproductions"
"""Folder in it for runs that reproduce another one, which are no seeds of their own. TensorBoard shows it as the
beginning of their names."""

READ_BYTES = 2**20

MAX_STEP = 2**63 - 1
"""Largest step that a record can have; steps of a log that anyone may have written can be more."""

Scalars = Mapping[str, float | None]
"""Values by tag; an unknown one is left out."""


class EventFiles:
    """The event files of runs of a store."""

    def __init__(
        self,
        store: Store,
        out: Path,
        choose: Callable[[Sequence[Run]], Sequence[Run]],
        warn: Callable[[str], object],
    ) -> None:
        """Prepare to write into the folder ``FOLDER`` of ``out``.

        Args:
            choose: returns the runs to write, of those of the store. Their logs need not have been read.
            warn: receives a message on each run that cannot be read.

        Raises:
            ExportError: tensorboard is not installed.
        """
        require_tensorboard()
        self._store, self._out, self._choose, self._warn = store, out, choose, warn
        self._files: dict[str, _RunFile] = {}
        self._problems: set[str] = set()
        self.runs: Sequence[Run] = ()
        """Runs that were chosen at the last update."""

    @property
    def paths(self) -> list[Path]:
        """Files of the chosen runs that have started."""
        return [self._out / file.name for run in self.runs if (file := self._files[run.run]).size]

    def update(self) -> bool:
        """Bring the files up to date, and return whether anything was new.

        New files, and those that hold something else than an earlier export, are written whole, all or none.

        Raises:
            ExportError: There is no run to write, or a file cannot be written.
            StoreError: The store cannot be read.
        """
        self._find_runs()
        self.runs = self._choose([file.run for file in self._files.values()])
        chosen = [self._files[run.run] for run in self.runs]
        new = {file: content for file in chosen if (content := file.read_new())}
        whole: dict[str, bytes | None] = {}
        try:
            for file, content in new.items():
                check_folders(self._out, file.name)
                if not _append(self._out / file.name, file.size, content):
                    whole[file.name] = file.read_again() if file.size else content
                file.size += len(content)
            replace_files(self._out, whole)
        except OSError as error:
            raise cannot_be_written(error, self._out) from None
        for run in self.runs:
            self._note(run.problem)
        return bool(new)

    def _find_runs(self) -> None:
        names = self._store.names()
        for gone in self._files.keys() - names:
            del self._files[gone]
        for name in sorted(names - self._files.keys()):
            try:
                run = self._store.open(name)
            except StoreError as error:
                self._note(str(error))
                continue
            if run is not None:
                self._files[name] = _RunFile(run)

    def _note(self, problem: str | None) -> None:
        """Pass on a problem, once."""
        if problem and problem not in self._problems:
            self._problems.add(problem)
            self._warn(problem)


def _append(path: Path, at: int, content: bytes) -> bool:
    """Append the part of ``content`` that a file lacks after its first ``at`` bytes.

    Return False, and leave it as it is, if it is missing, shorter, or has something else there.

    Raises:
        OSError: the file cannot be written. It has the length that it had before.
    """
    try:
        descriptor = open_file(path, os.O_RDWR | os.O_APPEND, follow=False)
    except OSError:
        return False  # replaced as a whole, or reported then
    try:
        size = os.fstat(descriptor).st_size
        # Afterwards another export may be ahead of this one, which has read less of the log.
        if size < at or (at == 0 and size > len(content)):
            return False
        known = 0
        while known < min(size - at, len(content)):
            present = os.pread(descriptor, min(READ_BYTES, len(content) - known), at + known)
            if not present or not content.startswith(present, known):
                return False
            known += len(present)
        rest = memoryview(content)[known:]
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            os.ftruncate(descriptor, size)
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)
    return True


class _RunFile:
    """Content of the event file of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.size = 0
        """Bytes that the file has."""
        self._encoder = _Encoder(run.info)
        self._events = 0
        """Events read."""

    @property
    def name(self) -> str:
        """Path below the folder of the export. TensorBoard shows the folder as the name of the run, below
        ``REPRODUCTIONS`` with that in front."""
        run = self.run.run
        folder = file_name_part(run)
        if folder != run:  # two names can have the same part
            folder = f"{folder}-{sha256(run.encode()).hexdigest()[:8]}"
        if self.run.info.reproduces is not None:
            folder = f"{REPRODUCTIONS}/{folder}"
        seconds = max(0, int(_seconds(self.run.info.queued_t) or 0))
        return f"{FOLDER}/{folder}/events.out.tfevents.{seconds:010d}.lmconsole"

    def read_new(self) -> bytes:
        """Return what the events that the log has had since the last call add to the file."""
        events = self.run.refresh()
        self._events += len(events)
        return self._encoder.encode(events)

    def read_again(self) -> bytes:
        """Return the whole content up to now."""
        events = EventReader(self.run.paths.events).read_new()
        return _Encoder(self.run.info).encode(events[: self._events])


class _Encoder:
    """Translates the events of a log into records of TensorBoard.

    Steps are training steps over all epochs. Where a log has no steps, as that of an imported run, they are epochs.
    """

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._begun = False
        self._wall_time = max(0.0, _seconds(info.queued_t) or 0.0)
        self._step = 0
        self._steps_per_epoch = 1

    def encode(self, events: Sequence[AnyEvent]) -> bytes:
        """Return the records for these events."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        content = io.BytesIO()
        writer = RecordWriter(content)
        for event in events:
            for record in self._records(event):
                writer.write(record.SerializeToString(deterministic=True))
        return content.getvalue()

    def _records(self, event: AnyEvent) -> Iterator["Record"]:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if isinstance(event, Queued):
            return
        seconds = _seconds(event.t)
        if seconds is not None:
            self._wall_time = seconds
        if not self._begun:
            self._begun = True
            yield Record(wall_time=self._wall_time, file_version="brain.Event:2")
            yield self._summary({}, hparams=_hparams(self._info))
        match event:
            case Resumed(epoch=epoch, step=step):
                # Readers drop everything from this step on, which the attempt before had not saved.
                self._step = (epoch - 1) * self._steps_per_epoch + step
                start = SessionLog(status=SessionLog.START)
                yield Record(wall_time=self._wall_time, step=min(self._step + 1, MAX_STEP), session_log=start)
            case Progress():
                self._steps_per_epoch = event.steps
                self._step = (event.epoch - 1) * event.steps + event.step
                yield self._summary({"loss/train": event.train_loss_nats, "speed/tokens_per_s": event.tokens_per_s})
            case Evaluation():
                self._steps_per_epoch = event.steps
                self._step = (event.epoch - 1) * event.steps + event.step
                yield self._summary(
                    {
                        "loss/validation": event.valid_loss_nats,
                        "perplexity/validation": event.valid_ppl,
                        "time/validation_s": event.valid_s,
                    }
                )
            case Epoch():
                self._step = event.epoch * self._steps_per_epoch
                yield self._summary(
                    {
                        "loss/train_epoch": event.train_loss_nats,
                        "loss/validation": event.valid_loss_nats,
                        "perplexity/train": event.train_ppl,
                        "perplexity/validation": event.valid_ppl,
                        "time/train_s": event.train_s,
                        "time/validation_s": event.valid_s,
                        "energy/epoch_j": event.energy_j,
                    }
                )
            case Telemetry() if self._info.origin == "trained":  # those of imported runs belong to no time
                yield self._summary({f"system/{name}": getattr(event, name) for name in _SYSTEM})
            case Finished():
                yield self._summary(
                    {
                        "perplexity/test_final": event.test_ppl_final,
                        "perplexity/test_best": event.test_ppl_best,
                        "energy/run_j": event.energy_j,
                        "time/run_s": event.wall_s,
                    },
                    hparams=_session_end(),
                )

    def _summary(self, scalars: Scalars, *, hparams: tuple[str, bytes] | None = None) -> "Record":
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        values = [
            Summary.Value(tag=tag, simple_value=_single(value)) for tag, value in scalars.items() if value is not None
        ]
        if hparams is not None:
            tag, content = hparams
            plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
            values.append(Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin)))
        return Record(wall_time=self._wall_time, step=min(self._step, MAX_STEP), summary=Summary(value=values))


_SYSTEM = (
    *("device_used_mib", "process_used_mib", "torch_allocated_mib", "torch_reserved_mib", "rss_mib"),
    *("utilization_percent", "power_w", "temperature_c"),
)
"""Fields of a telemetry event that are curves."""

LARGEST = 3.4028234e38
"""Largest number in single precision, in which TensorBoard keeps scalars."""


def _single(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) > LARGEST else float(value)


def _seconds(t: str) -> float | None:
    """Return a time as seconds since 1970; None for text that is no time."""
    with contextlib.suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(t)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return None


def _hparams(info: RunInfo) -> tuple[str, bytes]:
    """Return tag and content of the summary with the settings of a run, for the HParams page."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = HParamsPluginData(version=0)
    settings = hashed_settings(info.settings)  # a later setting must not change the files of earlier runs
    values = {"experiment": info.experiment.id, "preset": info.preset, **settings, "seed": info.seed}
    if info.reproduces is not None:
        values["reproduces"] = info.reproduces
    content.session_start_info.SetInParent()
    for name, value in values.items():
        if isinstance(value, bool):
            content.session_start_info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            content.session_start_info.hparams[name].number_value = value
        elif isinstance(value, str):
            content.session_start_info.hparams[name].string_value = value
    return "_hparams_/session_start_info", content.SerializeToString(deterministic=True)


def _session_end() -> tuple[str, bytes]:
    """Return tag and content of the summary that ends a run which has finished."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"))
    return "_hparams_/session_end_info", HParamsPluginData(version=0, session_end_info=end).SerializeToString()


def require_tensorboard() -> None:
    """Raise ExportError if tensorboard is not installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise ExportError(
            "--format tensorboard needs tensorboard, which is not installed",
            hint=install_hint("tensorboard"),
        ) from None
