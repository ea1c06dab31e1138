"""Phrases for the states and reasons of SLURM."""

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


def describe_reason(state: str, reason: str) -> str:
    """Describe the state of a job, and for one that waits, the reason why."""
    if state == "PENDING":
        known = _REASONS.get(reason) or next((w for name, w in _REASONS.items() if reason.startswith(name)), None)
        return known or (f"waits: {reason}" if reason and reason != "None" else "waits for SLURM")
    return _STATES.get(state, state.lower().replace("_", " ") if state else "unknown to SLURM")
