"""Tasks of a job array: which runs they train, what they claim and queue again, and how a superseded one ends."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import (
    append_events,
    epoch,
    finished,
    locked_by_another_process,
    progress,
    started,
    submission,
    telemetry,
    write_submission,
)

from lmconsole.engine.queue import requeue
from lmconsole.engine.slurm import task as tasks
from lmconsole.engine.slurm.batch import Batch, folder_of
from lmconsole.engine.slurm.task import Task, attempts_in_vain, begin, too_often, why_not
from lmconsole.engine.worker import EXIT_NOT_TRAINED
from lmconsole.runs import lock
from lmconsole.runs.claim import Claim, Held, last_claim, make_claim
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Event, Failed, Queued, Stopped
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import RunState, Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.host import host_name

PLACE = submission()
CONTENT = Batch(user="me", host="login1", array_size=1_000, restarts=2)
JOB = 1234


def task(restarts: int = 0, job: int = JOB) -> Task:
    """Return the task of the run, started by SLURM ``restarts`` times before."""
    return Task(job=job, name=f"{job}_0", index=0, element=0, part=0, restarts=restarts, node="n1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was submitted to SLURM, and that no task has claimed yet."""
    return tiny.queue_tiny(tmp_path, slurm=PLACE)


def store_of(run: Run) -> Store:
    return Store(run.paths.folder.parent)


def start(run: Run, task: Task) -> Held | None:
    """Let a task begin, as a process that has read nothing before."""
    opened = store_of(run).open(run.run)
    assert opened is not None
    return begin(store_of(run), opened, CONTENT, PLACE, task)


def claims(run: Run) -> list[tuple[int, int]]:
    """Return job and restarts of each claim."""
    made = sorted(run.paths.folder.glob("claim-*.json"))
    decoded = [msgspec.json.decode(path.read_bytes(), type=Claim) for path in made]
    return [(each.job, each.restarts) for each in decoded]


def events(run: Run) -> Sequence[Event]:
    return EventReader(run.paths.events).read_new()


def permitted(run: Run) -> bool:
    """Return whether the user permits to start the run as it was last queued."""
    run.refresh()
    return Permissions(store_of(run).root).read(run) is not None


# why_not()

BY_PERSON, BY_SIGNAL = Stopped(epoch=1, step=8), Stopped(epoch=1, step=8, signal="SIGUSR1")
BEGUN = (started(), progress())
MINE, OTHER = (JOB, 0), (99, 0)


@pytest.mark.parametrize(
    ("more", "claim", "restarts", "reason"),
    [
        # more events of the log, job and restarts of the last claim, restarts of the task
        ((), None, 0, None),
        ((), MINE, 0, "another process has claimed it"),
        ((), MINE, 1, None),
        ((), OTHER, 5, "another process has claimed it"),
        ((), (0, 0), 0, "another process has claimed it"),
        (BEGUN, MINE, 1, None),
        (BEGUN, MINE, 0, "this job has had it"),
        (BEGUN, OTHER, 1, "another job has it"),
        (BEGUN, None, 1, "another job has it"),
        ((*BEGUN, BY_SIGNAL), MINE, 1, None),
        ((*BEGUN, BY_SIGNAL), MINE, 0, "this job has had it"),
        ((*BEGUN, BY_SIGNAL), OTHER, 1, "another job has it"),
        ((*BEGUN, BY_PERSON), MINE, 1, "it was stopped"),
        ((*BEGUN, too_often(2)), MINE, 1, None),
        ((*BEGUN, too_often(2)), OTHER, 1, "another job has it"),
        ((*BEGUN, finished()), MINE, 1, "it has finished"),
    ],
)
def test_a_run_is_for_the_task_that_may_go_on_with_it(
    run: Run, more: Sequence[Event], claim: tuple[int, int] | None, restarts: int, reason: str | None
) -> None:
    if claim is not None:
        make_claim(run.paths, 0, queued_seq=run.state.queued_seq, job=claim[0], restarts=claim[1])
    append_events(run.paths, *more)
    run.refresh()
    assert why_not(run, PLACE, task(restarts), last_claim(run.paths)[1]) == reason


