"""The thread that reads the store, also where runs are damaged or block."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import epoch, epoch_events, evaluation, kill_and_wait, progress, queued, started, wait_until
from tui.stage import Recorded, Stage, blocking, driver, following, no_driver, wait_for_snapshot

from lmconsole.files import LineTail
from lmconsole.runs.events import AnyEvent, Queued, Resumed, Stopped
from lmconsole.runs.fold_cache import FoldCache
from lmconsole.runs.permissions import AfterQueue, Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store
from lmconsole.telemetry.gpu import Gpus, GpuSample
from lmconsole.tui.feed import Feed
from lmconsole.tui.snapshot import RunView

PATIENCE_S = 0.3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the feed set aside runs that block it for a third of a second."""
    monkeypatch.setattr("lmconsole.tui.feed.PATIENCE_S", PATIENCE_S)


class Polls:
    """Counts the polls of a feed by the samples of a GPU driver."""

    def __init__(self) -> None:
        self._count = 0

    def driver(self) -> Gpus:
        """Return a driver that counts its samples."""
        gpus = driver(1.0)()
        devices = gpus.devices

        def counted() -> list[GpuSample]:
            self._count += 1
            return devices()

        gpus.devices = counted  # type: ignore[method-assign]
        return gpus

    def wait(self, count: int = 3) -> None:
        """Wait for more polls. All but the last one are complete then."""
        wanted, deadline = self._count + count, time.monotonic() + 10.0
        while self._count < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Polls:
    """Let a feed sample the GPUs in each poll, and count them."""
    monkeypatch.setattr("lmconsole.tui.feed.IDLE_POLL_S", 0.0)
    return Polls()


@contextlib.contextmanager
def hanging() -> Iterator[tuple[threading.Event, list[str]]]:
    """Yield an event for calls to wait for, set at the end of the ``with`` block, and a list to note them in."""
    answer, calls = threading.Event(), list[str]()
    try:
        yield answer, calls
    finally:
        answer.set()


def losses(view: RunView) -> list[float]:
    """Return the losses of the curve."""
    return [round(point.loss_nats, 3) for point in view.curve]


def test_a_store_that_does_not_exist_yet_is_empty(stage: Stage) -> None:
    with following(stage.store.root) as feed:
        assert wait_for_snapshot(feed, lambda now: now).runs == {}
        run = stage.record(3, "queued")
        seen = wait_for_snapshot(feed, lambda now: now.runs).runs[run.run]
        assert (seen.status, seen.info.experiment.id, seen.folder) == (Status.QUEUED, 3, run.paths.folder)


def test_runs_have_their_status_and_are_ordered_by_age(stage: Stage) -> None:
    wanted = ("finished", "running", "queued", "stopped", "failed", "lost")
    runs = [stage.record(number, status) for number, status in enumerate(wanted, 1)]
    with following(stage.store.root) as feed:
        seen = wait_for_snapshot(feed, lambda now: len(now.runs) == len(wanted)).runs
    assert list(seen) == [run.run for run in runs]
    assert [view.status.value for view in seen.values()] == list(wanted)
    first = next(iter(seen.values()))
    assert first.best is not None
    assert (first.best.epoch, len(first.epochs), len(first.curve)) == (4, 4, 8)


def test_unchanged_runs_and_snapshots_are_the_same_objects(stage: Stage, polls: Polls) -> None:
    still, live = stage.record(1), stage.record(2, "running")
    with following(stage.store.root, polls.driver) as feed:
        before = wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        polls.wait()
        assert feed.snapshot is before, "nothing has changed"
        live.append(progress(5, 6, 4.5))
        after = wait_for_snapshot(feed, lambda now: now is not before)
        assert after.runs[still.run] is before.runs[still.run]
        assert after.runs[live.run] is not before.runs[live.run]
        assert after.runs[live.run].position == (5, 6)


