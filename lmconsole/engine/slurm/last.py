"""The last job of a submission: it submits again what was interrupted, and then does what follows a queue."""

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lmconsole.engine.alerts import Alerts
from lmconsole.engine.finish import Finish
from lmconsole.engine.processes import last_line
from lmconsole.engine.queue import queue_interrupted
from lmconsole.engine.slurm.batch import Batch, read_batch, task_log
from lmconsole.engine.slurm.commands import SlurmError, SlurmJob, job_name, jobs, run_command
from lmconsole.engine.slurm.poll import task_of
from lmconsole.engine.slurm.reasons import describe_reason
from lmconsole.engine.slurm.submit import submit_again, submit_last
from lmconsole.errors import LmconsoleError, escape_control_characters
from lmconsole.runs.claim import log_bytes
from lmconsole.runs.cluster import WARNINGS
from lmconsole.runs.events import Failed, Stopped, utc_now
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

INTERRUPTED = frozenset(["TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REQUEUED"])
"""States in which SLURM leaves a job that it, and not a person, has ended."""


class Fate(StrEnum):
    """Fate of a run whose task may have ended."""

    OVER = "over"
    """Nothing is to be done."""
    WAITING = "waiting"
    """Its task waits or runs."""
    INTERRUPTED = "interrupted"
    """To be submitted again."""
    STOPPED = "stopped"
    """A person cancelled it before it could record that."""
    FAILED = "failed"
    """It failed without recording that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Fate of one run, and why."""

    run: Run
    fate: Fate
    job: SlurmJob | None
    state: str
    """Last state of its job, in SLURM's words; empty if SLURM has forgotten it."""


def main(arguments: Sequence[str]) -> int:
    """Do what follows a submission, and return the exit code."""
    store, batch = Store(Path(arguments[0])), arguments[1]
    try:
        conclude(store, batch, _log)
    except (LmconsoleError, OSError) as error:
        _log(str(error))
        return 1
    return 0


def conclude(store: Store, batch: str, log: Callable[[str], None]) -> bool:
    """Submit runs again that were interrupted, record the end of those that could not, and if none is left, export and
    do what else follows a queue. Return whether none is left.

    Raises:
        LmconsoleError: SLURM does not answer, or the store cannot be written.
        OSError: a run cannot be written.
    """
    content = read_batch(store.root, batch)
    waits: list[str] = []
    again: list[int] = []
    for finding in look(store, batch, content):
        place = finding.run.place
        if finding.fate is Fate.WAITING and finding.job is not None:
            waits.append(finding.job.name)
        elif finding.fate is Fate.INTERRUPTED and place is not None:
            if place.restarts >= content.restarts:
                _record(finding, Failed(error="restarts", message=_why(finding), hint=_hint(finding.run)), log)
            elif queue_interrupted(store, finding.run):
                again.append(place.index)
                log(f"{finding.run.run}: {_why(finding)}; submitted again")
        elif finding.fate is Fate.STOPPED:
            epoch, step = finding.run.state.position
            _record(finding, Stopped(epoch=epoch, step=step), log)
        elif finding.fate is Fate.FAILED:
            _record(finding, _failure(finding, store, content), log)
    if again:
        waits += submit_again(store, batch, content, again)
    if waits:
        submit_last(store, batch, waits)
        log(f"{len(waits)} more to wait for")
        return False
    permissions = Permissions(store.root)
    alerts = Alerts(store, permissions, log)
    own = set(content.runs)
    Finish(store, permissions, alerts, log, covers=lambda run: run.run in own and _is_of(run, batch)).run(own)
    alerts.close()
    return True


