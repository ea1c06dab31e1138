"""Submissions: what happens to runs that SLURM does not get."""

from pathlib import Path

import pytest
import tiny
from factories import submission

from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm import submit as submitting
from lmconsole.engine.slurm.batch import Batch, folder_of, read_runs, write_batch
from lmconsole.engine.slurm.commands import SlurmError, submit
from lmconsole.engine.slurm.submit import Submission, submit_resumed
from lmconsole.errors import StoreError
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store


def queue(root: Path, count: int) -> list[Run]:
    """Queue runs, each in a submission of its own."""
    runs = [tiny.queue_tiny(root, seed=number, slurm=submission(number)) for number in range(count)]
    for number, run in enumerate(runs):
        folder_of(root / "runs", submission(number).batch).mkdir(parents=True)
        write_batch(root / "runs", submission(number).batch, Batch(user="me", parts=(0,), restarts=1), {0: [run.run]})
    return runs


def statuses(runs: list[Run]) -> list[Status]:
    for run in runs:
        run.refresh()
    return [run.status for run in runs]


def test_a_submission_that_cannot_be_submitted_again_does_not_hold_up_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = queue(tmp_path, 3)
    store = Store(tmp_path / "runs")
    (folder_of(store.root, submission(0).batch) / "batch.json").write_bytes(b"{")
    monkeypatch.setattr(submitting, "submit_again", lambda *_: ["12"])

    def refuse(*_: object) -> str:
        raise SlurmError("too many jobs")

    monkeypatch.setattr(submitting, "submit_last", refuse)
    with pytest.raises(StoreError, match="not a submission of lmconsole"):
        submit_resumed(store, [run.run for run in runs])
    assert statuses(runs) == [Status.FAILED, Status.QUEUED, Status.QUEUED]


def test_a_script_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "array-0.sh"
    with pytest.raises(SlurmError, match=r"array-0\.sh: cannot be read: No such file"):
        submit(path)
    path.write_bytes(b"\xff")
    with pytest.raises(SlurmError, match=r"array-0\.sh: not UTF-8"):
        submit(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SlurmError("too many jobs")])
def test_runs_that_slurm_did_not_get_are_recorded_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    runs = queue(tmp_path, 3)
    store = Store(tmp_path / "runs")
    answers = ["12", error]
    last: list[list[str]] = []

    def answer(*_: object, **__: object) -> str:
        given = answers.pop(0)
        if isinstance(given, BaseException):
            raise given
        return str(given)

    monkeypatch.setattr(submitting, "submit", answer)
    monkeypatch.setattr(submitting, "max_array_size", lambda: 2)
    monkeypatch.setattr(submitting, "submit_last", lambda *arguments: last.append(arguments[2]))
    made = Submission(store, RunRequest(runs=store.root))
    names = [runs[0].run, "01-deleted-meanwhile", runs[1].run, runs[2].run]
    with pytest.raises(type(error)):
        made.submit(names)
    assert statuses(runs) == [Status.QUEUED, Status.FAILED, Status.FAILED]
    assert last == [["12"]]
    assert [read_runs(store.root, made.batch, part) for part in (0, 2)] == [names[:2], names[2:]]  # by their indexes
