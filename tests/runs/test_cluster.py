"""Status of runs in SLURM, from the file of the poller: viewers read it, and it decides whether a run is lost."""

import os
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import append_events, finished, locked_by_another_process, progress, queued, started

from lmconsole.runs.cluster import LIVE, ClusterStatus, StatusReader, TaskStatus, place_key, status_file, write_status
from lmconsole.runs.events import SlurmPlace, Stopped
from lmconsole.runs.permissions import pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

PLACE = SlurmPlace(batch="20261127T114107Z-0ad8eb", index=3)
RUNNING = TaskStatus(job="1234_3", state="RUNNING", node="n1")


def write(store: Path, task: TaskStatus | None = RUNNING, **changes: object) -> None:
    places = {} if task is None else {place_key(PLACE): task}
    status = ClusterStatus(t="2026-11-27T11:41:07.000Z", places=places)
    write_status(store, msgspec.structs.replace(status, **changes))


# StatusReader


@pytest.fixture
def reader(tmp_path: Path) -> StatusReader:
    return StatusReader(tmp_path)


def read(reader: StatusReader, place: SlurmPlace | None = PLACE) -> TaskStatus | None:
    reader.refresh()
    return reader.task(place)


def test_what_the_poller_writes_is_read(reader: StatusReader, tmp_path: Path) -> None:
    task = TaskStatus(job="1234_3", state="PENDING", reason="Priority", node="n1", log_bytes=5)
    write(tmp_path, task, problem="no answer")
    assert read(reader) == task
    assert reader.status is not None
    assert reader.status.problem == "no answer"
    assert os.listdir(tmp_path / ".slurm") == ["status.json"]


def test_without_a_file_nothing_is_known(reader: StatusReader, tmp_path: Path) -> None:
    assert read(reader) is None
    write(tmp_path)
    assert read(reader) == RUNNING
    status_file(tmp_path).unlink()
    assert read(reader) is None
    assert reader.status is None


def test_a_place_is_one_index_of_one_submission(reader: StatusReader, tmp_path: Path) -> None:
    write(tmp_path)
    assert read(reader, None) is None
    assert read(reader, SlurmPlace(batch=PLACE.batch, index=4)) is None
    assert read(reader, SlurmPlace(batch="20261127T114107Z-000000", index=3)) is None
    assert read(reader, SlurmPlace(batch=PLACE.batch, index=3, restarts=2)) == RUNNING


