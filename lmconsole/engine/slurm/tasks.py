"""Actions on the tasks of runs: cancel, hold, release and start again."""

from collections.abc import Iterable, Sequence

from lmconsole.engine.slurm.batch import read_batch
from lmconsole.engine.slurm.commands import (
    SlurmError,
    SlurmUnreachableError,
    cancel,
    control,
    jobs,
    run_command,
    tasks_by_place,
)
from lmconsole.errors import LmconsoleError, StoreError
from lmconsole.runs.store import Run, Store


def task_names(store: Store, runs: Iterable[Run]) -> dict[str, str]:
    """Return SLURM's name of the job of each run, by run, as far as it knows a live one.

    Raises:
        SlurmError: SLURM does not answer.
        StoreError: a submission cannot be read.
    """
    placed = [(run.run, run.place) for run in runs if run.place is not None]
    users = {read_batch(store.root, place.batch).user for _, place in placed}
    found = tasks_by_place(jobs(sorted(users))) if users else {}
    names = {}
    for name, place in placed:
        task = found.get((place.batch, place.index))
        if task is not None and task.is_live:
            names[name] = task.name
    return names


def cancel_tasks(store: Store, runs: Sequence[Run], *, kill: bool = False) -> str:
    """Cancel the tasks of runs, so that none waits for a run that has been taken out of the queue, and return what went
    wrong: a task that starts nevertheless sees that its run was stopped, and ends.

    ``kill``: at once, without a checkpoint.
    """
    try:
        names = list(task_names(store, runs).values())
        if kill and names:
            run_command(["scancel", "--signal=KILL", "--full", *names])
        cancel(names)
    except (SlurmError, StoreError) as error:
        return str(error)
    return ""


def control_tasks(store: Store, runs: Sequence[Run], action: str) -> list[str]:
    """``hold``, ``release`` or ``requeue`` the tasks of runs, and return a line on each."""
    done = {"hold": "held", "release": "released", "requeue": "is started again"}[action]
    lines = []
    try:
        names = task_names(store, runs)
    except LmconsoleError as error:
        return [str(error)]
    at_once = False
    if action != "requeue" and len(names) > 1:  # one command for all; a second requeue would be an error
        try:
            control(action, ",".join(names.values()))
            at_once = True
        except SlurmUnreachableError as error:
            return [str(error)]
        except SlurmError:
            pass  # one by one, to name those that it refuses
    for run in runs:
        name = names.get(run.run)
        if name is None:
            lines.append(f"{run.run}: SLURM has no job for it")
            continue
        try:
            if not at_once:
                control(action, name)
            lines.append(f"{run.run}: {done} (job {name})")
        except SlurmError as error:
            lines.append(f"{run.run}: {error.message}")
    return lines
