"""SLURM's commands: submit, ask, cancel, hold and requeue jobs."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.files import read_file
from lmconsole.runs.cluster import LIVE
from lmconsole.runs.events import BATCH_PATTERN

TIMEOUT_S = 60.0
MAX_SCRIPT_BYTES = 2**22
RETRY_S = 5.0
"""Wait before SLURM is asked again that did not answer."""
JOB_PREFIX = "lmconsole-"
LAST_JOB = "last"
"""End of the name of the job that does what is to be done at the end of a queue."""
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
_NAME = re.compile(rf"{JOB_PREFIX}({BATCH_PATTERN})\.([0-9]{{1,9}}|{LAST_JOB})")
_FORMAT = "%j|%F|%K|%T|%r|%N|%A"
_NO_NODE_NOW = "Requested node configuration is not available"
DEFAULT_MAX_ARRAY_SIZE = 1001
_NO_ANSWER = ("unable to contact", "connect failure", "timed out", "connection refused", "communication", "timeout")


class SlurmError(LmconsoleError):
    """A command of SLURM failed, or is missing."""

    kind = "slurm"


class SlurmMissingError(SlurmError):
    """SLURM's commands are not installed here."""


class SlurmUnreachableError(SlurmError):
    """SLURM's controller did not answer; it may do so later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmJob:
    """A job of lmconsole, or one task of its array, as SLURM knows it."""

    batch: str
    """Submission to which it belongs."""
    index: int | None
    """Index of the run in the submission; None for the last job."""
    array_job: str
    """Number of the array."""
    task: int | None
    """Number of the task in the array; None for a job that is not one."""
    state: str
    """State in SLURM's words."""
    reason: str
    """Reason why it waits, in SLURM's words; empty if there is none."""
    node: str
    """Name of the node; empty if it has none."""
    number: int
    """Number of the job or task itself."""

    @property
    def name(self) -> str:
        """Name for SLURM's commands: ``1234_17`` for a task."""
        return self.array_job if self.task is None else f"{self.array_job}_{self.task}"

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVE


def job_name(batch: str, part: int | str) -> str:
    """Return the name of a job: of the submission, and the index of the run of its task 0, or ``LAST_JOB``."""
    return f"{JOB_PREFIX}{batch}.{part}"


def submission_environment(options: Mapping[str, object] | Iterable[str] = ()) -> dict[str, str]:
    """Return the environment for SLURM's commands: without the variables of a job that this process is part of, and
    without those that would override the ``options`` of a script."""
    overriding = {f"SBATCH_{name.upper().replace('-', '_')}" for name in options}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in overriding and (not name.startswith("SLURM_") or name in _KEPT)
    }


def run_command(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, stdin: str = "", talk: bool = False
) -> str:
    """Run a command of SLURM and return its output, or with ``talk`` what it says on standard error.

    Raises:
        SlurmUnreachableError: the controller did not answer.
        SlurmError: the command is missing or failed.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=submission_environment() if environment is None else environment,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmMissingError(
            f"{command[0]}: no such program", hint="SLURM's commands must be in PATH: log in to a submit host."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmUnreachableError(f"{command[0]}: no answer in {TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise SlurmError(f"{command[0]}: cannot be started: {error.strerror}") from None
    if done.returncode == 0:
        return done.stderr if talk else done.stdout
    if done.returncode < 0:  # by an interrupt at the terminal, which reaches it too
        raise SlurmError(f"{command[0]}: ended by {signal.Signals(-done.returncode).name}")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    text = escape_control_characters("; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}")
    unreachable = any(words in text.lower() for words in _NO_ANSWER)
    raise (SlurmUnreachableError if unreachable else SlurmError)(text)


def run_patiently(command: Sequence[str], *, limit_s: float, environment: Mapping[str, str] | None = None) -> str:
    """Run a command of SLURM as ``run_command`` does, repeatedly for ``limit_s`` while there is no answer."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            return run_command(command, environment=environment)
        except SlurmUnreachableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(RETRY_S)


