"""Job scripts for SLURM: the array that trains runs, and the last job."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from lmconsole.engine.slurm.batch import folder_of
from lmconsole.engine.slurm.commands import LAST_JOB, SlurmError, job_name
from lmconsole.plan.executor import WARNING_S, SlurmOptions

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_OF_THE_TASK = re.compile(r"(gpus|gres|mem|cpus|tres|ntasks|threads|cores|sockets|exclusive|constraint|prefer|time)")
"""Options that ask for what a task needs, and not the last job."""
_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,4}))?(?::(\d{1,4}))?")
LAST_JOB_MINUTES = 60
LAST_JOB_MEMORY = "2G"


def quote(value: str) -> str:
    """Quote a value for a line ``#SBATCH``, where sbatch expands nothing. Raises ValueError for a control character:
    such a line cannot have one."""
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"{value!r}: control characters cannot be written into a job script")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def array_script(options: SlurmOptions, store: Path, batch: str, *, offset: int, count: int) -> str:
    """Return the script of the array whose tasks train ``count`` runs of a submission, from index ``offset`` on."""
    at_once = f"%{options.at_once}" if options.at_once else ""
    no_requeue = "no-requeue" in options.sbatch
    given = {
        "job-name": job_name(batch, offset),
        "array": f"0-{count - 1}{at_once}",
        **_common(store, batch, f"{offset}_%a.log"),
        "signal": f"B:USR1@{warning_seconds(options)}",
        **({} if no_requeue else {"requeue": None}),
        **options.sbatch,
    }
    return _script(given, options.setup, "lmconsole.engine.slurm.task", str(store), batch, str(offset))


def last_script(options: SlurmOptions, store: Path, batch: str) -> str:
    """Return the script of the job that runs after all tasks of a submission: exports need a processor and no GPU."""
    minutes = {"time": str(LAST_JOB_MINUTES)} if "time" in options.sbatch else {}
    given = {
        "job-name": job_name(batch, LAST_JOB),
        **_common(store, batch, "last.log"),
        "mem": LAST_JOB_MEMORY,
        **minutes,
        **{name: value for name, value in options.sbatch.items() if not _OF_THE_TASK.match(name)},
        **options.last,
    }
    return _script(given, options.setup, "lmconsole.engine.slurm.last", str(store), batch)


def probe_script(options: SlurmOptions, folder: Path, batch: str, limit: int) -> str:
    """Return the script of the job that resolves a request on a node: as the tasks, but for ``limit`` minutes."""
    given = {
        **options.sbatch,
        "job-name": job_name(batch, "probe"),
        "chdir": str(folder),
        "output": "probe.log",
        "ntasks": "1",
        "nodes": "1",
        "time": str(limit),
    }
    return _script(given, options.setup, "lmconsole.engine.slurm.probe", str(folder))


def warning_seconds(options: SlurmOptions) -> int:
    """Return the time before the time limit at which SLURM warns, in seconds.

    Raises SlurmError if that is all of the time.
    """
    limit = minutes(options.sbatch.get("time"))
    if options.warning_s is None:
        return WARNING_S if limit is None else min(WARNING_S, 30 * limit)
    if limit is not None and options.warning_s >= 60 * limit:
        raise SlurmError(
            f"[executor.slurm]: warning_s = {options.warning_s}: not less than the time limit of {limit} min",
            hint="A run would save its last checkpoint at once. Give it more time, or a shorter warning.",
        )
    return options.warning_s


def minutes(limit: str | None) -> int | None:
    """Return a time limit as sbatch takes it, such as ``90``, ``1:30:00`` or ``1-12``, in minutes, rounded up; None if
    it is none or not understood."""
    found = _TIME.fullmatch(limit or "")
    if found is None:
        return None
    days, first, second, third = (int(each) if each else 0 for each in found.groups())
    if found[1] is not None:  # days-hours[:minutes[:seconds]]
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif found[4] is not None:  # hours:minutes:seconds
        seconds = (first * 60 + second) * 60 + third
    else:  # minutes[:seconds]
        seconds = first * 60 + second
    return -(-seconds // 60)


def _common(store: Path, batch: str, output: str) -> dict[str, str | None]:
    return {
        "chdir": str(folder_of(store, batch)),
        "output": output,  # in that folder, so that no name in its path is taken for a pattern
        "open-mode": "append",
        "ntasks": "1",
        "nodes": "1",
    }


def _script(options: Mapping[str, str | None], setup: str, module: str, *arguments: str) -> str:
    lines = [f"#SBATCH --{name}" + ("" if value is None else f"={quote(value)}") for name, value in options.items()]
    command = shlex.join([sys.executable, "-P", "-m", module, *arguments])
    # exec: signals that SLURM sends to the script reach the worker.
    return "\n".join(["#!/bin/bash", *lines, "", *([setup] if setup else []), f"exec {command}", ""])