def test_a_snapshot_does_not_change_when_the_run_continues(stage: Stage) -> None:
    live = stage.record(2, "running")
    with following(stage.store.root) as feed:
        before = wait_for_snapshot(feed, lambda now: now.runs).runs[live.run]
        live.append(*epoch_events(5, 4.9))
        after = wait_for_snapshot(feed, lambda now: len(now.runs[live.run].epochs) == 5).runs[live.run]
    assert (len(before.epochs), before.position) == (4, (5, 4))
    assert (len(after.epochs), after.position) == (5, (6, 0))


def test_deleted_and_restored_runs_are_followed(stage: Stage) -> None:
    one, two = stage.record(1), stage.record(2)
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        trash = stage.root / "trash"
        one.paths.folder.rename(trash)
        assert list(wait_for_snapshot(feed, lambda now: len(now.runs) == 1).runs) == [two.run]
        trash.rename(one.paths.folder)
        assert list(wait_for_snapshot(feed, lambda now: len(now.runs) == 2).runs) == [one.run, two.run]


def test_a_run_whose_worker_dies_is_lost(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs and now.runs[run.run].status is Status.RUNNING)
        assert run.holder is not None
        kill_and_wait(run.holder)
        wait_for_snapshot(feed, lambda now: now.runs[run.run].status is Status.LOST)


def test_a_run_is_stopping_until_it_has_stopped(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        assert not wait_for_snapshot(feed, lambda now: now.runs).runs[run.run].stopping
        run.paths.stop.touch()
        wait_for_snapshot(feed, lambda now: now.runs[run.run].stopping)
        run.end(Stopped(epoch=5, step=6))
        stopped = wait_for_snapshot(feed, lambda now: now.runs[run.run].status is Status.STOPPED).runs[run.run]
        assert not stopped.stopping


def test_a_queued_run_is_unattended_until_this_user_permits_it(stage: Stage) -> None:
    run = stage.queue(1)
    permissions = Permissions(stage.store.root)
    permissions.forget(run.run)
    with following(stage.store.root) as feed:
        assert wait_for_snapshot(feed, lambda now: now.runs).runs[run.run].unattended
        permissions.grant(run.paths, 1, AfterQueue())
        wait_for_snapshot(feed, lambda now: not now.runs[run.run].unattended)
        run.append(started())
        assert not wait_for_snapshot(feed, lambda now: now.runs[run.run].started).runs[run.run].unattended


@pytest.mark.parametrize("at_once", [True, False], ids=["read at once", "read as it happens"])
def test_points_after_the_checkpoint_of_a_resumption_are_removed(stage: Stage, at_once: bool) -> None:
    run = stage.record(1, "stopped", valid=(6.0,))
    run.append(*(evaluation(1, step, 6.2) for step in (2, 4, 6)))
    assert stage.store.open(run.run) is not None
    again = [
        Queued(devices=("cpu",), jobs=1),
        started(),
        Resumed(epoch=1, step=4),  # from a checkpoint in the middle of the epoch
        evaluation(1, 6, 5.97),
        progress(1, 8, 5.9),
        epoch(1, 5.95),
    ]
    if at_once:
        run.append(*again)
    with following(stage.store.root) as feed:
        if not at_once:
            seen = wait_for_snapshot(feed, lambda now: now.runs).runs[run.run]
            assert losses(seen) == [6.1, 5.7, 5.6]
            run.append(*again)
            feed.request_refresh()
        seen = wait_for_snapshot(feed, lambda now: now.runs and now.runs[run.run].position == (2, 0)).runs[run.run]
    assert losses(seen) == [6.1, 5.9]
    assert [each.valid_loss_nats for each in seen.epochs] == [5.95]
    assert [each.valid_loss_nats for each in seen.validations] == [6.2, 6.2, 5.97, 5.95]


def test_a_run_resumed_twice_between_two_reads_is_read_correctly(stage: Stage) -> None:
    run = stage.record(1, "stopped", valid=(6.0,))
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        run.append(
            Resumed(epoch=2, step=2), progress(2, 6, 5.5), Resumed(epoch=2, step=0), progress(2, 3, 5.8),
            progress(2, 8, 5.0),
        )  # fmt: skip
        feed.request_refresh()
        seen = wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (2, 8)).runs[run.run]
    assert losses(seen) == [6.1, 5.7, 5.8, 5.0]


