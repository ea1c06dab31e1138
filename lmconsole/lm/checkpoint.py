"""Checkpoints: replaced whole or not at all, and read back without running any code from the file."""

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lmconsole.errors import TrainingError, printable
from lmconsole.runs.paths import RunPaths, sync_folder

SCHEMA = 1

_PASSING = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors that say nothing about what is in a file, only that it cannot be read just now."""


@dataclass
class Cursor:
    """How far a run has come, and every number that its final metrics depend on besides weights and optimizer."""

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


def save(paths: RunPaths, cursor: Cursor, parts: dict[str, Any], same_run: str) -> None:
    """Make ``cursor`` and ``parts`` (tensors and plain values only) the run's newest checkpoint.

    The one before is kept. A crash at any moment leaves at least one of them whole.

    Raises:
        TrainingError: the disk is full or cannot be written; the older checkpoints are untouched.
    """
    temporary = paths.folder / ".checkpoint.tmp"
    data = {field.name: getattr(cursor, field.name) for field in fields(cursor)}
    try:
        with temporary.open("wb") as file:
            torch.save({"schema": SCHEMA, "same_run": same_run, "cursor": data, **parts}, file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.replace(paths.checkpoint, paths.previous_checkpoint)
        os.replace(temporary, paths.checkpoint)
        sync_folder(paths.folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _explained(paths, error) from error


def load(
    paths: RunPaths, same_run: str, fits: Callable[[Cursor], bool] = lambda cursor: True
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
            if parts.pop("schema") != SCHEMA or parts.pop("same_run") != same_run:
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
            print(f"{path.name} cannot be used: {printable(str(error).partition(chr(10))[0])}", flush=True)
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
    return None


def _explained(paths: RunPaths, error: BaseException) -> TrainingError:
    """The OSError behind ``error`` (torch wraps those of a file's ``write`` in errors of its own) in words."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = cause.strerror if isinstance(cause, OSError) else str(error).partition("\n")[0]
    return TrainingError(
        "disk-full" if full else "checkpoint",
        f"{paths.checkpoint}: the checkpoint cannot be written: {what}",
        hint="Make room on that disk, or choose another store with --runs; then run the experiment again: it resumes "
        "from its last checkpoint.",
    )
