"""The poller: what it saves about the runs of a store, given what SLURM answers, and which submissions have ended."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import (
    append_events,
    finished,
    locked_by_another_process,
    progress,
    queued,
    started,
    submission,
    write_submission,
)

from lmconsole.engine.runner import Runner
from lmconsole.engine.slurm import commands, poll
from lmconsole.engine.slurm.batch import Batch, folder_of, submission_lock, user_name, write_batch
from lmconsole.engine.slurm.commands import SlurmError, SlurmJob, SlurmMissingError, SlurmUnreachableError
from lmconsole.engine.slurm.poll import Poller
from lmconsole.runs.cluster import (
    ClusterStatus,
    StatusReader,
    TaskStatus,
    last_job_key,
    place_key,
    status_file,
    write_status,
)  # fmt: skip
from lmconsole.runs.events import Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

pytestmark = pytest.mark.usefixtures("slurm_installed")

PLACE = submission()
KEY, LAST = place_key(PLACE), last_job_key(PLACE)


def job(state: str = "RUNNING", *, batch: str = PLACE.batch, index: int | None = 0, number: int = 1234) -> SlurmJob:
    return SlurmJob(
        batch=batch, index=index, array_job=str(number), task=index, state=state, reason="", node="n1", number=number
    )


class Slurm:
    """SLURM that gives the next of its answers, and then the last one again."""

    def __init__(self, *answers: list[SlurmJob] | SlurmError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, users: Iterable[str]) -> list[SlurmJob]:
        assert list(users) == [user_name()]
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SlurmError):
            raise answer
        return answer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that trains in a submission of this user."""
    run = tiny.queue_tiny(tmp_path, slurm=PLACE)
    write_submission(run.paths.folder.parent, PLACE.batch, user=user_name())
    append_events(run.paths, started(), progress())
    return run


class Polled:
    """A poller and what it has logged so far."""

    def __init__(self, run: Run, *answers: list[SlurmJob] | SlurmError) -> None:
        self.store = Store(run.paths.folder.parent)
        self.slurm = Slurm(*answers)
        self.lines: list[str] = []
        self.poller = Poller(self.store, self.lines.append, interval_s=0.0, ask=self.slurm)

    def poll(self) -> list[str]:
        return self.poller.poll(self.store.runs())

    def task(self) -> TaskStatus | None:
        """Ask once more, and return what is saved about the run."""
        self.poll()
        return self.places.get(KEY)

    @property
    def places(self) -> dict[str, TaskStatus]:
        reader = StatusReader(self.store.root)
        reader.refresh()
        return reader.status.places if reader.status else {}

    def status(self) -> Status:
        (run, *_) = self.store.runs()
        return run.status


def test_a_job_that_runs_is_saved_with_the_size_of_the_log(run: Run) -> None:
    polled = Polled(run, [job(), job("PENDING", index=None, number=1235)])
    size = run.paths.events.stat().st_size
    assert polled.task() == TaskStatus(job="1234_0", state="RUNNING", node="n1", log_bytes=size)
    assert polled.places[LAST].state == "PENDING"
    assert (polled.status(), polled.slurm.asked) == (Status.RUNNING, 1)


@pytest.mark.parametrize("state", ["NODE_FAIL", "TIMEOUT", "CANCELLED", "FAILED"])
def test_a_job_that_has_ended_leaves_its_run_lost_at_once(run: Run, state: str) -> None:
    polled = Polled(run, [job(state)])
    task = polled.task()
    assert task is not None
    assert (task.state, task.ended) == (state, True)
    assert polled.status() is Status.LOST


@pytest.mark.parametrize("answer", [[], [job("COMPLETED")]])
def test_a_job_is_looked_for_twice_before_it_counts_as_ended(run: Run, answer: list[SlurmJob]) -> None:
    polled = Polled(run, answer)
    seen = [(polled.task(), polled.status()) for _ in range(2)]
    assert [(task and task.ended, status) for task, status in seen] == [(False, Status.RUNNING), (True, Status.LOST)]


def incomplete(run: Run, host: str) -> Path:
    """Let the run be queued in a submission that a command on ``host`` has begun, and return its lock."""
    append_events(run.paths, Stopped(epoch=1, step=1), queued(slurm=PLACE))
    root = run.paths.folder.parent
    (folder_of(root, PLACE.batch) / "jobs.json").unlink()
    write_batch(root, PLACE.batch, Batch(user=user_name(), host=host, array_size=1_000, restarts=1))
    lock = submission_lock(root, PLACE.batch)
    lock.touch()
    return lock


def test_runs_that_a_command_is_about_to_submit_have_not_lost_their_jobs(run: Run) -> None:
    polled = Polled(run, [])
    with locked_by_another_process(incomplete(run, host_name())):
        for _ in range(4):
            assert polled.poll() == []
            assert polled.places[KEY].ended is False
    assert [polled.poll() for _ in range(3)] == [[], [PLACE.batch], []]  # that command was killed
    assert polled.places[KEY].ended