def test_an_incomplete_line_waits_for_its_end(stage: Stage, polls: Polls) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root, polls.driver) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        with run.paths.events.open("ab") as log:
            log.write(b'{"kind":"progress","seq":99,"t":"","epoch":5,"step":7,"steps":8,"train_loss_nats":4.0,')
            log.flush()
            polls.wait()
            assert feed.snapshot.runs[run.run].position == (5, 4)
            log.write(b'"tokens_per_s":1.0,"elapsed_train_s":20.0}\n')
            log.flush()
            wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (5, 7))


def test_damaged_lines_are_counted_and_the_others_read(stage: Stage) -> None:
    run = stage.record(1, "running")
    with run.paths.events.open("ab") as log:
        log.write(b"\x00\xff damaged\n")
    run.append(progress(5, 6, 4.4))
    with following(stage.store.root) as feed:
        seen = wait_for_snapshot(feed, lambda now: now.runs).runs[run.run]
    assert (len(seen.damage), seen.position) == (1, (5, 6))


def test_a_damaged_line_is_counted_at_once(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        with run.paths.events.open("ab") as log:
            log.write(b"\x00\xff damaged\n")
        wait_for_snapshot(feed, lambda now: now.runs[run.run].damage, seconds=2.0)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"\xff\xfe\x00", b'{"schema": 99}'],
    ids=["empty", "no fields", "not text", "of a later version"],
)
def test_damaged_settings_are_a_problem_of_that_run_alone(stage: Stage, damage: bytes) -> None:
    good, bad = stage.record(1), stage.record(2)
    bad.paths.info.write_bytes(damage)
    with following(stage.store.root) as feed:
        now = wait_for_snapshot(feed, lambda now: now.runs and now.problems)
    assert list(now.runs) == [good.run]
    assert list(now.problems) == [bad.run]
    assert str(bad.paths.info) in now.problems[bad.run]


