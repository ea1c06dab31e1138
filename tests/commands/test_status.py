"""Runs in the table and in JSON output of `status`."""

from collections.abc import Callable
from pathlib import Path

import factories
import msgspec
import pytest
import tiny
from recorded import record

from lmconsole.commands.display import PlainDisplay, active_table, sentence
from lmconsole.commands.output import console
from lmconsole.commands.status import show_status, summarize
from lmconsole.runs.cluster import StatusReader, TaskStatus
from lmconsole.runs.events import Event, Queued, Stopped
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store

pytestmark = pytest.mark.usefixtures("slurm_installed")


@pytest.mark.parametrize("energy_j", [None, 9_000.5])
def test_a_finished_run_has_the_joules_of_its_board(tmp_path: Path, energy_j: float | None) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)], device="cuda:0", energy_j=energy_j)
    run.refresh()
    assert summarize(run).energy_j == energy_j


def test_an_unfinished_run_has_none_yet(tmp_path: Path) -> None:
    run = record(tmp_path, 1, "lstm", [(5.0, 4.5)], device="cuda:0", finish=False, energy_j=9_000.5)
    run.refresh()
    assert summarize(run).energy_j is None


STARTED = factories.started(slurm_job="7_0", slurm_node="n1")
PENDING = TaskStatus(job="7_0", state="PENDING", reason="Priority")
CANCELLED = TaskStatus(job="7_0", state="CANCELLED", ended=True)


