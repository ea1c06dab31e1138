"""Files are data: what a store says never runs a program, names a folder to write to, or holds up the queue."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import pytest
import tiny
from factories import append_events, wait_until

from lmconsole.engine import processes, submit, worker
from lmconsole.engine.queue import requeue
from lmconsole.engine.runner import Runner
from lmconsole.engine.submit import resume_runs, stop_runs
from lmconsole.errors import StoreError
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Stopped
from lmconsole.runs.permissions import NOT_STARTED, AfterQueue, Permissions, pending
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.runs.trash import discard

pytestmark = pytest.mark.slow

LONG = 100_000
"""Epochs of a run that outlasts the test."""


class Forged:
    """A run folder in which everything that version 0.1.0 believed is forged."""

    def __init__(self, root: Path, *, like: Run | None = None, name: str = "forged", **changes: Any) -> None:
        self.program, self.exports = root / "program-ran", root / "forged-exports"
        source = like or tiny.queue_tiny(root, seed=99)
        self.folder = root / "runs" / name
        shutil.copytree(source.paths.folder, self.folder)
        shutil.rmtree(source.paths.folder)
        event: dict[str, object] = {
            "kind": "queued",
            "seq": 1,
            "t": "2026-01-01T00:00:00.000Z",
            "devices": ["cpu"],
            "jobs": 1,
            "place": 0,
            "exports": str(self.exports),
            "on_finish": [shutil.which("touch"), str(self.program)],
            "cwd": "/",
        }
        (self.folder / "events.jsonl").write_text(json.dumps(event | changes) + "\n")

    def check(self, status: Status | None = None) -> None:
        """Check that nothing in the log was obeyed, and the status of the run."""
        assert not self.program.exists()
        assert not self.exports.exists()
        if status is not None:
            assert self.run().status is status

    def run(self) -> Run:
        (run,) = [run for run in Store(self.folder.parent).runs() if run.run == self.folder.name]
        return run


def cli(root: Path, *arguments: str, check: int | None = 0) -> "subprocess.CompletedProcess[str]":
    return tiny.lmconsole(*arguments, cwd=root, check=check)


IMPATIENT = """
import sys
from lmconsole.commands import follow
follow.GRACE_S = 0.3
from lmconsole.cli import main
main(sys.argv[1:])
"""


def watch(root: Path, run: str) -> str:
    """Follow a run, but not for long if nothing will start it, and return the messages."""
    done = tiny.run_code(IMPATIENT, "watch", run, root=root)
    assert done.returncode == 1, done.stderr
    return done.stderr


def train(root: Path, number: int = 1, *more: str) -> "subprocess.CompletedProcess[str]":
    """Queue the tiny run and follow it, as ``lmconsole run`` does."""
    file = root / "experiments" / f"{number}.toml"
    options = ["--preset", "tiny", "--data", str(root / "data"), "--experiments", str(file), "--headless"]
    done = cli(root, "run", str(number), *options, *more)
    wait_for_runner(root)
    return done


def serve(root: Path) -> int:
    """Run a runner to its end."""
    return tiny.start_runner(root, tiny.NO_FIGURES).wait(120)


def wait_for_runner(root: Path) -> None:
    wait_until(lambda: Store(root / "runs").runner() is None)


def status(run: Run) -> Status:
    run.refresh()
    return run.status


def progressed(run: Run) -> bool:
    run.refresh()
    return bool(run.state.epochs)


def queued_with_program(root: Path, marker: Path, **settings: Any) -> Run:
    """Queue a run whose user asked for a program that adds a line to ``marker``."""
    run = tiny.queue_tiny(root, **settings)
    program = ("/bin/sh", "-c", 'echo ran >>"$0"', str(marker))
    tiny.permit(run, on_finish=program, cwd=str(root))
    return run


def lines(marker: Path) -> int:
    return len(marker.read_text().splitlines()) if marker.exists() else 0


# ---- a forged folder


def test_stop_removes_a_forged_run_from_the_queue_and_runs_nothing(tmp_path: Path) -> None:
    forged = Forged(tmp_path)
    assert "forged: removed from the queue" in cli(tmp_path, "stop", "--all").stderr
    wait_for_runner(tmp_path)
    forged.check(Status.STOPPED)
    assert not (tmp_path / "runs/.runner.log").exists(), "there is nothing for a runner to do"


def test_the_end_of_another_run_does_nothing_that_a_forged_one_says(tmp_path: Path) -> None:
    forged = Forged(tmp_path)
    tiny.queue_tiny(tmp_path)
    assert serve(tmp_path) == 0
    forged.check(Status.QUEUED)


def test_watching_and_listing_a_forged_run_say_why_it_is_not_started(tmp_path: Path) -> None:
    forged = Forged(tmp_path)
    assert watch(tmp_path, "forged").count(NOT_STARTED) == 1
    assert "no active run" in cli(tmp_path, "watch").stderr
    assert f"forged: {NOT_STARTED}" in cli(tmp_path, "status").stderr
    forged.check(Status.QUEUED)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runners that the test starts without a command have no data and caches but the test's."""
    for name, value in tiny.environment(tmp_path).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_resuming_exports_where_the_person_who_resumes_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.fork_children(monkeypatch)
    forged = Forged(tmp_path)
    store = Store(tmp_path / "runs")
    assert resume_runs(store, ["forged"], tmp_path / "mine") == ["forged"]
    wait_until(lambda: forged.run().status is Status.FINISHED)
    wait_for_runner(tmp_path)
    forged.check()
    assert (tmp_path / "mine/report.md").exists()
    assert b"on_finish" not in forged.run().paths.events.read_bytes().splitlines()[1]