def test_a_run_whose_log_disappears_keeps_its_values_and_has_a_problem(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        run.paths.events.unlink()
        now = wait_for_snapshot(feed, lambda now: now.problems)
    assert "events.jsonl" in now.problems[run.run]
    assert now.runs[run.run].problem == now.problems[run.run]
    assert len(now.runs[run.run].epochs) == 4


def test_other_folders_are_ignored(stage: Stage) -> None:
    run = stage.record(1)
    (stage.store.root / "notes").mkdir()
    (stage.store.root / "notes.txt").touch()
    (stage.store.root / ".tmp-half-made").mkdir()
    with following(stage.store.root) as feed:
        now = wait_for_snapshot(feed, lambda now: now.runs)
    assert (list(now.runs), now.problems, now.error) == ([run.run], {}, None)


def test_refresh_reads_ended_runs_at_once(stage: Stage) -> None:
    run = stage.record(1, "stopped")
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        run.append(Queued(devices=("cpu",), jobs=1))
        feed.request_refresh()
        wait_for_snapshot(feed, lambda now: now.runs[run.run].status is Status.QUEUED, seconds=1.0)


def test_a_waiting_run_is_read_again_only_when_its_log_has_grown(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmconsole.tui.feed.IDLE_POLL_S", 3_600.0)
    reads: list[str] = []
    refresh = Run.refresh

    def counted(run: Run) -> list[AnyEvent]:
        reads.append(run.run)
        return refresh(run)

    waiting, running = stage.queue(1), stage.record(2, "running")
    monkeypatch.setattr(Run, "refresh", counted)
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        wait_until(lambda: reads.count(running.run) > 3)
        assert reads.count(waiting.run) == 1
        waiting.append(started())
        wait_for_snapshot(feed, lambda now: now.runs[waiting.run].started)


@pytest.mark.parametrize(("cpu_s", "pause_s"), [(0.001, 0.5), (0.05, 1.0), (1.0, 2.0)])
def test_a_store_that_takes_long_to_read_is_read_less_often(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cpu_s: float, pause_s: float
) -> None:
    times_s = iter((0.0, cpu_s))
    monkeypatch.setattr("lmconsole.tui.feed.time.thread_time", lambda: next(times_s))
    feed, pauses = Feed(stage.store.root, open_gpus=no_driver), list[float]()

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        feed.close()
        return False

    monkeypatch.setattr(feed._wake, "wait", pause)
    feed._poll_loop()
    assert pauses == [pytest.approx(pause_s)]


def test_an_unreadable_store_keeps_its_runs(stage: Stage) -> None:
    stage.link_store()
    run = stage.record(1)
    with following(stage.store.root) as feed:
        before = wait_for_snapshot(feed, lambda now: now.runs)
        with stage.unreadable_store():
            now = wait_for_snapshot(feed, lambda now: now.error)
            assert str(stage.store.root) in str(now.error)
            assert now.runs[run.run].epochs == before.runs[run.run].epochs
        now = wait_for_snapshot(feed, lambda now: not now.error)
        assert now.runs[run.run].problem is None


@pytest.mark.usefixtures("impatient")
def test_an_unreadable_store_keeps_a_run_whose_files_block(stage: Stage) -> None:
    stage.link_store()
    stuck, other = stage.record(1, "running"), stage.record(2)
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        with blocking(stuck.paths.lock):
            wait_for_snapshot(feed, lambda now: stuck.run in now.problems)
            with stage.unreadable_store():
                now = wait_for_snapshot(feed, lambda now: now.error)
                assert list(now.runs) == [stuck.run, other.run]


def test_a_stop_request_that_is_no_file_is_a_problem_of_that_run_alone(stage: Stage) -> None:
    bad, good = stage.record(1, "running"), stage.record(2, "running")
    bad.paths.stop.symlink_to("elsewhere")
    with following(stage.store.root) as feed:
        now = wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        assert "stop: expected a file, found something else" in str(now.runs[bad.run].problem)
        good.append(progress(5, 7, 4.4))
        wait_for_snapshot(feed, lambda now: now.runs[good.run].position == (5, 7))
        bad.paths.stop.unlink()
        wait_for_snapshot(feed, lambda now: now.runs[bad.run].problem is None)


def test_an_unexpected_error_of_one_run_is_its_problem_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = stage.record(1, "running"), stage.record(2, "running")
    refresh = Run.refresh

    def broken(run: Run) -> list[AnyEvent]:
        if run.run == bad.run:
            raise KeyError("unexpected")
        return refresh(run)

    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        with monkeypatch.context() as patch:
            patch.setattr(Run, "refresh", broken)
            now = wait_for_snapshot(feed, lambda now: now.problems)
            assert now.error is None
            assert list(now.runs) == [bad.run, good.run]
            assert "KeyError('unexpected')" in now.problems[bad.run]
            good.append(progress(5, 7, 4.4))
            wait_for_snapshot(feed, lambda now: now.runs[good.run].position == (5, 7))
        wait_for_snapshot(feed, lambda now: not now.problems)


def test_an_unexpected_error_is_shown_and_the_thread_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)

        def broken_names(_store: Store) -> set[str]:
            raise KeyError("unexpected")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "names", broken_names)
            now = wait_for_snapshot(feed, lambda now: now.error)
        assert "KeyError('unexpected')" in str(now.error)
        assert list(now.runs) == [run.run]
        run.append(progress(5, 7, 4.4))
        now = wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (5, 7))
        assert now.error is None


