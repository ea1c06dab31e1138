"""The last job: the fate of each run of a submission, from its log and the state of its job."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from factories import append_events, finished, progress, started, submission, write_submission

from lmconsole.engine.slurm import last
from lmconsole.engine.slurm.batch import Batch, task_log
from lmconsole.engine.slurm.commands import SlurmJob
from lmconsole.engine.slurm.last import Fate, conclude, fate_of, look
from lmconsole.runs.events import Event, Failed, Stopped
from lmconsole.runs.permissions import Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

PLACE = submission()
CONTENT = Batch(user="me", host="login1", array_size=1_000, restarts=1)
BEGUN = (started(), progress())
PERSON, WARNED, TERM = (Stopped(epoch=1, step=8, signal=name) for name in (None, "SIGUSR1", "SIGTERM"))
O, W, I, S, F = Fate.OVER, Fate.WAITING, Fate.INTERRUPTED, Fate.STOPPED, Fate.FAILED  # noqa: E741
STATES = ("RUNNING", "PENDING", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "CANCELLED", "FAILED", "COMPLETED", "OUT_OF_MEMORY", "")  # noqa: E501  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = tiny.queue_tiny(tmp_path, slurm=PLACE)
    assert write_submission(run.paths.folder.parent, PLACE.batch, [run.run]) == CONTENT
    return run


def job(state: str) -> SlurmJob:
    return SlurmJob(
        batch=PLACE.batch, index=0, array_job="12", task=0, state=state, reason="", node="n1", number=12
    )  # fmt: skip


@pytest.mark.parametrize(
    ("events", "stop", "fates"),
    [
        ((), False, (W, W, I, I, I, S, F, F, F, F)),
        (BEGUN, False, (W, W, I, I, I, S, F, F, F, F)),
        (BEGUN, True, (W, W, S, S, S, S, S, S, S, S)),
        ((*BEGUN, WARNED), False, (W, W, I, I, I, O, I, I, I, I)),
        ((*BEGUN, WARNED), True, (W, W, O, O, O, O, O, O, O, O)),
        ((*BEGUN, TERM), False, (W, W, I, I, I, O, O, O, O, O)),
        ((*BEGUN, PERSON), False, (O,) * 10),
        ((*BEGUN, Failed(error="crash", message="x", hint="y")), False, (O,) * 10),
        ((*BEGUN, finished()), False, (O,) * 10),
    ],
)
def test_the_fate_of_a_run(run: Run, events: Sequence[Event], stop: bool, fates: Sequence[Fate]) -> None:
    append_events(run.paths, *events)
    if stop:
        run.request_stop()
    run.refresh()
    assert tuple(fate_of(run, job(state) if state else None, state) for state in STATES) == fates


def found(run: Run, monkeypatch: pytest.MonkeyPatch, *jobs: SlurmJob, forgotten: str = "") -> tuple[Fate, str]:
    monkeypatch.setattr(last, "jobs", lambda users: list(jobs) if list(users) == ["me"] else [])
    monkeypatch.setattr(last, "accounting", lambda *_: {0: forgotten} if forgotten else {})
    (finding,) = look(Store(run.paths.folder.parent), PLACE.batch, CONTENT)
    return finding.fate, finding.state


def test_accounting_is_asked_about_a_job_that_slurm_has_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(run, monkeypatch) == (S, "CANCELLED")  # while it waited, since its task has printed nothing
    task_log(run.paths.folder.parent, PLACE, CONTENT).touch()
    assert found(run, monkeypatch) == (F, "")
    append_events(run.paths, *BEGUN)
    assert found(run, monkeypatch) == (F, "")
    assert found(run, monkeypatch, forgotten="NODE_FAIL") == (I, "NODE_FAIL")
    assert found(run, monkeypatch, job("RUNNING"), forgotten="NODE_FAIL") == (W, "RUNNING")


def test_an_interrupted_run_that_may_not_start_again_has_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("submit_last", "submit_again"):
        monkeypatch.setattr(last, name, lambda *_: pytest.fail("a job is submitted"))
    append_events(run.paths, *BEGUN)
    store = Store(run.paths.folder.parent)
    Permissions(store.root).forget(run.run)
    monkeypatch.setattr(last, "jobs", lambda _: [job("NODE_FAIL")])
    lines: list[str] = []
    assert conclude(store, PLACE.batch, lines.append)
    run.refresh()
    assert run.status is Status.FAILED
    assert any("has no permission to start again" in line for line in lines)


def test_the_message_of_a_run_whose_job_ended_is_what_was_printed_last(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_events(run.paths, *BEGUN)
    root = run.paths.folder.parent
    log = task_log(root, PLACE, CONTENT)
    run.paths.worker_log.write_text("Bus error: nonexistent physical address\n")
    monkeypatch.setattr(last, "jobs", lambda _: [job("FAILED")])
    for output, shown in (
        ("module: command not found\n", "module: command not found"),
        (f"output continues in {run.paths.worker_log}\n", "Bus error"),
        (f"output continues in {run.paths.worker_log}\nslurmstepd: error: job killed\n", "slurmstepd: error"),
    ):
        log.write_text(output)
        (finding,) = look(Store(root), PLACE.batch, CONTENT)
        failed = last._failure(finding, Store(root), CONTENT)
        assert f"its job ended: {shown}" in failed.message
        assert (str(run.paths.worker_log) in failed.hint) == (shown == "Bus error")


@pytest.mark.parametrize(
    ("events", "state", "status", "words"),
    [
        ((), "CANCELLED", Status.STOPPED, "cancelled"),
        (BEGUN, "OUT_OF_MEMORY", Status.FAILED, "out of memory"),
        (BEGUN, "FAILED", Status.FAILED, "its job ended"),
        ((*BEGUN, finished()), "COMPLETED", Status.FINISHED, ""),
    ],
)
def test_when_nothing_is_left_ends_are_recorded_and_no_job_is_submitted(
    run: Run, monkeypatch: pytest.MonkeyPatch, events: Sequence[Event], state: str, status: Status, words: str
) -> None:
    for name in ("submit_last", "submit_again"):
        monkeypatch.setattr(last, name, lambda *_: pytest.fail("a job is submitted"))
    append_events(run.paths, *events)
    monkeypatch.setattr(last, "jobs", lambda _: [job(state)])
    lines: list[str] = []
    assert conclude(Store(run.paths.folder.parent), PLACE.batch, lines.append)
    run.refresh()
    assert run.state.status is status
    assert any(words in line for line in lines) or not words