@pytest.mark.parametrize("complete", [True, False])
def test_a_runner_has_work_while_slurm_has_runs_or_is_about_to(run: Run, complete: bool) -> None:
    if not complete:
        incomplete(run, "login2")
    runner = Runner(Store(run.paths.folder.parent))
    assert runner.has_work()
    append_events(run.paths, finished())
    assert Runner(runner.store).has_work() is False


def test_a_command_on_another_host_is_given_time_to_submit_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    incomplete(run, "login2")
    polled = Polled(run, [])
    assert polled.poll() == []
    now_s[0] = poll.SUBMISSION_S - 1
    assert polled.poll() == []
    tiny.queue_tiny(run.paths.folder.parents[1], "gpt1", slurm=msgspec.structs.replace(PLACE, index=1))  # it gets on
    for now_s[0] in (poll.SUBMISSION_S + 1, 2 * poll.SUBMISSION_S - 2):
        assert polled.poll() == []
        assert polled.places[KEY].ended is False
    now_s[0] = 2 * poll.SUBMISSION_S + 2
    assert [polled.poll() for _ in range(3)] == [[], [PLACE.batch], []]


def test_a_poller_that_comes_later_concludes_what_an_earlier_one_left(run: Run) -> None:
    """A command asks SLURM before it queues anything, and concludes nothing."""
    incomplete(run, host_name())
    earlier = Polled(run, [])
    assert [earlier.poll() for _ in range(2)] == [[], [PLACE.batch]]
    polled = Polled(run, [])
    assert polled.places[KEY].ended
    assert polled.status() is Status.QUEUED
    assert [polled.poll() for _ in range(3)] == [[], [PLACE.batch], []]


def test_a_submission_whose_folder_was_removed_is_not_awaited(run: Run) -> None:
    incomplete(run, "login2")
    polled = Polled(run, [])
    polled.poll()
    shutil.rmtree(folder_of(run.paths.folder.parent, PLACE.batch))
    assert not Polled(run, []).poller.watch(polled.store.runs())
    assert [polled.poll() for _ in range(2)] == [[], []]


def test_a_job_that_was_missing_for_a_moment_starts_counting_again(run: Run) -> None:
    polled = Polled(run, [], [job()], [], [])
    ended = [task.ended for _ in range(4) if (task := polled.task())]
    assert ended == [False, False, False, True]


def test_a_run_that_was_queued_again_has_a_new_job_in_a_moment(run: Run) -> None:
    append_events(run.paths, queued(slurm=msgspec.structs.replace(PLACE, restarts=1)))
    polled = Polled(run, [job("TIMEOUT")])
    ended = [task.ended for _ in range(2) if (task := polled.task())]
    assert ended == [False, True]


def test_a_forgotten_job_keeps_the_state_in_which_it_ended(run: Run) -> None:
    polled = Polled(run, [job("NODE_FAIL")], [])
    polled.poll()
    task = polled.task()
    assert task is not None
    assert (task.job, task.state, task.node, task.ended) == ("1234_0", "NODE_FAIL", "n1", True)
    append_events(run.paths, progress())  # it is alive again
    running = Polled(run, [job()], [])
    running.poll()
    task = running.task()
    assert task is not None
    assert (task.job, task.state, task.ended) == ("1234_0", "", False)  # how it ended is not known


def test_a_log_that_grows_has_a_writer(run: Run) -> None:
    polled = Polled(run, [job("NODE_FAIL")])
    ask = polled.slurm.__call__

    def grow(users: Iterable[str]) -> list[SlurmJob]:
        append_events(run.paths, progress())
        return ask(users)

    polled.poller.ask = grow
    task = polled.task()
    assert task is not None
    assert not task.ended
    assert polled.status() is Status.RUNNING


def test_a_submission_is_returned_once_when_it_has_had_no_job_for_some_time(run: Run) -> None:
    last = job("PENDING", index=None, number=1235)
    polled = Polled(run, [last], [], [last], [])
    append_events(run.paths, Stopped(epoch=1, step=8, signal="SIGTERM"))
    assert [polled.poll() for _ in range(5)] == [[], [], [], [], [PLACE.batch]]
    append_events(run.paths, finished())
    assert polled.poll() == []
    assert not polled.poller.watch(polled.store.runs())


def test_a_host_without_slurm_does_not_ask_again(run: Run) -> None:
    polled = Polled(run, SlurmMissingError("squeue: no such program"))
    assert [polled.poll() for _ in range(3)] == [[], [], []]
    assert (polled.slurm.asked, polled.lines, polled.places) == (1, [], {})
    assert not status_file(polled.store.root).exists()