@pytest.mark.usefixtures("impatient")
def test_a_store_that_blocks_is_reported_until_it_answers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage.record(1, "running")
    names = Store.names
    with following(stage.store.root) as feed, hanging() as (answer, calls):
        before = wait_for_snapshot(feed, lambda now: now.runs)

        def slow_names(store: Store) -> set[str]:
            calls.append("names")
            answer.wait()
            return names(store)

        monkeypatch.setattr(Store, "names", slow_names)
        now = wait_for_snapshot(feed, lambda now: now.error)
        assert "does not answer" in str(now.error)
        assert now.runs == before.runs
        assert calls == ["names"], "no second thread waits for the store"
        answer.set()
        run.append(progress(5, 7, 4.4))
        now = wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (5, 7))
        assert now.error is None


@pytest.mark.usefixtures("impatient")
def test_a_runner_log_that_blocks_delays_only_its_messages(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage.record(1, "running")
    read_lines = LineTail.read_lines
    with following(stage.store.root) as feed, hanging() as (answer, calls):
        wait_for_snapshot(feed, lambda now: now.runs)

        def slow_lines(tail: LineTail) -> list[str]:
            calls.append("lines")
            answer.wait()
            return read_lines(tail)

        monkeypatch.setattr(LineTail, "read_lines", slow_lines)
        stage.store.runner_log.write_text("exports: 12 files\n")
        run.append(progress(5, 7, 4.4))
        now = wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (5, 7))
        assert (now.messages, now.problems, now.error) == ((), {}, None)
        assert calls == ["lines"]
        answer.set()
        wait_for_snapshot(feed, lambda now: now.messages == ("exports: 12 files",))


@pytest.mark.usefixtures("impatient")
def test_a_read_that_ends_while_it_is_set_aside_is_not_blocked_for_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage.record(1, "running")
    open_run, opened = Store.open, threading.Event()
    with hanging() as (answer, _):

        def slow_open(store: Store, name: str) -> Run | None:
            opened.set()
            answer.wait()
            return open_run(store, name)

        def monotonic() -> float:
            """Return the time, later for the caller that is setting the read aside, which may end meanwhile."""
            if not (armed and threading.current_thread() is threading.main_thread()):
                return time.monotonic()
            answer.set()
            deadline = time.monotonic() + 0.3
            while not feed.snapshot.runs and time.monotonic() < deadline:
                time.sleep(0.01)
            return time.monotonic() + 60.0

        armed = False
        monkeypatch.setattr(Store, "open", slow_open)
        monkeypatch.setattr(
            "lmconsole.tui.feed.time", SimpleNamespace(monotonic=monotonic, thread_time=time.thread_time)
        )
        with following(stage.store.root) as feed:
            assert opened.wait(10.0)
            armed = True
            feed.restart_if_blocked()
            armed = False
            run.append(progress(5, 7, 4.4))
            now = wait_for_snapshot(feed, lambda now: run.run in now.runs and now.runs[run.run].position == (5, 7))
    assert now.problems == {}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("file", ["info", "lock"], ids=["run.json", "lock"])
def test_a_run_whose_files_block_is_set_aside(stage: Stage, file: str) -> None:
    stuck, live = stage.record(1, "running"), stage.record(2, "running")
    with blocking(getattr(stuck.paths, file)), following(stage.store.root) as feed:
        now = wait_for_snapshot(feed, lambda now: stuck.run in now.problems and live.run in now.runs)
        assert "answer" in now.problems[stuck.run]
        live.append(progress(5, 7, 4.4))
        wait_for_snapshot(feed, lambda now: now.runs[live.run].position == (5, 7))


@pytest.mark.usefixtures("impatient")
def test_a_run_that_no_longer_blocks_is_read_again(stage: Stage) -> None:
    stuck, live = stage.record(1), stage.record(2, "running")
    with contextlib.ExitStack() as stack:
        with blocking(stuck.paths.info):
            feed = stack.enter_context(following(stage.store.root))
            wait_for_snapshot(feed, lambda now: stuck.run in now.problems and live.run in now.runs)
        now = wait_for_snapshot(feed, lambda now: stuck.run in now.runs)
        assert now.problems == {}
        assert len(now.runs[stuck.run].curve) == 8