def test_running_it_again_exports_where_the_person_who_runs_it_wants_it(tmp_path: Path) -> None:
    forged = Forged(tmp_path, like=tiny.queue_tiny(tmp_path))
    assert "queued to resume" in train(tmp_path).stderr
    forged.check(Status.FINISHED)
    assert (tmp_path / "exports/report.md").exists()
    assert len(Store(tmp_path / "runs").runs()) == 1


def test_a_forged_run_can_be_deleted(tmp_path: Path) -> None:
    forged = Forged(tmp_path)
    assert discard(Store(tmp_path / "runs"), ["forged"]) == ["forged"]
    forged.check()


PLACE: dict[str, Any] = {"place": 2**53}
CHANGES: list[dict[str, Any]] = [
    {"jobs": 0},
    {"jobs": -1},
    {"jobs": 10**30},
    {"jobs": "1"},
    {"devices": []},
    {"devices": ["cpu\n"]},
    {"devices": ["GPU-1; rm -rf ."]},
    {"devices": ["--shared"]},
    {"place": -(10**9)},
    PLACE,
    {"exports": 7, "on_finish": "x", "cwd": [], "place": -(10**9)},
    {},
]


def test_no_run_folder_holds_up_the_queue_or_the_exports(tmp_path: Path) -> None:
    forged = [
        Forged(tmp_path, like=tiny.queue_tiny(tmp_path, seed=100 + number), name=f"forged-{number}", **changes)
        for number, changes in enumerate(CHANGES)
    ]
    run = tiny.queue_tiny(tmp_path)
    tiny.permit(run, exports=str(tmp_path / "exports"))
    assert serve(tmp_path) == 0
    assert status(run) is Status.FINISHED
    assert (tmp_path / "exports/report.md").exists()
    for each, changes in zip(forged, CHANGES, strict=True):
        each.check(Status.QUEUED)
        read = each.run()
        if read.problem:
            refused = f"{read.run}: not in the queue: {read.problem}"
            assert stop_runs(Store(tmp_path / "runs"), [read]) == [refused]
        assert bool(read.problem) is (changes not in ({}, PLACE)), changes
    again = tiny.queue_tiny(tmp_path, seed=3)
    assert again.problem is None, "a forged place in the queue makes no later one invalid"