def submit(script: Path, *options: str, limit_s: float = 0.0) -> str:
    """Submit a job script and return the number of the job. Raises SlurmError."""
    environment = submission_environment(_script_options(script))
    output = run_patiently(["sbatch", "--parsable", *options, str(script)], limit_s=limit_s, environment=environment)
    number = output.strip().splitlines()[-1].partition(";")[0] if output.strip() else ""
    if not number.isdigit():
        raise SlurmError(f"sbatch: unexpected answer {output.strip()!r}")
    return number


def check(script: str, options: Iterable[str]) -> str:
    """Ask SLURM whether it would accept a job script, and return its answer. Raises SlurmError."""
    environment = submission_environment(options)
    try:
        return run_command(["sbatch", "--test-only"], environment=environment, stdin=script, talk=True).strip()
    except SlurmUnreachableError:
        raise
    except SlurmError as error:
        if _NO_NODE_NOW not in error.message:
            raise
    # It says so too while all nodes that suit are out of service. A job that is held tells one from the other.
    trial = ["sbatch", "--parsable", "--hold", f"--job-name={JOB_PREFIX}check"]
    number = run_command(trial, environment=environment, stdin=script).strip()
    cancel([number.partition(";")[0]])
    return "accepted; no node that suits is available at the moment"


def _script_options(script: Path) -> list[str]:
    try:
        lines = read_file(script, MAX_SCRIPT_BYTES, follow=False).decode().splitlines()
    except OSError as error:
        raise SlurmError(f"{script}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SlurmError(f"{script}: not UTF-8") from None
    return [found[1] for line in lines if (found := re.match(r"#SBATCH --([a-z0-9-]+)", line))]


def jobs(users: Iterable[str]) -> list[SlurmJob]:
    """Return the jobs of lmconsole of these users that SLURM knows, those that ended a short time ago included.

    Raises SlurmError.
    """
    output = run_command(["squeue", "-h", "-r", "-t", "all", "-u", ",".join(users), "-o", _FORMAT])
    return [job for line in output.splitlines() if (job := _parse(line))]


def tasks_by_place(found: Iterable[SlurmJob]) -> dict[tuple[str, int], SlurmJob]:
    """Return the job of each run by submission and index: the live one, or else the newest."""
    tasks: dict[tuple[str, int], SlurmJob] = {}
    for job in found:
        if job.index is None:
            continue
        known = tasks.get((job.batch, job.index))
        if known is None or (job.is_live, job.number) > (known.is_live, known.number):
            tasks[job.batch, job.index] = job
    return tasks


def _parse(line: str) -> SlurmJob | None:
    parts = line.strip().split("|")
    found = _NAME.fullmatch(parts[0])
    if found is None or len(parts) != 7:
        return None
    _, array_job, task, state, reason, node, number = parts
    element = int(task) if task.isdigit() else None
    index = None if found[2] == LAST_JOB or element is None else int(found[2]) + element
    return SlurmJob(
        batch=found[1],
        index=index,
        array_job=array_job,
        task=element,
        state=state,
        reason="" if reason == "None" else reason,
        node=node,
        number=int(number) if number.isdigit() else 0,
    )


def max_array_size() -> int:
    """Return the number of tasks that an array may have: MaxArraySize, since its tasks are numbered from 0.

    Raises SlurmError.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_command(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(found[1])) if found else DEFAULT_MAX_ARRAY_SIZE


def describe_job(name: str) -> dict[str, str]:
    """Return the fields of a job, such as ``JobState``, that ``scontrol show job`` gives. Raises SlurmError."""
    line = run_command(["scontrol", "show", "job", "--oneliner", name]).strip()
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def cancel(names: Sequence[str]) -> None:
    """Cancel jobs. Raises SlurmError."""
    if names:
        run_command(["scancel", *names])


def control(action: str, name: str, *, limit_s: float = 0.0) -> None:
    """Hold, release or requeue a job. Raises SlurmError."""
    run_patiently(["scontrol", action, name], limit_s=limit_s)