@pytest.mark.parametrize("file", ["info", "lock", "events"])
def test_a_pipe_in_place_of_a_file_is_a_problem_and_does_not_block(stage: Stage, file: str) -> None:
    fake, good = stage.record(1, "lost"), stage.record(2)
    path = getattr(fake.paths, file)
    path.unlink()
    os.mkfifo(path)
    with following(stage.store.root) as feed:
        now = wait_for_snapshot(feed, lambda now: fake.run in now.problems and good.run in now.runs)
    assert now.problems[fake.run].startswith(f"{path}: cannot be read: expected a file, found a named pipe")


@pytest.mark.usefixtures("impatient")
def test_several_blocked_runs_delay_the_others_by_the_patience_for_each(stage: Stage) -> None:
    stuck = [stage.record(number) for number in (1, 2, 3)]
    good = stage.record(4)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for run in stuck:
            stack.enter_context(blocking(run.paths.info))
        feed = stack.enter_context(following(stage.store.root))
        now = wait_for_snapshot(feed, lambda now: good.run in now.runs and len(now.problems) == 3)
        assert set(now.problems) == {run.run for run in stuck}
    assert time.monotonic() - began < 3 * PATIENCE_S + 1.5


@pytest.mark.usefixtures("impatient")
def test_a_blocked_driver_is_set_aside_until_it_answers(stage: Stage) -> None:
    run = stage.record(1, "running")
    with hanging() as (answer, calls):

        def gpus() -> Gpus:
            calls.append("opened")
            answer.wait()
            return driver(3.0)()

        with following(stage.store.root, gpus) as feed:
            now = wait_for_snapshot(feed, lambda now: now.runs and now.machine.gpu_reason)
            assert now.machine.gpus == ()
            run.append(progress(5, 7, 4.4))
            wait_for_snapshot(feed, lambda now: now.runs[run.run].position == (5, 7))
            assert calls == ["opened"], "no second thread waits for the driver"
            reason = now.machine.gpu_reason
            answer.set()
            seen = wait_for_snapshot(feed, lambda now: now.machine.gpus)
            assert (seen.machine.gpus[0].device_used_mib, seen.machine.gpu_reason) == (3 * 1024.0, None)
    assert "driver" in str(reason)
    assert "files" not in str(reason)


def test_the_machine_sample_has_gpus_or_host_memory(stage: Stage) -> None:
    with following(stage.store.root, driver(1.5, 20.0, watts=None)) as feed:
        gpus = wait_for_snapshot(feed, lambda now: now.machine.gpus).machine.gpus
    assert [(gpu.index, gpu.device_used_mib, gpu.power_w) for gpu in gpus] == [(0, 1_536.0, None), (1, 20_480.0, None)]
    with following(stage.store.root, no_driver) as feed:
        now = wait_for_snapshot(feed, lambda now: now.machine.host)
    assert now.machine.host is not None
    assert 0 < now.machine.host.used_mib < now.machine.host.total_mib
    assert "no NVIDIA driver" in str(now.machine.gpu_reason)


def test_messages_are_the_new_lines_of_the_runner_about_exports(stage: Stage) -> None:
    stage.record(1)
    stage.store.runner_log.write_text("exports: from yesterday\n")
    with following(stage.store.root) as feed:
        assert wait_for_snapshot(feed, lambda now: now.runs).messages == ()
        with stage.store.runner_log.open("a") as log:
            log.write("started worker\nexports: /somewhere/exports\nexports: ha")
            log.flush()
            assert wait_for_snapshot(feed, lambda now: now.messages).messages == ("exports: /somewhere/exports",)
            log.write("lf\n")
            log.flush()
            wait_for_snapshot(feed, lambda now: now.messages == ("exports: /somewhere/exports", "exports: half"))


def test_a_runner_log_created_later_is_read_from_its_start(stage: Stage) -> None:
    stage.record(1)
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now.runs)
        stage.store.runner_log.write_text("exports: nothing to export\n")
        wait_for_snapshot(feed, lambda now: now.messages == ("exports: nothing to export",))


