"""Every file of a run, and of the store around it, named in one place."""

from dataclasses import dataclass
from pathlib import Path

QUEUE_LOCK = ".queue.lock"
RUNNER_LOCK = ".runner.lock"
RUNNER_LOG = ".runner.log"
TRASH = ".trash"
"""Folder of deleted runs, which can be brought back."""
TEMPORARY = ".tmp-"
"""Beginning of the name of a run directory that is still being made."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run directory."""

    folder: Path

    @property
    def run(self) -> str:
        """The run's id, which is its folder's name."""
        return self.folder.name

    @property
    def info(self) -> Path:
        """What was asked for; written once, when the run is queued."""
        return self.folder / "run.json"

    @property
    def events(self) -> Path:
        """The event log, the only source of truth."""
        return self.folder / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before it."""
        return self.folder / "checkpoint-previous.pt"

    @property
    def best_weights(self) -> Path:
        """Weights after the epoch with the lowest validation loss: all that a finished run keeps of its training."""
        return self.folder / "best-weights.safetensors"

    @property
    def worker_log(self) -> Path:
        """Whatever the worker process printed."""
        return self.folder / "worker.log"

    @property
    def lock(self) -> Path:
        """Held by the worker as long as it lives."""
        return self.folder / "lock"

    @property
    def stop(self) -> Path:
        """Exists once somebody has asked the run to stop."""
        return self.folder / "stop"