def test_a_run_that_was_queued_elsewhere_is_not_for_the_task(run: Run) -> None:
    for place in (submission(1), msgspec.structs.replace(PLACE, index=1)):
        assert why_not(run, place, task(), None) == "it was queued again elsewhere"
    append_events(run.paths, Queued(devices=("cpu",), jobs=1))
    run.refresh()
    assert why_not(run, PLACE, task(), None) == "it was queued again elsewhere"


def test_a_run_that_is_asked_to_stop_is_not_for_the_task(run: Run) -> None:
    run.request_stop()
    assert why_not(run, PLACE, task(), None) == "it was stopped"
    append_events(run.paths, *BEGUN, BY_SIGNAL)
    run.refresh()
    assert why_not(run, PLACE, task(), None) == "it was stopped"


def test_a_run_whose_claim_is_damaged_is_for_a_task_only_while_it_is_queued(run: Run) -> None:
    run.paths.claim(3).write_bytes(b"{")
    held = start(run, task())
    assert held is not None
    assert held.number == 4
    run.paths.claim(5).write_bytes(b"{")
    append_events(run.paths, *BEGUN)
    assert start(run, task(1)) is None
    assert not run.paths.claim(6).exists()


# begin()


def test_the_first_start_claims_the_run_and_writes_nothing(run: Run) -> None:
    before = run.paths.events.read_bytes()
    held = start(run, task())
    assert held is not None
    assert (held.claim.job, held.claim.restarts, held.claim.node) == (JOB, 0, "n1")
    assert held.claim.queued_seq == run.state.queued_seq
    assert run.paths.events.read_bytes() == before
    assert not held.superseded


