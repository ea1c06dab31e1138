"""Finding the checkpoint that an attempt resumes from, and setting those aside that cannot be used."""

import errno
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from lmconsole.errors import TrainingError, escape_control_characters
from lmconsole.lm.checkpoint import TrainState
from lmconsole.lm.memory import is_out_of_memory
from lmconsole.lm.read_checkpoint import Checkpoint, Expected, read_checkpoint
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths
from lmconsole.runs.state import RunState

DAMAGED = ".damaged"
"""Suffix of a checkpoint that was set aside."""
_TRANSIENT = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors that say nothing about the content of a file, only that it cannot be read now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Result of looking for a checkpoint."""

    checkpoint: Checkpoint | None = None
    reasons: tuple[str, ...] = ()
    """Name of each checkpoint that was set aside in this attempt, and what is wrong with it."""
    kept: tuple[str, ...] = ()
    """Names of all checkpoints in the folder that were set aside, in this attempt or before."""

    def require(self, info: RunInfo, folder: Path) -> Checkpoint | None:
        """Return the checkpoint; None if the run has never had one, and starts at step 0.

        Raises:
            TrainingError: all checkpoints of the run have been set aside.
        """
        if self.checkpoint is not None or not self.kept:
            return self.checkpoint
        why = "; ".join(self.reasons) or "the worker's log says why"
        raise TrainingError(
            "checkpoint",
            f"{folder}: the run has no checkpoint that can be used: {why}",
            hint=f"They are kept as {', '.join(self.kept)}. Start a new run with `lmconsole run {info.experiment.id} "
            "--fresh`.",
        )


NOTHING_FOUND = Found()


def find_checkpoint(paths: RunPaths, info: RunInfo, history: RunState, *, log_damaged: bool = False) -> Found:
    """Return the newest checkpoint that is valid and belongs to the log, whose state is ``history``.

    Others are set aside: renamed, so that they never replace a valid one, and the reason is printed for the worker's
    log.

    Args:
        log_damaged: whether events are missing in the middle of the log. An epoch that it lacks may then be one of
            them.

    Raises:
        TrainingError: a checkpoint cannot be read now, or cannot be renamed.
    """
    reasons: list[str] = []
    checkpoint = expected = None
    for path in (paths.checkpoint, paths.previous_checkpoint):
        if not os.path.lexists(path):
            continue
        expected = expected or Expected.of(info)
        try:
            found = read_checkpoint(path, expected)
            _check_log(found.state, history, log_damaged=log_damaged)
            checkpoint = found
            break
        except Exception as error:  # a damaged file can raise anything at all
            if is_out_of_memory(error) or getattr(error, "errno", None) in _TRANSIENT:
                raise TrainingError(
                    "checkpoint",
                    f"{path}: the checkpoint cannot be read: {getattr(error, 'strerror', None) or 'not enough memory'}",
                    hint="Fix that, then run the experiment again to resume it, or start a new run with --fresh.",
                ) from error
            reason = _reason(error)
            reasons.append(f"{path.name}: {reason}")
            print(f"{path.name} cannot be used: {reason}; it is kept as {_set_aside(path).name}", flush=True)
    kept = sorted(path.name for path in paths.folder.glob(f"checkpoint*.pt{DAMAGED}*"))
    return Found(checkpoint=checkpoint, reasons=tuple(reasons), kept=tuple(kept))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    if not isinstance(error, OSError) and type(error) is not ValueError:
        text = f"it is damaged ({type(error).__name__}: {text})"
    return escape_control_characters(text[:300])


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint to the first name that is free, and return that."""
    names = (f"{path.name}{DAMAGED}{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    target = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    try:
        path.rename(target)
    except OSError as error:
        raise TrainingError(
            "checkpoint",
            f"{path}: the checkpoint is damaged and cannot be renamed: {error.strerror}",
            hint="Move it away, then run the experiment again.",
        ) from error
    return target


def _check_log(state: TrainState, history: RunState, *, log_damaged: bool) -> None:
    """Raise ValueError unless the log reaches as far as the checkpoint. The log was synced before the checkpoint was
    made, so a shorter one has lost its end, and the run must not end with epochs that nobody can see."""
    missing = set(range(1, state.epoch)).difference(epoch.epoch for epoch in history.epochs)
    if state.seq > history.seq or (missing and not log_damaged):
        raise ValueError("it counts epochs or other events that the event log does not contain")
