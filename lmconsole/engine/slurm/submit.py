"""Submission of runs to SLURM: one job array, cut where SLURM's limit requires it, and a last job."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence

from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.ask import slurm_options
from lmconsole.engine.slurm.batch import (
    SUBMIT_ELSEWHERE,
    Batch,
    array_file,
    cut,
    folder_of,
    is_complete,
    last_file,
    new_batch_id,
    read_batch,
    submission_lock,
    user_name,
    write_batch,
    write_jobs,
    write_runs,
    write_script,
)
from lmconsole.engine.slurm.commands import SlurmError, check, max_array_size, submit
from lmconsole.engine.slurm.script import array_script, last_script
from lmconsole.errors import StoreError
from lmconsole.formatting import counted
from lmconsole.runs import lock
from lmconsole.runs.events import Failed, SlurmPlace
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

PATIENCE_S = 120.0
"""Time for which a job is submitted again and again while SLURM's controller does not answer."""


class Submission:
    """A submission of runs to SLURM."""

    def __init__(self, store: Store, request: RunRequest) -> None:
        """Raises SlurmError if SLURM does not answer."""
        self._store = store
        self._options = slurm_options(request)
        self._array_size = max_array_size()
        self._accepted: list[str] = []
        """Jobs of the arrays, as far as they have been submitted."""
        self.batch = new_batch_id()
        self.place = SlurmPlace(batch=self.batch, index=0)
        """Place of the first run."""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Create the folder of the submission, which makes commands on other hosts queue one at a time, and keep others
        from concluding it during the ``with`` block. If nothing was queued in it, the folder is removed. Raises
        StoreError."""
        self._store.create()
        root, folder = self._store.root, folder_of(self._store.root, self.batch)
        content = Batch(
            user=user_name(), host=host_name(), array_size=self._array_size, restarts=self._options.restarts
        )
        held = None
        try:
            try:
                folder.mkdir(parents=True)
                held = lock.acquire(submission_lock(root, self.batch), optional=True)
                write_batch(root, self.batch, content)
            except OSError as error:
                raise StoreError(f"{error.filename or folder}: cannot be created: {error.strerror}") from None
            yield
        finally:
            has_runs = self._may_have_runs()
            if has_runs and not is_complete(root, self.batch):
                with contextlib.suppress(OSError):
                    write_jobs(root, self.batch, self._accepted)
            if held is not None:
                held.release()
            if not has_runs:
                shutil.rmtree(folder, ignore_errors=True)

    def _may_have_runs(self) -> bool:
        with contextlib.suppress(StoreError):
            return bool(self._runs())
        return True

    def _runs(self) -> list[Run]:
        """Return the runs that were queued in this submission. Raises StoreError."""
        return [run for run in self._store.runs() if run.place is not None and run.place.batch == self.batch]

    def scripts(self, count: int) -> list[str]:
        """Return the job scripts for ``count`` runs: the arrays, and the last job."""
        return [script for _, script in self._arrays(count)] + [self._last()]

    def check(self, count: int) -> str:
        """Ask SLURM whether it would accept ``count`` runs, before any is queued, and return what it says.

        Raises SlurmError.
        """
        for script in (self._arrays(count)[-1][1], self._last()):
            answer = check(script, self._options.sbatch)
        return answer

    def _arrays(self, count: int) -> list[tuple[int, str]]:
        """Return index of the first run and script of each array."""
        return [
            (first, array_script(self._options, self._store.root, self.batch, offset=first, count=length))
            for first, length in cut(count, self._array_size)
        ]

    def _last(self) -> str:
        return last_script(self._options, self._store.root, self.batch)

    def submit(self, runs: Sequence[str]) -> None:
        """Submit queued ``runs``, in the order of their indexes. Those that SLURM does not accept, or that an interrupt
        leaves, are recorded as failed.

        Raises:
            SlurmError: SLURM did not accept all of them.
            StoreError: the store cannot be written.
        """
        known = {run.run: run for run in self._store.runs()}
        accepted, done = self._accepted, 0

        def record(error: SlurmError | StoreError) -> None:
            _record_failures([known[name] for name in runs[done:] if name in known], error)

        try:
            arrays = self._arrays(len(runs))
            self._write(runs, arrays)
            for (first, _), (_, length) in zip(arrays, cut(len(runs), self._array_size), strict=True):
                # each array has its own limit of runs at once, so that one has to wait for the other
                waits = [f"--dependency=afterany:{accepted[-1]}"] if self._options.at_once and accepted else []
                script = array_file(self._store.root, self.batch, first)
                accepted.append(submit(script, *waits, limit_s=PATIENCE_S))
                done = first + length
        except SlurmError as error:
            record(error)
            rest = f"SLURM accepted {done:,} of {counted(len(runs), 'run')}: " if done else ""
            raise SlurmError(
                f"{rest}{error.message}",
                hint="The others are recorded as failed. The same command queues them again.",
            ) from None
        except OSError as error:
            problem = StoreError(f"{error.filename or self._store.root}: cannot be written: {error.strerror}")
            record(problem)
            raise problem from None
        except BaseException:
            record(_interrupted())
            raise
        finally:
            if accepted:
                with contextlib.suppress(SlurmError):
                    submit_last(self._store, self.batch, accepted)
                with contextlib.suppress(OSError):
                    write_jobs(self._store.root, self.batch, accepted)

    def _write(self, names: Sequence[str], arrays: Iterable[tuple[int, str]]) -> None:
        """Write lists of runs and job scripts. Raises OSError."""
        root = self._store.root
        for first, script in arrays:
            write_runs(root, self.batch, first, names[first : first + self._array_size])
            write_script(array_file(root, self.batch, first), script)
        write_script(last_file(root, self.batch), self._last())

    def withdraw(self) -> None:
        """Record runs of this submission as failed that were queued before an error, and will not be submitted."""
        with contextlib.suppress(StoreError):
            _record_failures(self._runs(), _interrupted())


def check_submitter(store: Store, names: Iterable[str]) -> None:
    """Raise StoreError if another user has submitted one of these runs: its jobs are found by their user."""
    chosen = set(names)
    for run in store.runs():
        if run.run in chosen and run.place is not None:
            user = read_batch(store.root, run.place.batch).user
            if user != user_name():
                raise StoreError(
                    f"{run.run}: submitted to SLURM by {user}",
                    hint=f"`lmconsole run {run.info.experiment.id} --executor slurm` queues it for you.",
                )


def submit_resumed(store: Store, names: Iterable[str]) -> None:
    """Submit runs again that were queued again in their places of earlier submissions; ignore others.

    Raises:
        SlurmError: SLURM did not accept all of them, which is recorded with the runs.
        StoreError: a submission cannot be read, which is recorded with its runs.
    """
    chosen = set(names)
    by_batch: dict[str, list[Run]] = {}
    for run in store.runs():
        if run.run in chosen and run.place is not None:
            by_batch.setdefault(run.place.batch, []).append(run)
    problems: list[SlurmError | StoreError] = []
    for batch, runs in by_batch.items():
        try:
            content = read_batch(store.root, batch)
            submitted = submit_again(store, batch, content, [run.place.index for run in runs if run.place])
        except (SlurmError, StoreError) as error:
            _record_failures(runs, error)
            problems.append(error)
            continue
        with contextlib.suppress(SlurmError):  # the process that asks SLURM does the work of the last job then
            submit_last(store, batch, submitted)
    if problems:
        raise problems[0]


def _interrupted() -> StoreError:
    return StoreError("the command that queued it was interrupted", hint="The same command queues it again.")


def _record_failures(runs: Iterable[Run], error: SlurmError | StoreError) -> None:
    refused = "SLURM did not accept it: " if isinstance(error, SlurmError) else ""
    hint = error.hint or "Correct that, then run it again."
    failed = Failed(error=error.kind, message=f"{refused}{error.message}", hint=hint)
    for run in runs:
        with contextlib.suppress(OSError, StoreError):
            run.record_end(failed, after=run.state.queued_seq)


def submit_last(store: Store, batch: str, jobs: Iterable[str]) -> str:
    """Submit the last job of a submission, to run when these jobs have ended. Raises SlurmError."""
    waits = [f"--dependency=afterany:{':'.join(jobs)}"]
    return submit(last_file(store.root, batch), *waits, limit_s=PATIENCE_S)


def submit_again(store: Store, batch: str, content: Batch, indexes: Iterable[int]) -> list[str]:
    """Submit runs of a submission again, and return the jobs.

    Raises:
        SlurmError: SLURM does not accept them.
        StoreError: the submission was never completed.
    """
    tasks: dict[int, list[int]] = {}
    for index in sorted(indexes):
        part = content.part_of(index)
        tasks.setdefault(part, []).append(index - part)
    if any(not array_file(store.root, batch, part).exists() for part in tasks):
        raise StoreError(f"{folder_of(store.root, batch)}: a submission that was not completed", hint=SUBMIT_ELSEWHERE)
    return [
        submit(array_file(store.root, batch, part), f"--array={','.join(map(str, each))}", limit_s=PATIENCE_S)
        for part, each in tasks.items()
    ]
