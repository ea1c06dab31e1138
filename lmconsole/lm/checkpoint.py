"""Checkpoints: written in a thread and replaced atomically. A finished run keeps only its best weights.

``lm/read_checkpoint.py`` reads them.
"""

import errno
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmconsole.errors import TrainingError
from lmconsole.files import atomic_write, sync_folder
from lmconsole.runs import endpoint
from lmconsole.runs.paths import RunPaths

SCHEMA = 1
CHECKPOINT_S = 10.0
"""Seconds of training between checkpoints, where a write takes less than a tenth of that."""


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Progress of a run, and everything its final metrics depend on besides weights and optimizer.

    Tensors are replaced, never changed in place, so that copies of the object can share them. Checkpoints store it
    under the key ``cursor``.
    """

    epoch: int = 1
    """Current epoch, from 1; one more than the last when training is over."""
    step: int = 0
    """Steps done in the epoch."""
    permutation: Tensor | None = None
    """Order of the epoch's windows, (N,) int64; None until it is drawn."""
    epoch_nll: float = 0.0
    """Nats summed over the epoch's targets so far."""
    epoch_targets: int = 0
    epoch_train_s: float = 0.0
    elapsed_train_s: float = 0.0
    """Seconds of training in all epochs, including the current one."""
    setup_s: float = 0.0
    """Seconds of setup in all attempts."""
    wall_s: float = 0.0
    """Seconds of all attempts."""
    best_epoch: int | None = None
    best_valid_loss_nats: float | None = None
    best_weights: dict[str, Tensor] | None = None
    """State dict after ``best_epoch``, in host memory."""
    diverged: bool = False
    torch_peak_mib: float | None = None
    """Peak memory in tensors on the GPU."""
    rss_peak_mib: float = 0.0
    """Peak resident memory of the process."""
    energy_j: float | None = None
    """Joules of the GPU's board in all epochs, including the current one; None if unknown, as in checkpoints of
    0.1.0."""
    epoch_energy_j: float | None = None
    """Joules of the GPU's board in the epoch so far; None if unknown."""
    seq: int = 0
    """Sequence number of the log's last event at the time of the checkpoint."""


def save_interval_s(write_s: float) -> float:
    """Return the seconds of training from the end of a write, which took ``write_s``, to the next checkpoint."""
    return max(CHECKPOINT_S, 10.0 * write_s)


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, one at a time, while training continues.

    After a failed write, every method except ``join`` raises its error: a later write to the same disk may seem to
    succeed. The thread is not a daemon, so a process that exits normally finishes the write first.
    """

    def __init__(self, paths: RunPaths, config_hash: str, trained_s: float) -> None:
        """``trained_s``: seconds of training in the checkpoint that this attempt resumes from."""
        self._paths, self._config_hash = paths, config_hash
        self._idle_since_s: float | None = trained_s
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_s = 0.0
        """Duration of the last write."""

    @property
    def busy(self) -> bool:
        """Whether a write is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def due(self, trained_s: float) -> bool:
        """Return whether a checkpoint is due after ``trained_s`` seconds of training in the run.

        Raises the error of a failed write.
        """
        if self.busy:
            return False
        self.check()
        if self._idle_since_s is None:
            self._idle_since_s = trained_s
        return trained_s - self._idle_since_s >= save_interval_s(self.write_s)

    def submit(self, state: TrainState, parts: dict[str, Any]) -> None:
        """Copy ``state`` and ``parts`` to host memory and start to write them, after any write in progress.

        Raises the error of a failed write.
        """
        self.wait()
        copies = replace(state), host_copy(parts)
        self._idle_since_s = None
        self._thread = threading.Thread(target=self._write, args=copies, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a failed write, usually a TrainingError."""
        if self._error is not None and not self.busy:
            raise self._error

    def join(self) -> None:
        """Wait for the write in progress, if any."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait for the write in progress, if any, and raise the error of a failed one."""
        self.join()
        self.check()

    def _write(self, state: TrainState, parts: dict[str, Any]) -> None:
        start = time.monotonic()
        try:
            save(self._paths, state, parts, self._config_hash)
        except BaseException as error:  # the training thread raises it, whatever it is
            self._error = error
        self.write_s = time.monotonic() - start


def host_copy(value: Any) -> Any:
    """Return a copy of nested dicts and lists in which every tensor is copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(each) for key, each in value.items()}
    if isinstance(value, list):
        return [host_copy(each) for each in value]
    return value


def save(paths: RunPaths, state: TrainState, parts: dict[str, Any], config_hash: str) -> None:
    """Write ``state`` and ``parts`` (tensors and plain values only) as the run's newest checkpoint, and keep the one
    before.

    A crash at any moment leaves at least one of the two intact.

    Raises:
        TrainingError: The disk is full or not writable. Older checkpoints are untouched.
    """
    # The names of the first release: checkpoints are read for good.
    content = {
        "schema": SCHEMA,
        "same_run": config_hash,
        "cursor": {field.name: getattr(state, field.name) for field in fields(state)},
        **parts,
    }
    previous = paths.previous_checkpoint
    _replace_file(paths.checkpoint, lambda file: torch.save(content, file), what="checkpoint", previous=previous)


def save_best_weights(paths: RunPaths, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``weights``, a state dict on the CPU, and ``metadata`` as the safetensors file of a finished run. Its
    metadata also has the hash of the weights, ``sha256``.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    data = safetensors.torch.save(tensors, {**metadata, "sha256": weights_sha256(tensors)})
    _replace_file(paths.best_weights, lambda file: file.write(data), what="best weights")


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of names, shapes, types and values of ``weights``, contiguous and on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_test_losses(paths: RunPaths, window_nats: Tensor, targets: NDArray[np.int64]) -> None:
    """Write the summed test loss ``window_nats`` (N,) of each window, float64, and its number of ``targets`` (N,).

    Raises:
        TrainingError: The disk is full or not writable.
    """
    arrays = {endpoint.NLL: window_nats.cpu().numpy(), endpoint.TARGETS: targets}
    data = safetensors.numpy.save(arrays)
    _replace_file(paths.test_losses, lambda file: file.write(data), what="test losses")


def remove(paths: RunPaths) -> None:
    """Remove the checkpoints of a finished run. If that fails, print why, for the worker's log."""
    for path in (paths.checkpoint, paths.previous_checkpoint):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            print(f"{path.name} is no longer needed but cannot be removed: {error.strerror}", flush=True)


def _replace_file(path: Path, write: Callable[[BinaryIO], object], *, what: str, previous: Path | None = None) -> None:
    """Write a file, flush it to the disk and rename it to ``path``. An existing file is renamed to ``previous``."""
    temporary = path.with_name(f".{path.stem}.tmp")
    try:
        with atomic_write(path, sync=True, temporary=temporary, keep_as=previous) as file:
            write(file)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise _write_error(path, what, error) from error


def _write_error(path: Path, what: str, error: BaseException) -> TrainingError:
    """Return the TrainingError for the OSError behind ``error``: PyTorch wraps those of a file's ``write`` in its
    own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = cause.strerror if isinstance(cause, OSError) else str(error).partition("\n")[0]
    name = (cause.filename2 or cause.filename) if isinstance(cause, OSError) else None
    return TrainingError(
        "disk-full" if full else "checkpoint",
        f"{path}: the {what} cannot be written: {reason}" + (f": {Path(name).name}" if name else ""),
        hint=f"{'Make room on that disk' if full else 'Fix that'}, or choose another store with --runs. Then run the "
        "experiment again: it resumes from its last checkpoint.",
    )
