"""Claims: the right to write the log of a run that SLURM starts, where the lock of the run decides nothing.

Record locks over a network file system may not be seen by other hosts, and two jobs may have been submitted for one
run. Claims are numbered files in the run directory, each created by a link, which succeeds for one process only. A
process may write the log from its claim until the next one exists.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lmconsole.files import atomic_write, open_file, read_file
from lmconsole.runs.events import DAMAGED, Name, Number, utc_now
from lmconsole.runs.paths import RunPaths
from lmconsole.telemetry.host import host_name

MAX_BYTES = 65_536
CHECK_S = 1.0
"""Interval at which a process checks whether its claim is still the last one."""
_FILE = re.compile(r"claim-([0-9]{1,9})\.json")


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a claim."""

    t: str
    """Time of the claim: UTC, ISO 8601."""
    host: Name
    """Name of the machine."""
    pid: Number
    """Process id there."""
    queued_seq: Number
    """Number of the last ``queued`` event of the run at that time."""
    job: Number = 0
    """Number of the SLURM job; 0 for a command that queues or stops the run."""
    restarts: Number = 0
    """Times that SLURM had started the job before."""
    node: Name = ""
    """SLURM's name of the node."""


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that this process made."""

    paths: RunPaths
    number: int
    claim: Claim

    @property
    def superseded(self) -> bool:
        """Whether another process has made the next claim."""
        return os.path.lexists(self.paths.claim(self.number + 1))


def last_claim(paths: RunPaths) -> tuple[int, Claim | None]:
    """Return the number and content of the last claim on a run; 0 and None if there is none, None for a damaged one.

    Raises:
        OSError: the run directory or the file cannot be read.
    """
    numbers = [int(found[1]) for name in os.listdir(paths.folder) if (found := _FILE.fullmatch(name))]
    if not numbers:
        return 0, None
    number = max(numbers)
    with contextlib.suppress(*DAMAGED):
        return number, msgspec.json.decode(read_file(paths.claim(number), MAX_BYTES, follow=False), type=Claim)
    return number, None


def make_claim(
    paths: RunPaths, after: int, *, queued_seq: int, job: int = 0, restarts: int = 0, node: str = ""
) -> Held | None:
    """Make the claim that follows number ``after``; return None if another process has made it.

    Raises:
        OSError: the run directory cannot be written.
    """
    claim = Claim(
        t=utc_now(), host=host_name(), pid=os.getpid(), queued_seq=queued_seq, job=job, restarts=restarts, node=node
    )
    try:
        with atomic_write(paths.claim(after + 1), sync=True, replace=False) as file:
            file.write(msgspec.json.encode(claim) + b"\n")
    except FileExistsError:
        # A server that repeats a request whose answer was lost says that its own file exists.
        if last_claim(paths) != (after + 1, claim):
            return None
    return Held(paths, after + 1, claim)


class ClaimWatch:
    """Says at intervals whether a claim is superseded."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._checked_s = time.monotonic()

    def is_superseded(self) -> bool:
        """Return whether another process has made the next claim, as of at most ``CHECK_S`` ago."""
        now_s = time.monotonic()
        if now_s - self._checked_s < CHECK_S:
            return False
        self._checked_s = now_s
        return self._held.superseded


def log_bytes(path: Path) -> int | None:
    """Return the size of a log as the file's server has it; None if there is no such file. A file that is opened is
    compared with the server, while a name's attributes may be a minute old."""
    try:
        descriptor = open_file(path, follow=False)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