def look(store: Store, batch: str, content: Batch) -> list[Finding]:
    """Return the fate of each run of a submission. Raises SlurmError."""
    own = [run for run in store.runs() if _is_of(run, batch) and not run.problem]
    sizes = {run.run: log_bytes(run.paths.events) for run in own}
    found = jobs([content.user])
    forgotten: dict[int, str] | None = None
    findings = []
    for each in own:
        each.refresh()
        place = each.place
        if place is None or place.batch != batch:
            continue
        job = task_of(found, batch, place.index)
        state = job.state if job else ""
        needs_state = job is None and _may_be_unfinished(each)
        if needs_state and each.task is not None and not each.task.is_live:
            state = each.task.state
        if needs_state and not state:
            forgotten = accounting(batch, content) if forgotten is None else forgotten
            state = forgotten.get(place.index, "")
        grows = log_bytes(each.paths.events) != sizes[each.run]
        fate = Fate.WAITING if grows and each.state.status.active else fate_of(each, job, state)
        findings.append(Finding(run=each, fate=fate, job=job, state=state))
    return findings


def _is_of(run: Run, batch: str) -> bool:
    return run.place is not None and run.place.batch == batch


def _may_be_unfinished(run: Run) -> bool:
    stopped = run.state.stopped
    return run.state.status.active or (stopped is not None and stopped.signal is not None)


def fate_of(run: Run, job: SlurmJob | None, state: str) -> Fate:
    """Return the fate of a run from its log and the state of its job."""
    status, stopped = run.state.status, run.state.stopped
    if not _may_be_unfinished(run):
        return Fate.OVER
    if job is not None and job.is_live:
        return Fate.WAITING
    if run.stop_requested:
        return Fate.STOPPED if status.active else Fate.OVER
    interrupted = state in INTERRUPTED
    if not status.active:  # it was stopped by a signal
        assert stopped is not None
        return Fate.INTERRUPTED if interrupted or (stopped.signal in WARNINGS and state != "CANCELLED") else Fate.OVER
    if state == "CANCELLED":
        return Fate.STOPPED
    return Fate.INTERRUPTED if interrupted else Fate.FAILED


def accounting(batch: str, content: Batch) -> dict[int, str]:
    """Return the last state of the task of each run, by index, from SLURM's accounting; empty where there is none."""
    date = f"{batch[:4]}-{batch[4:6]}-{batch[6:8]}"
    states: dict[int, str] = {}
    for part in content.parts:
        name = job_name(batch, part)
        with contextlib.suppress(SlurmError):
            output = run_command(
                ["sacct", "-n", "-X", "-P", f"--name={name}", f"--starttime={date}", "-o", "JobID,State"]
            )
            for line in output.splitlines():
                found = re.fullmatch(r"\d+_(\d+)\|([A-Z_]+).*", line.strip())
                if found:
                    states[part + int(found[1])] = found[2]
    return states


def _why(finding: Finding) -> str:
    return f"{describe_reason(finding.state, '')}{f' (job {finding.job.name})' if finding.job else ''}"


def _hint(run: Run) -> str:
    return f"{run.info.resume_command} resumes it from its last checkpoint."


def _failure(finding: Finding, store: Store, content: Batch) -> Failed:
    run = finding.run
    place = run.place
    assert place is not None
    path = task_log(store.root, place, content)
    if finding.state == "OUT_OF_MEMORY":
        return Failed(
            error="out-of-memory",
            message=_why(finding),
            hint=f"Ask for more with mem in [executor.slurm] or --sbatch. Then {_hint(run)}",
        )
    what = "its job ended before it started" if run.state.status is Status.QUEUED else "its job ended"
    return Failed(error="killed", message=f"{what}: {last_line(path)}", hint=f"Its output is in {path}. {_hint(run)}")


def _record(finding: Finding, event: Failed | Stopped, log: Callable[[str], None]) -> None:
    run = finding.run
    if run.record_end(event, after=run.state.queued_seq):
        log(f"{run.run}: {event.message if isinstance(event, Failed) else 'cancelled'}")


def _log(message: str) -> None:
    line = escape_control_characters(message).replace("\n", "\\n")
    print(f"{utc_now()} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
