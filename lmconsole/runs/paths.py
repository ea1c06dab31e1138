"""Names of all files of a store and of its runs."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

QUEUE_LOCK = ".queue.lock"
QUEUE_CLAIM = ".queue.claim"
"""Exists while runs are put into the queue of a store that several hosts may use."""
RUNNER_LOCK = ".runner.lock"
RUNNER_LOG = ".runner.log"
DIGEST = ".digest.json"
"""Outcome of the runs of the last queue."""
NOTES_LOCK = ".notes.lock"
CLAIMS = ".claims"
"""Folder of registered claims."""
TRASH = ".trash"
"""Folder of deleted runs, from which they can be restored."""
SLURM = ".slurm"
"""Folder of submissions to SLURM, and of their last known status."""
TEMPORARY = ".tmp-"
"""Prefix of a run directory that is still being written."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one run directory."""

    folder: Path

    @property
    def run(self) -> str:
        """Id of the run: the name of its folder."""
        return self.folder.name

    @property
    def info(self) -> Path:
        """Configuration, written once when the run is queued."""
        return self.folder / "run.json"

    @property
    def source_diff(self) -> Path:
        """Uncommitted changes of lmconsole's own code when the run was queued; missing if there were none."""
        return self.folder / "source.diff"

    @property
    def notes(self) -> Path:
        """Note and tags, which people change at any time."""
        return self.folder / "notes.json"

    @property
    def events(self) -> Path:
        """Event log, the only source of truth."""
        return self.folder / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Latest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """Checkpoint before the latest, in case that one is damaged."""
        return self.folder / "checkpoint-previous.pt"

    @property
    def best_weights(self) -> Path:
        """Weights of the epoch with the lowest validation loss: the only ones that a finished run keeps."""
        return self.folder / "best-weights.safetensors"

    @property
    def test_losses(self) -> Path:
        """Test loss of each window with the best weights."""
        return self.folder / "test-losses.safetensors"

    @property
    def worker_log(self) -> Path:
        """Output of the worker process."""
        return self.folder / "worker.log"

    @property
    def lock(self) -> Path:
        """Locked by the worker during its whole life."""
        return self.folder / "lock"

    def claim(self, number: int) -> Path:
        """Return the file of a claim on the run; see ``runs/claim.py``."""
        return self.folder / f"claim-{number}.json"

    @property
    def stop(self) -> Path:
        """Exists if the run has been asked to stop."""
        return self.folder / "stop"

    @property
    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop: by a file, not by a link or a folder."""
        try:
            return stat.S_ISREG(os.lstat(self.stop).st_mode)
        except OSError:
            return False