def test_slurm_that_does_not_answer_leaves_what_was_known(run: Run) -> None:
    silent = SlurmUnreachableError("Unable to contact slurm controller")
    polled = Polled(run, [job()], silent, silent, [job()])
    before = polled.task()
    for _ in range(2):
        assert polled.task() == before
        reader = StatusReader(polled.store.root)
        reader.refresh()
        assert reader.status is not None
        assert reader.status.problem == polled.poller.problem == "Unable to contact slurm controller"
    assert polled.lines == ["SLURM does not answer: Unable to contact slurm controller"]
    assert polled.task() == before
    assert polled.poller.problem == ""
    assert polled.poller.watch(polled.store.runs())


def test_nobody_waits_for_slurm_that_does_not_answer_once_no_run_is_active(run: Run) -> None:
    polled = Polled(run, [job()], SlurmUnreachableError("timed out"))
    polled.poll()
    append_events(run.paths, finished())
    assert polled.poller.watch(polled.store.runs())  # for the last job
    assert polled.poll() == []
    assert not polled.poller.watch(polled.store.runs())


def test_runs_of_other_users_and_what_their_pollers_have_saved_are_left_alone(run: Run, tmp_path: Path) -> None:
    theirs, gone = submission(1), submission(2)
    other = tiny.queue_tiny(tmp_path, slurm=theirs, fresh=True)
    write_submission(run.paths.folder.parent, theirs.batch, user=f"not-{user_name()}")
    known = TaskStatus(job="77_0", state="RUNNING")
    earlier = {place_key(theirs): known, last_job_key(theirs): known, place_key(gone): known}
    write_status(other.paths.folder.parent, ClusterStatus(t="2026-11-27T11:41:07.000Z", places=earlier))
    polled = Polled(run, [job()])
    polled.poll()
    assert polled.places.keys() == {KEY, place_key(theirs), last_job_key(theirs)}
    assert polled.places[place_key(theirs)] == known
    append_events(run.paths, finished())
    append_events(other.paths, started())
    fresh = Poller(polled.store, polled.lines.append, ask=polled.slurm)
    assert not fresh.watch(polled.store.runs())


def test_a_run_of_a_submission_that_is_being_written_is_not_asked_about(run: Run) -> None:
    path = folder_of(run.paths.folder.parent, PLACE.batch) / "batch.json"
    content = path.read_bytes()
    path.unlink()
    polled = Polled(run, [job()])
    assert (polled.poll(), polled.slurm.asked) == ([], 0)
    path.write_bytes(content)
    polled.poll()
    assert polled.slurm.asked == 1


def test_slurm_is_asked_at_intervals_and_earlier_about_a_run_that_a_signal_has_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    polled = Polled(run, [job()])
    polled.poller.interval_s = poll.POLL_S

    def asked_in(seconds: float) -> int:
        clock[0] += seconds
        polled.poll()
        return polled.slurm.asked

    assert [asked_in(each) for each in (0.0, 19.0, 1.0, 6.0)] == [1, 1, 2, 2]
    append_events(run.paths, Stopped(epoch=1, step=8, signal="SIGTERM"))
    assert [asked_in(each) for each in (0.0, 4.0)] == [3, 3]  # 6 s after the last time


# What squeue prints

BATCH = PLACE.batch
LINE = f"lmconsole-{BATCH}.1000|1234|17|PENDING|Priority||1300"


def test_a_line_of_squeue_is_read() -> None:
    task = commands._parse(LINE)
    assert task == SlurmJob(
        batch=BATCH, index=1017, array_job="1234", task=17, state="PENDING", reason="Priority", node="", number=1300
    )
    assert (task.name, task.is_live) == ("1234_17", True)
    last = commands._parse(f"lmconsole-{BATCH}.last|1235|N/A|RUNNING|None|n1|1235 ")
    assert last == SlurmJob(
        batch=BATCH, index=None, array_job="1235", task=None, state="RUNNING", reason="", node="n1", number=1235
    )
    assert last.name == "1235"
    again = commands._parse(f"lmconsole-{BATCH}.0|N/A|N/A|COMPLETED|None|n1|x")
    assert again is not None
    assert (again.index, again.number, again.is_live) == (None, 0, False)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "bash|1234|N/A|RUNNING|None|n1|1234",
        f"x{LINE}",
        LINE.replace(".1000", ".1000|x"),
        LINE.replace(".1000", ".probe"),
        LINE.replace(".1000", ".-1"),
        LINE.replace(BATCH, "2026"),
        LINE.replace(BATCH, "../../etc"),
        f"{LINE}|more",
        LINE.rpartition("|")[0],
        "a | b|lmconsole|1|2|RUNNING|None|n1",
    ],
)
def test_lines_of_other_jobs_are_ignored(line: str) -> None:
    assert commands._parse(line) is None


def test_of_several_jobs_for_one_run_the_live_one_counts_then_the_newest() -> None:
    jobs = [job("RUNNING", number=5), job("CANCELLED", number=9), job("TIMEOUT", number=4), job(index=None, number=99)]
    assert commands.tasks_by_place(jobs)[BATCH, 0].number == 5
    assert commands.tasks_by_place(jobs[1:])[BATCH, 0].number == 9
    assert commands.tasks_by_place(reversed(jobs))[BATCH, 0].number == 5