def test_the_file_is_read_again_only_when_it_has_changed(
    reader: StatusReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    first = read(reader)
    assert read(reader) is first
    monkeypatch.setattr("lmconsole.runs.cluster.read_file", lambda *_, **__: pytest.fail("the file is read again"))
    assert read(reader) is first
    monkeypatch.undo()
    write(tmp_path, msgspec.structs.replace(RUNNING, node="n2"))  # the same size, within the clock's resolution
    assert read(reader) == msgspec.structs.replace(RUNNING, node="n2")


DAMAGED = [b"", b"{", b"\xff", b"[]", b'{"t":"x"}', b'{"t":"x","places":{"a":{"state":5}}}', b'{"t":"x","places":[1]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_of_a_damaged_file_nothing_is_known(reader: StatusReader, tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    assert read(reader) == RUNNING
    status_file(tmp_path).write_bytes(content)
    assert read(reader) is None
    write(tmp_path)
    assert read(reader) == RUNNING


def test_a_link_or_a_pipe_in_its_place_is_not_opened(reader: StatusReader, tmp_path: Path) -> None:
    write(tmp_path)
    elsewhere = tmp_path / "elsewhere.json"
    status_file(tmp_path).rename(elsewhere)
    status_file(tmp_path).symlink_to(elsewhere)
    assert read(reader) is None
    status_file(tmp_path).unlink()
    os.mkfifo(status_file(tmp_path))
    assert read(reader) is None


@pytest.mark.parametrize("installed", [True, False])
def test_slurm_is_where_its_commands_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if installed:
        (tmp_path / "squeue").touch(0o755)
    assert StatusReader(tmp_path).has_slurm == installed


def test_answers_are_expected_where_one_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatusReader, "has_slurm", False)
    write(tmp_path)
    reader = StatusReader(tmp_path)
    for _ in range(2):
        reader.refresh()
        assert not reader.expects_answers  # the file may be a copy
    write(tmp_path)
    reader.refresh()
    assert reader.expects_answers


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_a_job_that_waits_or_runs_is_live(state: str) -> None:
    assert state in LIVE
    assert TaskStatus(state=state).is_live


@pytest.mark.parametrize("state", ["", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "NEW"])
def test_a_job_that_has_ended_or_is_unknown_is_not(state: str) -> None:
    assert not TaskStatus(state=state).is_live


# SlurmState


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of SLURM that the log says is running, of which the poller has written nothing yet."""
    name = tiny.queue_tiny(tmp_path).run
    (run,) = Store(tmp_path / "runs").runs()
    assert run.run == name
    append_events(run.paths, queued(slurm=PLACE), started(), progress(step=1))
    run.refresh()
    assert run.place == PLACE
    return run


def end(run: Run, *, log_bytes: int | None = -1, state: str = "NODE_FAIL") -> None:
    """Let the poller write that SLURM has ended the job, by default when the log had its present size."""
    size = run.paths.events.stat().st_size if log_bytes == -1 else log_bytes
    write(run.paths.folder.parent, TaskStatus(job="1234_3", state=state, log_bytes=size, ended=True))
    run.refresh()


def test_a_run_of_slurm_is_alive_as_long_as_nobody_says_that_its_job_has_ended(run: Run) -> None:
    assert (run.status, run.slurm.task) == (Status.RUNNING, None)
    write(run.paths.folder.parent, None)  # the poller has not asked about it
    run.refresh()
    assert (run.status, run.slurm.task) == (Status.RUNNING, None)
    write(run.paths.folder.parent)
    run.refresh()
    assert (run.status, run.slurm.task) == (Status.RUNNING, RUNNING)
    end(run, log_bytes=None)  # the job has ended, but has been looked for only once
    assert run.status is Status.RUNNING
    assert not run.slurm.left


def test_a_run_is_lost_when_its_job_has_ended_and_its_log_no_longer_grows(run: Run) -> None:
    end(run)
    assert run.slurm.left
    assert run.status is Status.LOST
    assert pending(Store(run.paths.folder.parent), [run]) == []


def test_a_run_is_alive_if_its_log_has_grown_since(run: Run) -> None:
    end(run, log_bytes=run.paths.events.stat().st_size - 1)
    assert not run.slurm.left
    assert run.status is Status.RUNNING


def test_a_lost_run_whose_log_grows_is_alive_again(run: Run) -> None:
    end(run)
    seen = [run.status]
    append_events(run.paths, progress(step=2))
    run.refresh()
    assert [*seen, run.status] == [Status.LOST, Status.RUNNING]


@pytest.mark.parametrize("event", [finished(), Stopped(epoch=1, step=1)])
def test_a_run_that_has_recorded_its_end_is_not_left(run: Run, event: msgspec.Struct) -> None:
    append_events(run.paths, event)  # type: ignore[arg-type]
    end(run)
    assert not run.slurm.left
    assert run.slurm.task is None
    assert run.status in (Status.FINISHED, Status.STOPPED)


def test_a_queued_run_whose_job_has_ended_waits_for_nothing(run: Run) -> None:
    append_events(run.paths, Stopped(epoch=1, step=1), queued(slurm=PLACE))
    run.refresh()
    assert pending(Store(run.paths.folder.parent), [run]) == [run]
    end(run, state="CANCELLED")
    assert run.status is Status.QUEUED
    assert run.slurm.left
    assert pending(Store(run.paths.folder.parent), [run]) == []


def test_the_lock_of_a_run_of_slurm_decides_nothing(run: Run) -> None:
    with locked_by_another_process(run.paths.lock):
        assert run.worker() is None
        end(run)
        assert run.status is Status.LOST


def test_the_status_in_slurm_decides_nothing_for_a_run_of_this_machine(run: Run) -> None:
    append_events(run.paths, Stopped(epoch=1, step=1), queued(), started())
    end(run)
    assert (run.place, run.slurm.task) == (None, None)
    seen = [run.status]  # no process holds its lock
    with locked_by_another_process(run.paths.lock):
        run.refresh()
        assert [*seen, run.status] == [Status.LOST, Status.RUNNING]
        assert not run.slurm.left


def test_all_runs_of_a_store_share_one_reader(run: Run, tmp_path: Path) -> None:
    tiny.queue_tiny(tmp_path, "gpt1")
    runs = Store(run.paths.folder.parent).runs()
    assert len(runs) == 2
    assert len({id(each.cluster) for each in runs}) == 1
