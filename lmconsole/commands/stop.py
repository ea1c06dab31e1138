"""`lmconsole stop`: ask runs to stop, and wait until their workers have ended."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmconsole.commands.display import label, sentence
from lmconsole.commands.follow import GRACE_S, POLL_S, RUNNER_STARTS
from lmconsole.commands.interrupts import Interrupts
from lmconsole.commands.output import print_json, print_message
from lmconsole.engine.digest import last_result
from lmconsole.engine.processes import last_line
from lmconsole.engine.submit import stop_runs, wake_runner
from lmconsole.errors import ExitCode, LmconsoleError, StoreError
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store


class StopResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as `stop --json` prints it. A run that waited is out of the queue at once; the worker of one in training
    saves a checkpoint first."""

    run: str
    """Id of the run."""
    before: Status
    """Status before the command."""
    status: Status
    """Status when the command ended."""
    stop_requested: bool
    """Whether the run has been asked to stop and has not done so yet."""


def stop(root: Path, names: Sequence[str], *, everything: bool, wait: bool, json: bool) -> ExitCode:
    """Ask the named runs of the store at ``root``, or with ``everything`` all active ones, to stop.

    With ``wait``, return when none of them has a worker any more: 0 if each has stopped or finished, 1 if one has
    failed, 130 after an interrupt, which only ends the waiting.
    """
    store = Store(root)
    if everything:
        runs = [run for run in store.runs() if run.status.active or run.slurm.interrupted]
    elif names:
        runs = [store.find(name) for name in names]
    else:
        raise LmconsoleError("name at least one run, or --all", hint="`lmconsole status` lists the runs.")
    active = {run.run: run for run in runs if run.status.active}
    before = {run.run: run.status for run in runs}
    with Interrupts() as interrupts:
        for line in stop_runs(store, runs) or [f"{store.root}: no active run"]:
            print_message(line)
        interrupts.hold()
        code = _wait(store, dict(active), interrupts) if wait else ExitCode.OK
    if json:
        for run in active.values():
            run.refresh()
        print_json([_result(run, before[run.run]) for run in runs])
    return code


def _result(run: Run, before: Status) -> StopResult:
    requested = run.stop_requested and run.status.active
    return StopResult(run=run.run, before=before, status=run.status, stop_requested=requested)


def _wait(store: Store, waiting: dict[str, Run], interrupts: Interrupts) -> ExitCode:
    """Wait until no run of ``waiting`` is active or has a worker, and say how each ended."""
    code = ExitCode.OK
    keeper = _Runner(store)
    lost_since: dict[str, float] = {}
    while waiting:
        for name, run in list(waiting.items()):
            run.refresh()
            if run.status is Status.LOST:  # its runner may be about to record what happened
                since = lost_since.setdefault(name, time.monotonic())
                ended = time.monotonic() - since > GRACE_S
            else:
                ended = bool(run.problem) or not run.status.active
            if ended and run.worker() is None:
                del waiting[name]
                outcome = run.state.stopped or run.state.failed or run.state.finished
                text = sentence(run, outcome) if outcome else run.problem or "lost: its worker has died"
                print_message(f"{label(run)}  {text}")
                if last_result(run) not in ("stopped", "finished", "diverged"):
                    code = ExitCode.RUN_FAILED
        if interrupts.count:
            print_message("No longer waiting; the runs stop by themselves.")
            return ExitCode.INTERRUPTED
        if any(run.status is Status.QUEUED for run in waiting.values()):
            keeper.ensure()
        time.sleep(POLL_S if waiting else 0.0)
    return code


class _Runner:
    """The runner, which takes queued runs out of the queue. If it has ended, it is started again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._starts = 0
        self._next_s = time.monotonic() + GRACE_S
        """Time from which a missing runner has failed."""

    def ensure(self) -> None:
        """Start a runner if none is at work. Raises StoreError if it has failed several times."""
        if self._store.runner() is not None or time.monotonic() < self._next_s:
            return
        if self._starts == RUNNER_STARTS:
            raise StoreError(
                f"{self._store.root}: the runner fails at once: {last_line(self._store.runner_log)}",
                hint=f"Its output is in {self._store.runner_log}. Queued runs stay queued.",
            )
        self._starts += 1
        self._next_s = time.monotonic() + GRACE_S
        wake_runner(self._store)