def test_a_second_job_for_a_run_trains_nothing(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(run, task()) is not None
    assert start(run, task(job=99)) is None
    assert f"{run.run}: another process has claimed it" in capfd.readouterr().out
    append_events(run.paths, *BEGUN)
    assert start(run, task(job=99)) is None
    assert claims(run) == [(JOB, 0)]


def test_a_run_that_nobody_permitted_is_not_claimed(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    Permissions(store_of(run).root).forget(run.run)
    assert start(run, task()) is None
    assert "you have not permitted to start it" in capfd.readouterr().out
    assert claims(run) == []


def test_a_task_that_starts_again_queues_its_run_again_and_passes_the_permission_on(run: Run) -> None:
    for restarts in range(4):
        held = start(run, task(restarts))
        assert held is not None
        assert permitted(run)
        append_events(run.paths, *BEGUN, *([BY_SIGNAL] if restarts % 2 else []))
    queued = [event for event in events(run) if isinstance(event, Queued)]
    assert [event.slurm for event in queued] == [msgspec.structs.replace(PLACE, restarts=n) for n in range(4)]
    assert len({event.place for event in queued}) == 1
    assert claims(run) == [(JOB, n) for n in range(4)]
    assert len([each for each in Permissions(store_of(run).root).saved() if each.run == run.run]) == 1


def test_a_second_job_does_not_take_a_run_that_a_task_has_just_queued_again(run: Run) -> None:
    assert start(run, task()) is not None
    append_events(run.paths, *BEGUN)
    held = start(run, task(1))
    assert held is not None
    assert run.refresh()
    assert run.status is Status.QUEUED  # its worker imports PyTorch
    assert start(run, task(job=99)) is None
    assert not held.superseded
    assert start(run, task(2)) is not None  # it died there, and SLURM has started it again


def test_a_task_takes_a_run_that_a_command_has_queued_again(run: Run) -> None:
    old = start(run, task())
    assert old is not None
    append_events(run.paths, *BEGUN, BY_PERSON)
    assert requeue(store_of(run), [run.run]) == [run.run]
    assert old.superseded
    held = start(run, task(job=99))
    assert held is not None
    assert [job for job, _ in claims(run)] == [JOB, 0, 99]


def test_a_run_that_does_not_get_on_is_not_started_for_ever(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    starts = []
    for restarts in range(CONTENT.restarts + 3):
        starts.append(start(run, task(restarts)) is not None)
        append_events(run.paths, started())
    assert starts == [True] * (CONTENT.restarts + 1) + [False, False]
    failed = [event for event in events(run) if isinstance(event, Failed)]
    assert {event.error for event in failed} == {"restarts"}
    assert "3 times in a row" in failed[0].message
    assert failed[0].message in capfd.readouterr().out


def test_only_attempts_count_that_saved_nothing_since_a_person_queued_the_run(run: Run) -> None:
    def again(restarts: int) -> Queued:
        assert run.state.queued is not None
        slurm = msgspec.structs.replace(PLACE, restarts=restarts)
        return msgspec.structs.replace(run.state.queued, slurm=slurm)

    seen = [attempts_in_vain(run.paths)]
    for event in (
        started(), again(1), started(), again(2), started(), progress(step=1), BY_SIGNAL, again(3), started(), again(4),
        telemetry(), again(0), started(), again(1), epoch(), again(2),
    ):  # fmt: skip
        append_events(run.paths, event)
        seen.append(attempts_in_vain(run.paths))
    assert seen == [1, 1, 2, 2, 3, 3, 3, 0, 1, 1, 2, 2, 1, 1, 2, 0, 1]
    append_events(run.paths, Queued(devices=("cpu",), jobs=1))  # on this machine
    assert attempts_in_vain(run.paths) == 1


@pytest.mark.parametrize("what", ["stopped", "queued here"])
def test_a_task_whose_run_was_claimed_while_it_waited_for_the_earlier_attempt_writes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    assert start(run, task()) is not None
    append_events(run.paths, *BEGUN)
    wanted: list[Event] = [BY_PERSON] if what == "stopped" else [BY_PERSON, Queued(devices=("cpu",), jobs=1)]

    def wait(*_: object) -> bool:
        number, last = last_claim(run.paths)
        assert (number, last and last.restarts) == (2, 1)
        assert make_claim(run.paths, number, queued_seq=run.state.queued_seq) is not None
        append_events(run.paths, *wanted)
        return True

    monkeypatch.setattr(tasks, "_earlier_attempt_has_ended", wait)
    assert start(run, task(1)) is None
    assert "another process has claimed it" in capfd.readouterr().out
    assert [type(event) for event in events(run)][-len(wanted) :] == [type(event) for event in wanted]


def test_a_claim_that_another_process_makes_first_ends_the_task(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object) -> object:
        make_claim(run.paths, 0, queued_seq=run.state.queued_seq, job=99)
        return find(*arguments)

    find: Callable[..., object] = Permissions.read
    monkeypatch.setattr(Permissions, "read", read)
    assert start(run, task()) is None
    assert claims(run) == [(99, 0)]


# _earlier_attempt_has_ended()


def test_an_earlier_attempt_here_holds_its_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "LOCK_TIMEOUT_S", 0.2)
    held = make_claim(run.paths, 0, queued_seq=1, job=JOB)
    assert held is not None
    append_events(run.paths, *BEGUN)
    assert tasks._earlier_attempt_has_ended(run.paths, held.claim)
    with locked_by_another_process(run.paths.lock):
        assert not tasks._earlier_attempt_has_ended(run.paths, held.claim)
        assert not tasks._earlier_attempt_has_ended(run.paths, None)
        before = run.paths.events.read_bytes()
        assert start(run, task(1)) is None
        assert run.paths.events.read_bytes() == before


def test_an_earlier_attempt_elsewhere_is_over_when_its_log_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    grows = [2, 5]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if grows and clock[0] - 1000.0 >= grows[0]:
            del grows[0]
            append_events(run.paths, telemetry())

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(tasks, "QUIET_S", 4.0)
    held = make_claim(run.paths, 0, queued_seq=1, job=JOB)
    assert held is not None
    elsewhere = msgspec.structs.replace(held.claim, host=f"not-{host_name()}")
    append_events(run.paths, *BEGUN)
    assert tasks._earlier_attempt_has_ended(run.paths, elsewhere)
    assert clock[0] == 1009.0  # it grew after 2 s and 5 s
    append_events(run.paths, BY_SIGNAL)
    assert tasks._earlier_attempt_has_ended(run.paths, elsewhere)
    assert clock[0] == 1009.0  # it has recorded its end


# main()


@pytest.fixture
def in_task(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": str(JOB), "SLURM_ARRAY_JOB_ID": str(JOB)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lmconsole.engine.stop_signals.collect", list)
    monkeypatch.setattr(tasks, "_train", lambda *_: pytest.fail("it trains"))


@pytest.mark.usefixtures("in_task")
def test_a_task_without_a_run_ends_with_a_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = store_of(run).root
    write_submission(root, PLACE.batch, ["01-gone"])
    arguments = [str(root), PLACE.batch, "0"]
    assert tasks.main(arguments) == 0
    assert capfd.readouterr().out == "01-gone: no longer in the store\n"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert tasks.main(arguments) == 0
    assert capfd.readouterr().out == f"{PLACE.batch}: no run has the index 7\n"
    for name in ("array-0.json", "batch.json"):
        path = folder_of(store_of(run).root, PLACE.batch) / name
        for content in (b"{", None):
            path.unlink() if content is None else path.write_bytes(content)
            assert tasks.main(arguments) == 1
            assert str(path.parent) in capfd.readouterr().out


@pytest.mark.usefixtures("in_task")
def test_a_disk_that_is_full_ends_a_task_with_a_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = store_of(run).root
    write_submission(root, PLACE.batch, [run.run])

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "worker.log")

    monkeypatch.setattr(tasks, "_train", fail)
    assert tasks.main([str(root), PLACE.batch, "0"]) == 1
    assert capfd.readouterr() == ("[Errno 28] No space left on device: 'worker.log'\n", "")


# A worker that is superseded

SUPERSEDED = """
import sys
from pathlib import Path
from lmconsole.engine import worker
from lmconsole.runs.claim import make_claim
from lmconsole.runs.event_log import EventLog
from lmconsole.runs.events import Progress, Queued
from lmconsole.runs.paths import RunPaths

paths = RunPaths(Path(sys.argv[1]))
held = make_claim(paths, 0, queued_seq=1, job=1234)
append = EventLog.append

def then_claim(log, event, **more):
    done = append(log, event, **more)
    if isinstance(event, Progress) and not held.superseded:
        assert make_claim(paths, 1, queued_seq=1, job=99) is not None
        if sys.argv[2] == "queued":
            append(EventLog(paths.events), Queued(devices=("cpu",), jobs=1))
            (paths.folder / "log").write_bytes(paths.events.read_bytes())
    return done

EventLog.append = then_claim
sys.exit(worker.main([sys.argv[1], "--device", "cpu"], task=worker.SlurmTask(job="1234_0", node="n1", claim=held)))
"""


@pytest.mark.parametrize("next_process", ["claimed", "queued"])
def test_a_superseded_worker_ends_and_records_no_end(tmp_path: Path, next_process: str) -> None:
    run = tiny.queue_tiny(tmp_path, slurm=PLACE, epochs=100_000)
    done = tiny.run_code(SUPERSEDED, str(run.paths.folder), next_process, root=tmp_path)
    assert done.returncode == EXIT_NOT_TRAINED, (done.stdout, done.stderr)
    assert "Another process has taken over this run" in done.stdout
    assert "Traceback" not in done.stderr
    state = RunState()
    state.read(EventReader(run.paths.events))
    assert state.latest is not None
    assert (state.latest.slurm_job, state.latest.slurm_node) == ("1234_0", "n1")
    assert not state.log_damaged
    if next_process == "queued":
        assert state.status is Status.QUEUED
        assert run.paths.events.read_bytes() == (run.paths.folder / "log").read_bytes()
    else:
        assert state.status is Status.RUNNING
    assert lock.owner(run.paths.lock) is None
