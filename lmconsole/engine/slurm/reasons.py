"""Phrases for the states and reasons of SLURM."""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from lmconsole.formatting import local_time
from lmconsole.runs.cluster import ClusterStatus, SlurmState
from lmconsole.runs.state import Status

_REASONS = {
    "AssocGrpCpuLimit": "the account's limit of CPUs is reached",
    "AssocGrpGRES": "the account's limit of GPUs is reached",
    "AssocGrpCPUMinutesLimit": "the account's CPU time is used up",
    "AssocGrpBillingMinutes": "the account's budget is used up",
    "AssocMaxJobsLimit": "the account's limit of jobs is reached",
    "BadConstraints": "no node can satisfy the options",
    "BeginTime": "starts again in a moment",
    "Cleaning": "the last attempt is being cleaned up",
    "Dependency": "waits for other jobs",
    "DependencyNeverSatisfied": "waits for a job that will not end as required",
    "JobArrayTaskLimit": "as many train as at_once allows",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held",
    "JobHoldMaxRequeue": "held: started again too often",
    "launch failed requeued held": "held: it could not be started on its node",
    "Licenses": "waits for a license",
    "MaxGRESPerAccount": "the account's limit of GPUs is reached",
    "NodeDown": "its node is down",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not active",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "Priority": "other jobs have priority",
    "QOSGrpGRES": "the QOS's limit of GPUs is reached",
    "QOSMaxGRESPerUser": "your limit of GPUs is reached",
    "QOSMaxJobsPerUserLimit": "your limit of jobs is reached",
    "QOSMaxCpuPerUserLimit": "your limit of CPUs is reached",
    "QOSMaxSubmitJobPerUserLimit": "your limit of submitted jobs is reached",
    "ReqNodeNotAvail": "nodes that it needs are not available",
    "Reservation": "waits for a reservation",
    "Resources": "waits for free nodes",
}
_STATES = {
    "BOOT_FAIL": "its node could not be started",
    "CANCELLED": "cancelled",
    "COMPLETED": "its job has ended",
    "COMPLETING": "its job is ending",
    "CONFIGURING": "its node is being prepared",
    "DEADLINE": "cancelled at its deadline",
    "FAILED": "its job failed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: the job used more than its limit",
    "PREEMPTED": "preempted by another job",
    "REQUEUED": "is being started again",
    "REQUEUE_HOLD": "held after it was to start again",
    "RUNNING": "its job is running",
    "SPECIAL_EXIT": "held after a special exit code",
    "STOPPED": "its job was paused",
    "SUSPENDED": "its job is suspended",
    "TIMEOUT": "reached its time limit",
}


@functools.cache
def describe_reason(state: str, reason: str) -> str:
    """Describe the state of a job, and for one that waits, the reason why."""
    if state == "PENDING":
        known = _REASONS.get(reason) or next((w for name, w in _REASONS.items() if reason.startswith(name)), None)
        return known or (f"waits: {reason}" if reason and reason != "None" else "waits for SLURM")
    return _STATES.get(state, state.lower().replace("_", " ") if state else "unknown to SLURM")


class OnSlurm(Protocol):
    """A run on SLURM, as ``runs.store.Run`` and the console have it."""

    @property
    def status(self) -> Status:
        """Status of the run."""

    @property
    def slurm(self) -> SlurmState:
        """Its state if SLURM starts it."""


def starts(run: OnSlurm) -> bool:
    """Return whether the job of a queued run has begun, and its worker is about to."""
    return (
        run.status is Status.QUEUED
        and run.slurm.task is not None
        and run.slurm.task.state in ("RUNNING", "CONFIGURING")
    )


def describe_task(run: OnSlurm) -> str:
    """Describe why a run does not train; empty if it does, or if SLURM has not been asked about it."""
    task = run.slurm.task
    if task is None or starts(run) or (run.slurm.interrupted and not task.waits):
        return ""
    if run.status is Status.RUNNING and not run.slurm.interrupted and task.state not in ("STOPPED", "SUSPENDED"):
        return ""
    return describe_reason(task.state, task.reason)


def count_tasks(runs: Iterable[OnSlurm]) -> str:
    """Count runs on SLURM that train or wait: ``36 on SLURM: 4 running, 32 wait (other jobs have priority)``."""
    counts = Counter(map(_group, runs))
    parts = [f"{count:,} {group[1 if count == 1 else 2]}" for group, count in sorted(counts.items(), key=_most_first)]
    return f"{counts.total():,} on SLURM: {', '.join(parts)}"


def no_answer(answer: ClusterStatus | None) -> str:
    """Return a sentence that SLURM has not been asked yet or does not answer; empty if it has answered."""
    if answer is None:
        return "SLURM has not been asked yet."
    if answer.problem:
        return f"SLURM does not answer: {answer.problem}. It did at {local_time(answer.t)}."
    return ""


def _group(run: OnSlurm) -> tuple[int, str, str]:
    """Return the place in the summary, and the words about one such run and about several."""
    words = describe_task(run)
    if run.slurm.interrupted:
        note = f" (interrupted{f', {words}' if words else ''})"
        return 3, f"waits{note}", f"wait{note}"
    if run.status is Status.RUNNING:
        text = f"running ({words})" if words else "running"
        return 0, text, text
    if starts(run):
        return 1, "starting", "starting"
    if words.startswith("waits"):
        return 2, words, words.replace("waits", "wait", 1)
    note = f" ({words})" if words else ""
    return 2, f"waits{note}", f"wait{note}"


def _most_first(item: tuple[tuple[int, str, str], int]) -> tuple[int, int, str]:
    (place, words, _), count = item
    return place, -count, words
