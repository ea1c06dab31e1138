"""The last job of a submission: it submits again what was interrupted, and then does what follows a queue."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lmconsole.engine.alerts import Alerts
from lmconsole.engine.finish import Finish
from lmconsole.engine.processes import last_line
from lmconsole.engine.queue import queue_interrupted
from lmconsole.engine.slurm.batch import Batch, is_complete, read_batch, task_log
from lmconsole.engine.slurm.commands import (
    RETRY_S,
    SlurmError,
    SlurmJob,
    SlurmUnreachableError,
    job_name,
    jobs,
    run_command,
    tasks_by_place,
)
from lmconsole.engine.slurm.reasons import describe_reason
from lmconsole.engine.slurm.submit import submit_again, submit_last
from lmconsole.engine.slurm.task import CONTINUES, attempts_in_vain, too_often
from lmconsole.errors import LmconsoleError, RunActiveError, escape_control_characters
from lmconsole.runs.claim import log_bytes
from lmconsole.runs.cluster import INTERRUPTED, WARNINGS
from lmconsole.runs.events import Failed, Stopped, utc_now
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

PATIENCE_S = 600.0
"""Time for which SLURM is asked again and again while its controller does not answer."""
CONFIRM_S = 5.0
"""Wait before a run without a job is judged."""


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
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            conclude(store, batch, _log)
            return 0
        except SlurmUnreachableError as error:
            if time.monotonic() > deadline_s:
                _log(str(error))
                return 1
            time.sleep(RETRY_S)
        except (LmconsoleError, OSError) as error:
            _log(str(error))
            return 1


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
    findings = look(store, batch, content)
    if any(each.job is None and each.fate not in (Fate.OVER, Fate.WAITING) for each in findings):
        time.sleep(CONFIRM_S)  # a person may be about to submit one again
        findings = look(store, batch, content)
    for finding in findings:
        place = finding.run.place
        if finding.fate is Fate.WAITING and finding.job is not None:
            waits.append(finding.job.name)
        elif finding.fate is Fate.INTERRUPTED and place is not None:
            if attempts_in_vain(finding.run.paths) > content.restarts:
                _record(finding, too_often(content.restarts), log)
            elif _queue_again(store, finding, log):
                again.append(place.index)
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
    own = {run.run for run in store.runs() if _is_of(run, batch)}
    Finish(store, permissions, alerts, log, covers=lambda run: run.run in own).run(own)
    alerts.close()
    return True


def _queue_again(store: Store, finding: Finding, log: Callable[[str], None]) -> bool:
    """Queue an interrupted run again, and return whether that was done: another process may have been faster."""
    try:
        queued = queue_interrupted(store, finding.run)
    except RunActiveError as error:
        log(str(error))
        return False
    if queued:
        log(f"{finding.run.run}: {_why(finding)}; submitted again")
    else:
        hint = f"{finding.run.info.resume_command} gives it and resumes the run."
        event = Failed(error="slurm", message=f"{_why(finding)}, and has no permission to start again", hint=hint)
        _record(finding, event, log)
    return queued


def look(store: Store, batch: str, content: Batch) -> list[Finding]:
    """Return the fate of each run of a submission. Raises SlurmError."""
    own = [run for run in store.runs() if _is_of(run, batch) and not run.problem]
    sizes = {run.run: log_bytes(run.paths.events) for run in own}
    found = tasks_by_place(jobs([content.user]))
    forgotten: dict[int, str] | None = None
    findings = []
    for each in own:
        each.refresh()
        place = each.place
        if place is None or place.batch != batch:
            continue
        job = found.get((batch, place.index))
        state = job.state if job else ""
        needs_state = job is None and _may_be_unfinished(each)
        if needs_state and each.slurm.task is not None and not each.slurm.task.is_live:
            state = each.slurm.task.state
        if needs_state and not state:
            forgotten = accounting(batch, _parts(own, content)) if forgotten is None else forgotten
            state = forgotten.get(place.index, "")
        grows = log_bytes(each.paths.events) != sizes[each.run]
        waited = each.state.status is Status.QUEUED and not task_log(store.root, place, content).exists()
        if not state and waited and _had_job(each, store):
            state = "CANCELLED"  # SLURM forgets at once a task that is cancelled while it waits
        fate = Fate.WAITING if grows and each.state.status.active else fate_of(each, job, state)
        findings.append(Finding(run=each, fate=fate, job=job, state=state))
    return findings


def _had_job(run: Run, store: Store) -> bool:
    """Return whether the run was submitted, as far as is known."""
    known = run.slurm.task is not None and bool(run.slurm.task.job)
    return known or (run.place is not None and is_complete(store.root, run.place.batch))


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


def _parts(runs: Iterable[Run], content: Batch) -> list[int]:
    return sorted({content.part_of(run.place.index) for run in runs if run.place})


def accounting(batch: str, parts: Iterable[int]) -> dict[int, str]:
    """Return the last state of the task of each run of these arrays, by index, from SLURM's accounting; empty where
    there is none."""
    date = f"{batch[:4]}-{batch[4:6]}-{batch[6:8]}"
    states: dict[int, str] = {}
    for part in parts:
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
    if not (finding.state or path.exists() or _had_job(run, store)):
        return Failed(
            error="slurm",
            message="the command that queued it ended before SLURM had it",
            hint=f"{run.info.resume_command} queues it again.",
        )
    line = last_line(path)
    if line.startswith(CONTINUES):  # SLURM has printed nothing after it
        path = run.paths.worker_log
        line = last_line(path)
    if finding.state == "OUT_OF_MEMORY":
        return Failed(
            error="out-of-memory",
            message=_why(finding),
            hint=f"Ask for more with mem in [executor.slurm] or --sbatch. Then {_hint(run)}",
        )
    what = "its job ended before it started" if run.state.status is Status.QUEUED else "its job ended"
    return Failed(error="killed", message=f"{what}: {line}", hint=f"Its output is in {path}. {_hint(run)}")


def _record(finding: Finding, event: Failed | Stopped, log: Callable[[str], None]) -> None:
    run = finding.run
    if run.record_end(event, after=run.state.queued_seq):
        log(f"{run.run}: {event.message if isinstance(event, Failed) else 'cancelled'}")


def _log(message: str) -> None:
    line = escape_control_characters(message).replace("\n", "\\n")
    print(f"{utc_now()} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
