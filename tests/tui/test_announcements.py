"""Notifications about what has changed between two snapshots."""

from collections.abc import Callable

from factories import finished
from tui.stage import Stage, following, wait_for_snapshot

from lmconsole.runs.state import Status
from lmconsole.tui.announcements import Announcer
from lmconsole.tui.snapshot import Snapshot


def announced(announcer: Announcer, snapshot: Snapshot) -> list[tuple[str, str, bool]]:
    """Return title, severity and bell of each announcement."""
    return [(each.title, each.severity, each.bell) for each in announcer.update(snapshot)]


def has_status(run: str, status: Status) -> Callable[[Snapshot], bool]:
    """Return the condition that ``run`` has ``status``."""
    return lambda snapshot: run in snapshot.runs and snapshot.runs[run].status is status


def test_a_message_of_the_runner_is_announced_once_without_control_characters() -> None:
    announcer = Announcer()
    first = Snapshot(number=1, messages=("exports: \x1b[31mred",))
    assert [each.text for each in announcer.update(first)] == ["Exports: \\x1b[31mred"]
    second = Snapshot(number=2, messages=(*first.messages, "exports: 12 files"))
    assert [each.text for each in announcer.update(second)] == ["Exports: 12 files"]


def test_the_end_of_the_last_active_run_is_announced_once(stage: Stage) -> None:
    run, announcer = stage.record(1, "running"), Announcer()
    with following(stage.store.root) as feed:
        running = wait_for_snapshot(feed, has_status(run.run, Status.RUNNING))
        assert announced(announcer, running) == []
        run.end(finished([5.0]))
        ended = wait_for_snapshot(feed, has_status(run.run, Status.FINISHED))
    assert announced(announcer, ended) == [("All runs have ended", "information", True)]
    assert announced(announcer, ended) == []


def test_a_failure_makes_the_announcement_a_warning(stage: Stage) -> None:
    run, announcer = stage.record(1, "running"), Announcer()
    with following(stage.store.root) as feed:
        announcer.update(wait_for_snapshot(feed, has_status(run.run, Status.RUNNING)))
        run.end()
        lost = wait_for_snapshot(feed, has_status(run.run, Status.LOST))
    assert announced(announcer, lost) == [("All runs have ended", "warning", True)]


def test_runs_that_had_ended_before_are_not_announced(stage: Stage) -> None:
    run = stage.record(1)
    with following(stage.store.root) as feed:
        assert announced(Announcer(), wait_for_snapshot(feed, has_status(run.run, Status.FINISHED))) == []
