"""A submission: the folder with its runs, job scripts and logs, in the store."""

import functools
import os
import pwd
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lmconsole.errors import StoreError
from lmconsole.files import atomic_write, read_file
from lmconsole.runs import lock
from lmconsole.runs.events import DAMAGED, Name, Number, Positive, SlurmPlace
from lmconsole.runs.paths import SLURM
from lmconsole.telemetry.host import host_name

MAX_BYTES = 2**26
SUBMIT_ELSEWHERE = "`lmconsole run EXPERIMENT --executor slurm` submits its runs again."


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``batch.json``."""

    schema: int = 1
    user: Name
    """Name of the user who submitted it."""
    host: Name
    """Machine on which it was submitted."""
    array_size: Positive
    """Runs in each of its arrays; the last one may have fewer."""
    restarts: Number
    """Times in a row that a run is started again without getting on."""

    def part_of(self, index: int) -> int:
        """Return the index of the first run of the array that the run ``index`` is in."""
        return index - index % self.array_size


def new_batch_id() -> str:
    """Return the id of a new submission."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"


@functools.cache
def user_name() -> str:
    """Return the name of this user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def folder_of(store: Path, batch: str) -> Path:
    """Return the folder of a submission."""
    return store / SLURM / batch


def task_log(store: Path, place: SlurmPlace, batch: Batch) -> Path:
    """Return the file with the output of a task and of SLURM about it."""
    part = batch.part_of(place.index)
    return folder_of(store, place.batch) / f"{part}_{place.index - part}.log"


def array_file(store: Path, batch: str, part: int) -> Path:
    """Return the script of the array that begins with the run ``part``."""
    return folder_of(store, batch) / f"array-{part}.sh"


def last_file(store: Path, batch: str) -> Path:
    """Return the script of the last job."""
    return folder_of(store, batch) / "last.sh"


def last_log(store: Path, batch: str) -> Path:
    """Return the output of the last job."""
    return folder_of(store, batch) / "last.log"


def read_runs(store: Path, batch: str, part: int) -> list[str]:
    """Return the names of the run directories of an array, by task. Each task reads only those of its own array.

    Raises StoreError.
    """
    path = folder_of(store, batch) / f"array-{part}.json"
    try:
        return msgspec.json.decode(read_file(path, MAX_BYTES, follow=False), type=list[str])
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise StoreError(f"{path}: not a list of runs: {error}") from None


def read_batch(store: Path, batch: str) -> Batch:
    """Read a submission. Raises StoreError."""
    path = folder_of(store, batch) / "batch.json"
    try:
        return msgspec.json.decode(read_file(path, MAX_BYTES, follow=False), type=Batch)
    except FileNotFoundError:
        raise StoreError(f"{path.parent}: no such submission to SLURM", hint=SUBMIT_ELSEWHERE) from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise StoreError(f"{path}: not a submission of lmconsole: {error}") from None


def write_batch(store: Path, batch: str, content: Batch) -> None:
    """Write a submission, before any of its runs is queued. Raises OSError."""
    with atomic_write(folder_of(store, batch) / "batch.json", sync=True) as file:
        file.write(msgspec.json.encode(content) + b"\n")


def write_runs(store: Path, batch: str, part: int, names: Sequence[str]) -> None:
    """Write the names of the run directories of an array. Raises OSError."""
    with atomic_write(folder_of(store, batch) / f"array-{part}.json") as file:
        file.write(msgspec.json.encode(names) + b"\n")


def write_jobs(store: Path, batch: str, jobs: Sequence[str]) -> None:
    """Write the jobs of a submission that is complete. Raises OSError."""
    with atomic_write(_jobs_file(store, batch), sync=True) as file:
        file.write(msgspec.json.encode(jobs) + b"\n")


def submission_lock(store: Path, batch: str) -> Path:
    """Return the file that the command locks that submits it."""
    return folder_of(store, batch) / "submit.lock"


def is_being_submitted(store: Path, batch: str, content: Batch) -> bool | None:
    """Return whether a command is still making a submission, so that some of its runs have no jobs yet. None if that
    is unknown: only the command's host knows whether its process lives."""
    if is_complete(store, batch):
        return False
    if content.host != host_name():
        return None
    try:
        return lock.owner(submission_lock(store, batch)) is not None
    except OSError:
        return None


def is_complete(store: Path, batch: str) -> bool:
    """Return whether the command that made a submission came to its end."""
    return os.path.lexists(_jobs_file(store, batch))


def _jobs_file(store: Path, batch: str) -> Path:
    return folder_of(store, batch) / "jobs.json"


def write_script(path: Path, script: str) -> None:
    """Write a job script. Raises OSError."""
    with atomic_write(path) as file:
        file.write(script.encode())


def cut(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield first index and length of the arrays of at most ``size`` tasks that ``count`` runs need."""
    for first in range(0, count, size):
        yield first, min(size, count - first)
