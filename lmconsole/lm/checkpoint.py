"""Checkpoints: written next to training, replaced whole or not at all, and read back without running any code from the
file. A finished run keeps its best weights alone."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from lmconsole.errors import TrainingError, escape_control_characters
from lmconsole.files import sync_folder
from lmconsole.runs.paths import RunPaths

SCHEMA = 1
CHECKPOINT_S = 10.0
"""Seconds of training between checkpoints, where writing one takes less than a tenth of that."""

_PASSING = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors that say nothing about what is in a file, only that it cannot be read just now."""


@dataclass
class Cursor:
    """How far a run has come, and every number that its final metrics depend on besides weights and optimizer.

    Its tensors are replaced, never changed in place, so that a copy of the object may share them.
    """

    epoch: int = 1
    """Epoch under way, from 1; one more than the last when training is over."""
    step: int = 0
    """Steps done in it."""
    permutation: Tensor | None = None
    """Order of this epoch's windows, (N,) int64; None until it is drawn."""
    epoch_nll: float = 0.0
    """Nats summed over this epoch's targets so far."""
    epoch_targets: int = 0
    epoch_train_s: float = 0.0
    elapsed_train_s: float = 0.0
    """Seconds of training in all, this epoch's included."""
    setup_s: float = 0.0
    """Seconds of loading and building, over all attempts."""
    wall_s: float = 0.0
    """Seconds of all attempts."""
    best_epoch: int | None = None
    best_valid_loss_nats: float | None = None
    best_weights: dict[str, Tensor] | None = None
    """State dict after ``best_epoch``."""
    diverged: bool = False
    torch_peak_mib: float | None = None
    """Most memory that tensors held on the GPU at once."""
    rss_peak_mib: float = 0.0
    """Most host memory that the process held."""
    energy_j: float | None = None
    """Joules of the GPU's board in all epochs, this one included; None is unknown, as in a checkpoint of 0.1.0."""
    epoch_energy_j: float | None = None
    """Joules of the GPU's board in this epoch so far; None is unknown."""
    seq: int = 0
    """Last event of the log when the checkpoint was made."""