def test_on_first_is_called_once_with_a_complete_snapshot(stage: Stage, polls: Polls) -> None:
    runs = [stage.record(number) for number in (1, 2, 3)]
    calls: list[int] = []
    feed = Feed(stage.store.root, open_gpus=polls.driver, on_first=lambda: calls.append(len(feed.snapshot.runs)))
    feed.poll_s = 0.01
    feed.start()
    wait_for_snapshot(feed, lambda now: now.runs)
    polls.wait()
    feed.close()
    assert calls == [len(runs)]


def test_close_ends_the_thread(stage: Stage) -> None:
    before = set(threading.enumerate())
    with following(stage.store.root) as feed:
        wait_for_snapshot(feed, lambda now: now)
        (thread,) = set(threading.enumerate()) - before
    thread.join(5.0)
    assert not thread.is_alive()


def test_memory_of_a_long_run_stays_bounded(stage: Stage) -> None:
    run: Recorded = stage.record(1, "running", valid=())
    run.append(*(progress(1, step, 5.0, steps=5_000) for step in range(1, 4_001)))
    with following(stage.store.root) as feed:
        seen = wait_for_snapshot(feed, lambda now: now.runs and now.runs[run.run].position == (1, 4_000)).runs[run.run]
    assert 512 <= len(seen.curve) <= 1_024


@pytest.fixture
def cached(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let stores of any size have a cache of states, and return its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(stage.root / "cache"))
    for module in ("lmconsole.tui.feed", "lmconsole.runs.store"):
        monkeypatch.setattr(f"{module}.FEWEST_RUNS", 1)
    return stage.root / "cache" / "lmconsole" / "folds"


def test_runs_from_the_cache_are_the_same_but_for_their_curves_until_these_are_drawn(
    stage: Stage, cached: Path
) -> None:
    done, live = stage.record(1), stage.record(2, "running")
    with following(stage.store.root) as feed:
        whole = wait_for_snapshot(feed, lambda now: len(now.runs) == 2).runs[done.run]
        wait_until(lambda: any(cached.iterdir()) if cached.exists() else False)
    with following(stage.store.root) as feed:
        first = wait_for_snapshot(feed, lambda now: len(now.runs) == 2)
        view = first.runs[done.run]
        left_out = ("curve", "has_whole_curve")
        for name in (name for name in RunView.__struct_fields__ if name not in left_out):
            assert getattr(view, name) == getattr(whole, name), name
        assert (view.has_whole_curve, len(view.curve), len(whole.curve)) == (False, 0, 8)
        assert first.runs[live.run].has_whole_curve
        feed.request_curves([done.run])
        now = wait_for_snapshot(feed, lambda now: now.runs[done.run].has_whole_curve)
        assert list(now.runs[done.run].curve) == list(whole.curve)
        assert now.runs[live.run] is first.runs[live.run]


def test_a_run_from_the_cache_that_goes_on_is_read_whole(stage: Stage, cached: Path) -> None:
    done = stage.record(1)
    Store(stage.store.root, cached=True).runs()
    assert any(cached.iterdir())
    with following(stage.store.root) as feed:
        view = wait_for_snapshot(feed, lambda now: now.runs).runs[done.run]
        assert not view.has_whole_curve
        done.append(queued(), started(attempt=2), Resumed(epoch=3, step=0), *epoch_events(3, 4.0))
        feed.request_refresh()
        view = wait_for_snapshot(feed, lambda now: now.runs[done.run].has_whole_curve).runs[done.run]
        assert ([each.epoch for each in view.epochs], len(view.curve)) == ([1, 2, 3], 6)


def test_the_cache_is_not_written_by_a_console_that_has_closed(stage: Stage, cached: Path) -> None:
    stage.record(1)
    feed = Feed(stage.store.root, open_gpus=no_driver)
    feed.close()
    feed._update_folds(FoldCache(stage.store.root), stage.store.runs())
    assert not cached.exists()