def test_an_imported_run_whose_end_is_damaged_does_not_hold_the_queue(tmp_path: Path) -> None:
    forged = Forged(tmp_path)
    info = json.loads((forged.folder / "run.json").read_text())
    (forged.folder / "run.json").write_text(json.dumps(info | {"origin": "imported"}))
    tiny.permit(forged.run())
    run = tiny.queue_tiny(tmp_path)
    assert serve(tmp_path) == 0
    assert status(run) is Status.FINISHED
    forged.check()


def test_a_follower_gives_up_a_run_of_its_own_that_lost_its_permission(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    Permissions(tmp_path / "runs").forget(run.run)
    assert NOT_STARTED in watch(tmp_path, run.run)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_the_log_of_the_runner_is_never_another_file(tmp_path: Path, kind: str) -> None:
    tiny.queue_tiny(tmp_path)
    precious, log = tmp_path / "precious", tmp_path / "runs/.runner.log"
    precious.write_text("kept\n")
    if kind == "link":
        log.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(log)
    else:
        log.mkdir()
    with pytest.raises(StoreError, match=r"\.runner\.log: the runner cannot be started: expected a file"):
        processes.start_runner(Store(tmp_path / "runs"))
    assert precious.read_text() == "kept\n"
    assert processes.last_line(log)


# ---- other users


def test_only_runs_of_the_own_user_are_started(
    tmp_path: Path, ordinary_user: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    store = Store(tmp_path / "runs")
    other = tiny.queue_tiny(tmp_path, seed=1)
    (tmp_path / "state").mkdir()
    for path in (store.root, store.queue_lock, tmp_path / "state"):
        path.chmod(0o777)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    started = []

    def finish(run: Run, *_: object) -> Any:  # this Python may be in a folder that only root can open
        started.append(run.run)
        append_events(run.paths, factories.finished())
        return SimpleNamespace(pid=0, exitcode=0)

    monkeypatch.setattr(worker, "start", finish)
    ordinary_user()
    mine = tiny.queue_tiny(tmp_path, seed=2)
    runner = Runner(store)
    runner.serve()
    assert started == [mine.run]
    assert not runner.has_work()
    assert (status(mine), status(other)) == (Status.FINISHED, Status.QUEUED)
    again = tiny.queue_tiny(tmp_path, seed=1)
    assert again.run != other.run, "a run that this user cannot write is left alone"


def test_a_runner_waits_while_that_of_another_user_is_at_work(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    run = tiny.queue_tiny(tmp_path)
    holder = get_context("fork").Process(target=_hold_as_nobody, args=(tmp_path / "runs/.runner.lock",))
    holder.start()
    try:
        wait_until(lambda: Store(tmp_path / "runs").runner() is not None)
        owner = Store(tmp_path / "runs").runner()
        assert owner is not None
        assert (owner.pid, owner.is_own) == (holder.pid, False)
        strange = Run(run.paths, run.info)
        strange.refresh()
        Permissions(tmp_path / "runs").forget(run.run)
        assert pending(Store(tmp_path / "runs"), [strange]), "the other may start it"
        tiny.permit(run)
        runner = tiny.start_runner(tmp_path)
        wait_until(lambda: "another user is at work" in (tmp_path / "output").read_text())
        assert status(run) is Status.QUEUED
    finally:
        holder.kill()
        holder.join()
    assert runner.wait(120) == 0
    assert status(run) is Status.FINISHED


def _hold_as_nobody(path: Path) -> None:
    with path.open("a") as file:
        os.setuid(65534)
        fcntl.lockf(file, fcntl.LOCK_EX)
        signal.pause()


# ---- logout and reboot


def test_a_new_runner_knows_what_was_asked_for_with_the_runs_of_a_killed_one(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    orphan = queued_with_program(tmp_path, marker, epochs=LONG)
    first = tiny.start_runner(tmp_path)
    wait_until(lambda: progressed(orphan))
    first.kill()
    first.wait()
    second = tiny.start_runner(tmp_path)
    wait_until(lambda: Store(tmp_path / "runs").runner() is not None)
    orphan.request_stop()
    assert second.wait(60) == 0
    wait_until(lambda: lines(marker) == 1)
    assert serve(tmp_path) == 0
    assert lines(marker) == 1
    assert Permissions(tmp_path / "runs").saved() == []


def test_a_run_that_ended_without_a_runner_is_remembered(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    orphan = queued_with_program(tmp_path, marker)
    assert tiny.worker(orphan, tmp_path).returncode == 0
    assert lines(marker) == 0
    for _ in range(2):
        assert serve(tmp_path) == 0
    wait_until(lambda: lines(marker) == 1)


def test_a_run_lost_in_a_reboot_keeps_its_permission_until_it_is_resumed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    lost = queued_with_program(tmp_path, marker, epochs=30)
    waiting = tiny.queue_tiny(tmp_path, seed=2)
    runner = tiny.start_runner(tmp_path)
    wait_until(lambda: progressed(lost))
    owner = lost.worker()
    assert owner is not None
    assert owner.pid is not None
    runner.kill()
    runner.wait()
    os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: status(lost) is Status.LOST)
    assert serve(tmp_path) == 0
    assert (status(lost), status(waiting)) == (Status.LOST, Status.FINISHED)
    assert lines(marker) == 0, "the run with which it was asked for has not ended"
    assert requeue(Store(tmp_path / "runs"), [lost.run], AfterQueue(exports=str(tmp_path / "out"))) == [lost.run]
    assert serve(tmp_path) == 0
    assert status(lost) is Status.FINISHED
    wait_until(lambda: lines(marker) == 1)
    assert (tmp_path / "out/report.md").exists()
    assert Permissions(tmp_path / "runs").saved() == []


def test_a_program_is_not_kept_for_the_next_time_once_it_has_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    run = queued_with_program(tmp_path, marker)
    assert stop_runs_without_runner(tmp_path, run)
    assert serve(tmp_path) == 0
    wait_until(lambda: lines(marker) == 1)
    assert requeue(Store(tmp_path / "runs"), [run.run]) == [run.run]
    assert serve(tmp_path) == 0
    assert status(run) is Status.FINISHED
    assert lines(marker) == 1


def stop_runs_without_runner(root: Path, run: Run) -> bool:
    run.request_stop()
    return run.record_end(Stopped(epoch=1, step=0), after=run.state.queued_seq) and root.exists()


def test_permissions_of_deleted_runs_and_of_those_queued_by_someone_else_end_unused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    removed, deleted, taken = (queued_with_program(tmp_path, marker, seed=seed) for seed in range(3))
    shutil.rmtree(removed.paths.folder)
    append_events(deleted.paths, Stopped(epoch=1, step=0))
    discard(Store(tmp_path / "runs"), [deleted.run])
    append_events(taken.paths, Stopped(epoch=1, step=0), *EventReader(taken.paths.events).read_new())
    saved = {permission.run for permission in Permissions(tmp_path / "runs").saved()}
    assert saved == {removed.run, taken.run}
    assert serve(tmp_path) == 0
    assert Permissions(tmp_path / "runs").saved() == []
    assert status(taken) is Status.QUEUED
    assert lines(marker) == 0


def test_stopping_needs_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.queue_tiny(tmp_path)
    Path(os.environ["XDG_STATE_HOME"], "lmconsole").mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "open"))
    (tmp_path / "open/lmconsole").mkdir(parents=True, mode=0o777)
    monkeypatch.setattr(submit, "wake_runner", lambda _: pytest.fail("there is nothing to start"))
    assert stop_runs(Store(tmp_path / "runs"), [run]) == [f"{run.run}: removed from the queue"]
    assert status(run) is Status.STOPPED