def save_interval_s(write_s: float) -> float:
    """Seconds of training from the end of a write to the next checkpoint, where writing takes ``write_s``."""
    return max(CHECKPOINT_S, 10.0 * write_s)


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one at a time, while training goes on.

    After a failed write every method but ``join`` raises its error: a later write on the same disk may seem to succeed.
    The thread is no daemon, so that a process which ends by itself finishes the write first.
    """

    def __init__(self, paths: RunPaths, config_hash: str, trained_s: float) -> None:
        """``trained_s``: seconds of training before this attempt, which the checkpoint it started from holds."""
        self._paths, self._same_run = paths, config_hash
        self._idle_since_s: float | None = trained_s
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_s = 0.0
        """Seconds that the last write took."""

    @property
    def busy(self) -> bool:
        """Whether a write is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def due(self, trained_s: float) -> bool:
        """Whether the next checkpoint is due, ``trained_s`` seconds of training into the run.

        Raises what a failed write raised.
        """
        if self.busy:
            return False
        self.check()
        if self._idle_since_s is None:
            self._idle_since_s = trained_s
        return trained_s - self._idle_since_s >= save_interval_s(self.write_s)

    def submit(self, cursor: Cursor, parts: dict[str, Any]) -> None:
        """Copy ``cursor`` and ``parts`` to host memory and start writing them; a write in flight is waited for first.

        Raises what a failed write raised.
        """
        self.wait()
        copies = replace(cursor), host_copy(parts)
        self._idle_since_s = None
        self._thread = threading.Thread(target=self._write, args=copies, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what a failed write raised, TrainingError as a rule."""
        if self._error is not None and not self.busy:
            raise self._error

    def join(self) -> None:
        """Wait until no write is in flight."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait until no write is in flight, and raise what a failed one raised."""
        self.join()
        self.check()

    def _write(self, cursor: Cursor, parts: dict[str, Any]) -> None:
        start = time.monotonic()
        try:
            save(self._paths, cursor, parts, self._same_run)
        except BaseException as error:  # whatever it is, the training thread has to raise it
            self._error = error
        self.write_s = time.monotonic() - start


def host_copy(value: Any) -> Any:
    """A copy of nested dicts and lists, with every tensor in it copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(each) for key, each in value.items()}
    if isinstance(value, list):
        return [host_copy(each) for each in value]
    return value


def save(paths: RunPaths, cursor: Cursor, parts: dict[str, Any], config_hash: str) -> None:
    """Make ``cursor`` and ``parts`` (tensors and plain values only) the run's newest checkpoint.

    The one before is kept. A crash at any moment leaves at least one of them whole.

    Raises:
        TrainingError: the disk is full or cannot be written; the older checkpoints are untouched.
    """
    data = {field.name: getattr(cursor, field.name) for field in fields(cursor)}
    everything = {"schema": SCHEMA, "same_run": config_hash, "cursor": data, **parts}
    older = paths.previous_checkpoint
    _replace_file(paths.checkpoint, lambda file: torch.save(everything, file), what="checkpoint", previous=older)


def save_best_weights(paths: RunPaths, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``weights``, a state dict on the CPU, and ``metadata`` as the safetensors file that a finished run keeps.

    Raises:
        TrainingError: the disk is full or cannot be written.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata)
    _replace_file(paths.best_weights, lambda file: file.write(data), what="file of the best weights")


def remove(paths: RunPaths) -> None:
    """Remove the checkpoints of a finished run. One that cannot be removed is only printed, for the worker's log."""
    for path in (paths.checkpoint, paths.previous_checkpoint):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            print(f"{path.name} is no longer needed and cannot be removed: {error.strerror}", flush=True)


def _replace_file(path: Path, write: Callable[[IO[bytes]], object], *, what: str, previous: Path | None = None) -> None:
    """Write another file to the disk and rename it to ``path``; the one that was there becomes ``previous``."""
    temporary = path.with_name(f".{path.stem}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _explained(path, what, error) from error


def load(
    paths: RunPaths, config_hash: str, fits: Callable[[Cursor], bool] = lambda cursor: True
) -> tuple[Cursor, dict[str, Any]] | None:
    """The newest checkpoint that is whole and ``fits``, as the cursor and the other parts on the CPU; None if there is
    none: then the run starts over.

    One that cannot be used is put aside under another name, so that it cannot take the place of one that can, and what
    is wrong with it is printed, for the worker's log.

    Raises:
        TrainingError: a checkpoint is there and cannot be read just now.
    """
    for path in (paths.checkpoint, paths.previous_checkpoint):
        try:
            parts = torch.load(path, map_location="cpu", weights_only=True)
            if parts.pop("schema") != SCHEMA or parts.pop("same_run") != config_hash:
                raise ValueError("it belongs to another run, or another version of lmconsole")
            cursor = Cursor(**parts.pop("cursor"))
            if not fits(cursor):
                raise ValueError("it counts epochs that the event log does not have")
            return cursor, parts
        except FileNotFoundError:
            continue
        except Exception as error:  # a damaged zip or pickle can raise anything at all
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING:
                raise TrainingError(
                    "checkpoint",
                    f"{path}: the checkpoint cannot be read: {getattr(error, 'strerror', None) or 'not enough memory'}",
                    hint="When that is mended, run the experiment again: it resumes there. --fresh starts a new run.",
                ) from error
            print(
                f"{path.name} cannot be used: {escape_control_characters(str(error).partition(chr(10))[0])}", flush=True
            )
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
    return None


def _explained(path: Path, written: str, error: BaseException) -> TrainingError:
    """The OSError behind ``error`` (torch wraps those of a file's ``write`` in errors of its own) in words."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = cause.strerror if isinstance(cause, OSError) else str(error).partition("\n")[0]
    return TrainingError(
        "disk-full" if full else "checkpoint",
        f"{path}: the {written} cannot be written: {what}",
        hint="Make room on that disk, or choose another store with --runs; then run the experiment again: it resumes "
        "from its last checkpoint.",
    )