@pytest.fixture
def submitted(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that queues a run on SLURM, with more events in its log."""

    def submit(number: int, *events: Event) -> Run:
        run = tiny.queue_tiny(tmp_path, number=number, slurm=factories.submission(number))
        factories.append_events(run.paths, *events)
        return run

    return submit


def answer(root: Path, *tasks: TaskStatus, problem: str = "") -> list[Run]:
    """Save what SLURM says about the first runs, and return all runs of the store."""
    factories.write_answer(root / "runs", dict(enumerate(tasks, 1)), problem=problem)
    return Store(root / "runs").runs()


def test_the_table_says_where_runs_train_on_slurm_and_why_others_wait(
    tmp_path: Path, submitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(1)
    submitted(2, STARTED, factories.progress())
    submitted(3)
    submitted(4)
    submitted(5, STARTED, factories.epoch(), factories.finished())
    answer(
        tmp_path,
        PENDING,
        TaskStatus(job="7_1", state="RUNNING", node="n1"),
        TaskStatus(job="7_2", state="PENDING", reason="JobHeldUser"),
        TaskStatus(job="7_3", state="PENDING", reason="JobArrayTaskLimit"),
    )
    monkeypatch.setenv("COLUMNS", "160")
    show_status(tmp_path / "runs", json=False)
    printed = capsys.readouterr()
    states = [line[42:].strip() for line in printed.out.splitlines()[2:]]
    assert [state.partition("  ")[0] for state in states] == [
        "queued, other jobs have priority",
        "epoch 1/2 on n1 (7_0)",
        "queued, held",
        "queued, as many train as at_once allows",
        "finished",
    ]
    assert (
        "4 on SLURM: 1 running, 1 waits (as many train as at_once allows), 1 waits (held), 1 waits (other jobs have "
        "priority). SLURM was asked at 2999-01-01"
    ) in printed.err

    monkeypatch.setenv("COLUMNS", "80")
    show_status(tmp_path / "runs", json=False)
    assert "queued, other j…" in capsys.readouterr().out


def test_a_run_has_its_job_and_node_in_json_while_it_waits_trains_and_after_its_end(
    tmp_path: Path, submitted: Callable[..., Run]
) -> None:
    submitted(1)
    submitted(2, STARTED, factories.progress())
    submitted(3, STARTED, factories.epoch(), factories.finished())
    tiny.queue_tiny(tmp_path, number=4)
    running = TaskStatus(job="7_1", state="RUNNING", node="n2")
    waits, trains, ended, here = [
        summarize(run).slurm for run in answer(tmp_path, PENDING, running, problem="Connection refused")
    ]
    assert waits
    assert (waits.job, waits.node, waits.state, waits.reason) == ("7_0", None, "PENDING", "Priority")
    assert (waits.description, waits.problem) == ("other jobs have priority", "Connection refused")
    assert trains
    assert (trains.job, trains.node, trains.description) == ("7_1", "n2", None)
    assert ended
    assert (ended.job, ended.node, ended.state, ended.asked) == ("7_0", "n1", None, None)
    assert here is None


def test_slurm_that_does_not_answer_is_named_once_for_all_runs(
    tmp_path: Path, submitted: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(1)
    show_status(tmp_path / "runs", json=False)
    assert "1 on SLURM: 1 waits. SLURM has not been asked yet." in capsys.readouterr().err
    answer(tmp_path, PENDING, problem="Unable to contact slurm controller\x1b[2J")
    show_status(tmp_path / "runs", json=False)
    shown = capsys.readouterr().err
    assert "SLURM does not answer: Unable to contact slurm controller\\x1b[2J. It did at 2999-01-01" in shown


@pytest.mark.parametrize(
    ("last", "task", "interrupted", "status"),
    [
        (Stopped(epoch=1, step=3, signal="SIGUSR1"), None, True, Status.QUEUED),
        (Stopped(epoch=1, step=3, signal="SIGUSR1"), PENDING, True, Status.QUEUED),
        (Stopped(epoch=1, step=3, signal="SIGUSR1"), CANCELLED, False, Status.STOPPED),
        (Stopped(epoch=1, step=3, signal="SIGTERM"), None, False, Status.STOPPED),
        (Stopped(epoch=1, step=3, signal="SIGTERM"), PENDING, True, Status.QUEUED),
        (Stopped(epoch=1, step=3, signal="SIGTERM"), TaskStatus(state="PREEMPTED", ended=True), False, Status.STOPPED),
        (Stopped(epoch=1, step=3, signal="SIGTERM"), CANCELLED, False, Status.STOPPED),
        (Stopped(epoch=1, step=3, signal="SIGTERM"), TaskStatus(ended=True), False, Status.STOPPED),
        (Stopped(epoch=1, step=3), None, False, Status.STOPPED),
        (factories.progress(), PENDING, True, Status.QUEUED),
        (factories.progress(), TaskStatus(state="RUNNING", node="n1"), False, Status.RUNNING),
    ],
)
def test_a_run_that_slurm_starts_again_is_interrupted(
    tmp_path: Path,
    submitted: Callable[..., Run],
    last: Event,
    task: TaskStatus | None,
    interrupted: bool,
    status: Status,
) -> None:
    submitted(1, STARTED, last)
    (run,) = answer(tmp_path, *([task] if task else []))
    assert (run.slurm.interrupted, run.status) == (interrupted, status)
    assert run.active_on_slurm == (status is Status.RUNNING or interrupted)
    by_signal = isinstance(last, Stopped) and last.signal is not None
    assert (run.slurm.stopped, run.slurm.unanswered) == (by_signal, by_signal and task is None)


@pytest.mark.parametrize("signal", ["SIGUSR1", "SIGTERM"])
def test_a_stopped_run_is_stopped_on_a_machine_without_slurm(
    tmp_path: Path, submitted: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    submitted(1, STARTED, Stopped(epoch=1, step=3, signal=signal))
    monkeypatch.setattr(StatusReader, "has_slurm", False)  # the store is a copy, and this machine cannot ask
    (run,) = answer(tmp_path)
    assert (run.status, run.slurm.interrupted, run.slurm.unanswered) == (Status.STOPPED, False, False)
    (run,) = answer(tmp_path, PENDING)  # another host does
    assert (run.status, run.slurm.interrupted) == (Status.QUEUED, True)


def test_an_old_answer_of_slurm_does_not_interrupt_a_run_that_has_begun_since(
    tmp_path: Path, submitted: Callable[..., Run]
) -> None:
    submitted(1, STARTED, factories.progress())
    (run,) = answer(tmp_path, msgspec.structs.replace(PENDING, log_bytes=100))
    assert not run.slurm.interrupted


def test_events_name_node_job_and_what_slurm_does_next(submitted: Callable[..., Run]) -> None:
    run = submitted(1)
    run.refresh()
    warned, ended = Stopped(epoch=1, step=3, signal="SIGUSR1"), Stopped(epoch=1, step=3, signal="SIGTERM")
    again = Queued(devices=("cpu",), jobs=1, slurm=factories.submission(1, restarts=2))
    assert [sentence(run, event) for event in (STARTED, warned, ended, again)] == [
        "started on node n1 (job 7_0), cpu (CPU), fp32",
        "stopped by SIGUSR1 ahead of the time limit in epoch 1, step 3; SLURM starts it again",
        "stopped by SIGTERM in epoch 1, step 3; SLURM may start it again",
        "queued again, as SLURM starts it again (restart 2)",
    ]
    assert run.state.queued
    assert sentence(run, run.state.queued) is None


def test_headless_says_each_reason_once_and_shows_the_node(
    tmp_path: Path, submitted: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(1)
    submitted(2, STARTED, factories.progress())
    display = PlainDisplay()
    running = TaskStatus(job="7_1", state="RUNNING", node="n1")
    runs = answer(tmp_path, PENDING, running)
    display.refresh(runs)
    display.refresh(runs)
    assert capsys.readouterr().err == "2 on SLURM: 1 running, 1 waits (other jobs have priority)\n"
    display.refresh(answer(tmp_path, TaskStatus(job="7_0", state="PENDING", reason="Resources"), running))
    assert capsys.readouterr().err == "2 on SLURM: 1 running, 1 waits for free nodes\n"
    display.refresh(answer(tmp_path, PENDING, running, problem="timed out"))
    assert "SLURM does not answer: timed out. It did at " in capsys.readouterr().err
    out = console()
    with out.capture() as captured:
        out.print(active_table(runs))
    heading, row = captured.get().splitlines()
    assert heading.split()[:2] == ["Node", "Epoch"]
    assert row.split()[:5] == ["2", "LSTM", "1L", "Adam", "n1"]
