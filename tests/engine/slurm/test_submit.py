"""Submissions: what happens to runs that SLURM does not get."""

import contextlib
import errno
import json
import shutil
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import submission, write_submission

from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm import last
from lmconsole.engine.slurm import submit as submitting
from lmconsole.engine.slurm.batch import SUBMIT_ELSEWHERE, folder_of, is_being_submitted, read_batch, read_runs
from lmconsole.engine.slurm.commands import SlurmError, submit
from lmconsole.engine.slurm.submit import Submission, submit_resumed
from lmconsole.errors import StoreError
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store


def queue(root: Path, count: int) -> list[Run]:
    """Queue runs, each in a submission of its own."""
    runs = [tiny.queue_tiny(root, seed=number, slurm=submission(number)) for number in range(count)]
    for number, run in enumerate(runs):
        write_submission(root / "runs", submission(number).batch, [run.run])
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
    store = Store(tmp_path / "runs")
    monkeypatch.setattr(submitting, "max_array_size", lambda: 2)
    made = Submission(store, RunRequest(runs=store.root))
    places = [msgspec.structs.replace(made.place, index=index) for index in (0, 2, 3)]
    runs = [tiny.queue_tiny(tmp_path, seed=place.index, slurm=place) for place in places]
    answers = ["12", error]
    last: list[list[str]] = []

    def answer(*_: object, **__: object) -> str:
        given = answers.pop(0)
        if isinstance(given, BaseException):
            raise given
        return str(given)

    monkeypatch.setattr(submitting, "submit", answer)
    monkeypatch.setattr(submitting, "submit_last", lambda *arguments: last.append(arguments[2]))
    names = [runs[0].run, "01-deleted-meanwhile", runs[1].run, runs[2].run]
    with pytest.raises(type(error)), made.open():
        made.submit(names)
    assert statuses(runs) == [Status.QUEUED, Status.FAILED, Status.FAILED]
    assert last == [["12"]]
    assert [read_runs(store.root, made.batch, part) for part in (0, 2)] == [names[:2], names[2:]]  # by their indexes
    content = read_batch(store.root, made.batch)
    assert is_being_submitted(store.root, made.batch, content) is False
    assert json.loads((folder_of(store.root, made.batch) / "jobs.json").read_bytes()) == ["12"]


@pytest.mark.parametrize("error", [None, StoreError("no space left")])
def test_nothing_is_left_of_a_submission_in_which_nothing_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(submitting, "max_array_size", lambda: 2)
    root = tmp_path / "runs"
    made = Submission(Store(root), RunRequest(runs=root))
    raised = pytest.raises(StoreError) if error else contextlib.nullcontext()
    with raised, made.open():
        assert is_being_submitted(root, made.batch, read_batch(root, made.batch))
        if error:
            raise error
    assert list((root / ".slurm").iterdir()) == []


def test_runs_that_a_full_disk_leaves_queued_keep_their_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are queued, and neither their lists nor their failures can be written."""
    monkeypatch.setattr(submitting, "max_array_size", lambda: 2)
    store = Store(tmp_path / "runs")
    made = Submission(store, RunRequest(runs=store.root))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tiny.queue_tiny(tmp_path, slurm=made.place)
    for name in ("write_runs", "write_jobs"):
        monkeypatch.setattr(submitting, name, fail)
    monkeypatch.setattr(Run, "record_end", fail)
    with pytest.raises(StoreError, match="No space left on device"), made.open():
        made.submit([run.run])
    monkeypatch.undo()
    assert statuses([run]) == [Status.QUEUED]
    batch = made.batch
    assert is_being_submitted(store.root, batch, read_batch(store.root, batch)) is False
    monkeypatch.setattr(last, "jobs", lambda _: [])
    monkeypatch.setattr(last, "accounting", lambda *_: {})
    monkeypatch.setattr(last, "CONFIRM_S", 0.0)
    assert last.conclude(store, batch, lambda _: None)
    assert statuses([run]) == [Status.FAILED]
    assert run.state.failed is not None
    assert run.state.failed.message == "the command that queued it ended before SLURM had it"
    assert run.state.failed.hint == "`lmconsole run 1` with the same options queues it again."


def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "max_array_size", lambda: 2)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.slurm").touch()
    made = Submission(Store(tmp_path / "runs"), RunRequest(runs=tmp_path / "runs"))
    with pytest.raises(StoreError, match=r"\.slurm/.*: cannot be created: "), made.open():
        pass


def test_a_submission_that_was_not_completed_cannot_be_submitted_again(tmp_path: Path) -> None:
    runs = queue(tmp_path, 2)
    store = Store(tmp_path / "runs")
    shutil.rmtree(folder_of(store.root, submission(1).batch))
    with pytest.raises(StoreError, match="a submission that was not completed"):
        submit_resumed(store, [runs[0].run])  # its scripts were never written
    with pytest.raises(StoreError, match="no such submission to SLURM"):
        submit_resumed(store, [runs[1].run])
    assert statuses(runs) == [Status.FAILED, Status.FAILED]
    for run in runs:
        assert run.state.failed is not None
        assert run.state.failed.hint == SUBMIT_ELSEWHERE
        assert "SLURM did not accept" not in run.state.failed.message
