"""The thread that reads the store: what it sees, what it keeps, and what it does not wait for."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tui import stage as staged
from tui.stage import Recorded, Stage, driver, end, epoch_events, following, no_driver, picture, progress

from lmconsole.runs.events import Queued, Resumed, Stopped
from lmconsole.runs.state import Status
from lmconsole.telemetry.gpu import Gpus
from lmconsole.tui.feed import Feed, RunView

PATIENCE_S = 0.3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that puts aside what does not answer in a third of a second."""
    monkeypatch.setattr("lmconsole.tui.feed.PATIENCE_S", PATIENCE_S)


@contextlib.contextmanager
def fifo(path: Path) -> Iterator[None]:
    """In the place of ``path`` a file that answers only when the block is left."""
    path.rename(path.with_suffix(".kept"))
    os.mkfifo(path)
    try:
        yield
    finally:
        waiting = path.with_suffix(".fifo")
        path.rename(waiting)
        path.with_suffix(".kept").rename(path)
        descriptor = os.open(waiting, os.O_RDWR | os.O_NONBLOCK)  # whoever waits for a writer has one now
        time.sleep(0.05)
        os.close(descriptor)


def losses(view: RunView) -> list[float]:
    """What is on its curve."""
    return [round(point.loss_nats, 3) for point in view.curve]


def test_a_store_that_does_not_exist_yet_is_empty_until_somebody_queues(stage: Stage) -> None:
    with following(stage.store.root) as feed:
        assert picture(feed, lambda now: now).runs == {}
        run = stage.record(3, "queued")
        seen = picture(feed, lambda now: now.runs).runs[run.run]
        assert (seen.status, seen.info.experiment.id, seen.folder) == (Status.QUEUED, 3, run.paths.folder)


def test_runs_are_seen_as_they_stand_oldest_first(stage: Stage) -> None:
    wanted = ("finished", "running", "queued", "stopped", "failed", "lost")
    runs = [stage.record(number, status) for number, status in enumerate(wanted, 1)]
    with following(stage.store.root) as feed:
        seen = picture(feed, lambda now: len(now.runs) == len(wanted)).runs
    assert list(seen) == [run.run for run in runs]
    assert [view.status.value for view in seen.values()] == list(wanted)
    first = next(iter(seen.values()))
    assert first.best is not None
    assert (first.best.epoch, len(first.epochs), first.points) == (4, 4, 8)


def test_what_has_not_changed_is_the_same_object(stage: Stage) -> None:
    still, live = stage.record(1), stage.record(2, "running")
    with following(stage.store.root) as feed:
        before = picture(feed, lambda now: len(now.runs) == 2)
        time.sleep(0.3)
        assert feed.picture is before, "nothing has happened"
        live.append(progress(5, 6, 4.5))
        after = picture(feed, lambda now: now is not before)
        assert after.runs[still.run] is before.runs[still.run]
        assert after.runs[live.run] is not before.runs[live.run]
        assert after.runs[live.run].position == (5, 6)


def test_what_a_picture_says_about_a_run_stays_when_the_run_goes_on(stage: Stage) -> None:
    live = stage.record(2, "running")
    with following(stage.store.root) as feed:
        before = picture(feed, lambda now: now.runs).runs[live.run]
        live.append(*epoch_events(5, 4.9))
        after = picture(feed, lambda now: len(now.runs[live.run].epochs) == 5).runs[live.run]
    assert (len(before.epochs), before.points, before.position) == (4, 9, (5, 4))
    assert (after.points, after.position) == (11, (6, 0))


def test_a_run_that_is_deleted_is_gone_and_one_that_is_brought_back_is_there_again(stage: Stage) -> None:
    one, two = stage.record(1), stage.record(2)
    with following(stage.store.root) as feed:
        picture(feed, lambda now: len(now.runs) == 2)
        trash = stage.root / "trash"
        one.paths.folder.rename(trash)
        assert list(picture(feed, lambda now: len(now.runs) == 1).runs) == [two.run]
        trash.rename(one.paths.folder)
        assert list(picture(feed, lambda now: len(now.runs) == 2).runs) == [one.run, two.run]


def test_a_worker_that_dies_leaves_a_lost_run(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs and now.runs[run.run].status is Status.RUNNING)
        assert run.holder is not None
        end(run.holder)
        picture(feed, lambda now: now.runs[run.run].status is Status.LOST)


def test_a_run_that_is_asked_to_stop_is_stopping_until_it_has(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        assert not picture(feed, lambda now: now.runs).runs[run.run].stopping
        run.paths.stop.touch()
        picture(feed, lambda now: now.runs[run.run].stopping)
        run.end(Stopped(epoch=5, step=6))
        stopped = picture(feed, lambda now: now.runs[run.run].status is Status.STOPPED).runs[run.run]
        assert not stopped.stopping


@pytest.mark.parametrize("at_once", [True, False], ids=["read at once", "read as it happens"])
def test_points_that_a_resumption_takes_back_are_off_the_curve(stage: Stage, at_once: bool) -> None:
    run = stage.record(1, "stopped", valid=(6.0,))
    assert stage.store.open(run.run) is not None
    again = [
        Queued(devices=("cpu",), jobs=1),
        staged.STARTED,
        Resumed(epoch=1, step=4),  # of the first epoch's checkpoint only half was left
        progress(1, 8, 5.9),
        staged.epoch(1, 5.95),
    ]
    if at_once:
        run.append(*again)
    with following(stage.store.root) as feed:
        if not at_once:
            seen = picture(feed, lambda now: now.runs).runs[run.run]
            assert losses(seen) == [6.1, 5.7, 5.6]
            run.append(*again)
            feed.look_now()
        seen = picture(feed, lambda now: now.runs and now.runs[run.run].position == (2, 0)).runs[run.run]
    assert losses(seen) == [6.1, 5.9]
    assert [each.valid_loss_nats for each in seen.epochs] == [5.95]


def test_a_run_resumed_twice_between_two_looks_is_read_as_it_is(stage: Stage) -> None:
    run = stage.record(1, "stopped", valid=(6.0,))
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        run.append(
            Resumed(epoch=2, step=2), progress(2, 6, 5.5), Resumed(epoch=2, step=0), progress(2, 3, 5.8),
            progress(2, 8, 5.0),
        )  # fmt: skip
        feed.look_now()
        seen = picture(feed, lambda now: now.runs[run.run].position == (2, 8)).runs[run.run]
    assert losses(seen) == [6.1, 5.7, 5.8, 5.0]


def test_a_torn_line_waits_for_its_rest(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        with run.paths.events.open("ab") as log:
            log.write(b'{"kind":"progress","seq":99,"t":"","epoch":5,"step":7,"steps":8,"train_loss_nats":4.0,')
            log.flush()
            time.sleep(0.1)
            assert feed.picture.runs[run.run].position == (5, 4)
            log.write(b'"tokens_per_s":1.0,"elapsed_train_s":20.0}\n')
            log.flush()
            picture(feed, lambda now: now.runs[run.run].position == (5, 7))


def test_damaged_lines_are_counted_and_the_others_read(stage: Stage) -> None:
    run = stage.record(1, "running")
    with run.paths.events.open("ab") as log:
        log.write(b"\x00\xff damaged\n")
    run.append(progress(5, 6, 4.4))
    with following(stage.store.root) as feed:
        seen = picture(feed, lambda now: now.runs).runs[run.run]
    assert (seen.damaged, seen.position) == (1, (5, 6))


def test_a_damaged_line_is_told_as_soon_as_it_is_there(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        with run.paths.events.open("ab") as log:
            log.write(b"\x00\xff damaged\n")
        picture(feed, lambda now: now.runs[run.run].damaged == 1, seconds=2.0)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"\xff\xfe\x00", b'{"schema": 99}'],
    ids=["empty", "no fields", "no text", "of a later version"],
)
def test_a_run_whose_settings_are_damaged_is_named_and_the_others_are_shown(stage: Stage, damage: bytes) -> None:
    good, bad = stage.record(1), stage.record(2)
    bad.paths.info.write_bytes(damage)
    with following(stage.store.root) as feed:
        now = picture(feed, lambda now: now.runs and now.problems)
    assert list(now.runs) == [good.run]
    assert list(now.problems) == [bad.run]
    assert str(bad.paths.info) in now.problems[bad.run]


def test_a_run_whose_log_disappears_keeps_what_was_known_and_says_so(stage: Stage) -> None:
    run = stage.record(1, "running")
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        run.paths.events.unlink()
        now = picture(feed, lambda now: now.problems)
    assert "events.jsonl" in now.problems[run.run]
    assert now.runs[run.run].problem == now.problems[run.run]
    assert len(now.runs[run.run].epochs) == 4


def test_folders_that_are_no_runs_are_left_alone(stage: Stage) -> None:
    run = stage.record(1)
    (stage.store.root / "notes").mkdir()
    (stage.store.root / "notes.txt").touch()
    (stage.store.root / ".tmp-half-made").mkdir()
    with following(stage.store.root) as feed:
        now = picture(feed, lambda now: now.runs)
    assert (list(now.runs), now.problems, now.error) == ([run.run], {}, None)


def test_whoever_has_changed_a_run_sees_it_at_once_even_if_it_was_over(stage: Stage) -> None:
    run = stage.record(1, "stopped")
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        run.append(Queued(devices=("cpu",), jobs=1))
        feed.look_now()
        picture(feed, lambda now: now.runs[run.run].status is Status.QUEUED, seconds=1.0)


def test_a_store_that_cannot_be_read_for_a_while_keeps_its_runs_on_the_screen(stage: Stage) -> None:
    run = stage.record(1)
    away = stage.root / "away"
    with following(stage.store.root) as feed:
        before = picture(feed, lambda now: now.runs)
        stage.store.root.rename(away)
        stage.store.root.write_text("no folder")
        now = picture(feed, lambda now: now.error)
        assert str(stage.store.root) in str(now.error)
        assert now.runs[run.run].epochs == before.runs[run.run].epochs
        stage.store.root.unlink()
        away.rename(stage.store.root)
        now = picture(feed, lambda now: not now.error)
        assert now.runs[run.run].problem is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("file", ["info", "lock"], ids=["run.json", "lock"])
def test_a_run_whose_files_do_not_answer_is_put_aside_and_the_others_go_on(stage: Stage, file: str) -> None:
    stuck, live = stage.record(1, "running"), stage.record(2, "running")
    with fifo(getattr(stuck.paths, file)), following(stage.store.root) as feed:
        now = picture(feed, lambda now: stuck.run in now.problems and live.run in now.runs)
        assert "answer" in now.problems[stuck.run]
        live.append(progress(5, 7, 4.4))
        picture(feed, lambda now: now.runs[live.run].position == (5, 7))


@pytest.mark.usefixtures("impatient")
def test_a_run_that_answers_again_is_shown_again(stage: Stage) -> None:
    stuck, live = stage.record(1), stage.record(2, "running")
    with contextlib.ExitStack() as stack:
        with fifo(stuck.paths.info):
            feed = stack.enter_context(following(stage.store.root))
            picture(feed, lambda now: stuck.run in now.problems and live.run in now.runs)
        now = picture(feed, lambda now: stuck.run in now.runs)
        assert now.problems == {}
        assert now.runs[stuck.run].points == 8


def test_a_log_that_is_no_file_is_a_problem_and_not_waited_for(stage: Stage) -> None:
    odd, good = stage.record(1), stage.record(2)
    with fifo(odd.paths.events), following(stage.store.root) as feed:
        now = picture(feed, lambda now: odd.run in now.problems and good.run in now.runs)
    assert "events.jsonl" in now.problems[odd.run]


@pytest.mark.usefixtures("impatient")
def test_several_stuck_runs_cost_no_more_than_the_patience_for_each(stage: Stage) -> None:
    stuck = [stage.record(number) for number in (1, 2, 3)]
    good = stage.record(4)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for run in stuck:
            stack.enter_context(fifo(run.paths.info))
        feed = stack.enter_context(following(stage.store.root))
        now = picture(feed, lambda now: good.run in now.runs and len(now.problems) == 3)
        assert set(now.problems) == {run.run for run in stuck}
    assert time.monotonic() - began < 3 * PATIENCE_S + 1.5


@contextlib.contextmanager
def hanging() -> Iterator[tuple[threading.Event, list[str]]]:
    """An event that a driver waits for, and where it notes that it was asked."""
    answer, asked = threading.Event(), list[str]()
    try:
        yield answer, asked
    finally:
        answer.set()


@pytest.mark.usefixtures("impatient")
def test_a_driver_that_hangs_is_put_aside_and_asked_again_when_it_answers(stage: Stage) -> None:
    run = stage.record(1, "running")
    with hanging() as (answer, asked):

        def gpus() -> Gpus:
            asked.append("opened")
            answer.wait()
            return driver(3.0)()

        with following(stage.store.root, gpus) as feed:
            now = picture(feed, lambda now: now.runs and now.gpu_reason)
            assert now.gpus == ()
            run.append(progress(5, 7, 4.4))
            picture(feed, lambda now: now.runs[run.run].position == (5, 7))
            assert asked == ["opened"], "nobody else is sent after the first"
            reason = now.gpu_reason
            answer.set()
            seen = picture(feed, lambda now: now.gpus)
            assert (seen.gpus[0].device_used_mib, seen.gpu_reason) == (3 * 1024.0, None)
    assert "driver" in str(reason)
    assert "files" not in str(reason)


def test_the_machine_is_seen_with_its_gpus_or_with_its_own_memory(stage: Stage) -> None:
    with following(stage.store.root, driver(1.5, 20.0, watts=None)) as feed:
        gpus = picture(feed, lambda now: now.gpus).gpus
    assert [(gpu.index, gpu.device_used_mib, gpu.power_w) for gpu in gpus] == [(0, 1_536.0, None), (1, 20_480.0, None)]
    with following(stage.store.root, no_driver) as feed:
        now = picture(feed, lambda now: now.host)
    assert now.host is not None
    assert 0 < now.host.used_mib < now.host.total_mib
    assert "no NVIDIA driver" in str(now.gpu_reason)


def test_what_the_runner_says_about_exports_since_the_opening_is_passed_on(stage: Stage) -> None:
    stage.record(1)
    stage.store.runner_log.write_text("exports: of an earlier day\n")
    with following(stage.store.root) as feed:
        assert picture(feed, lambda now: now.runs).said == ()
        with stage.store.runner_log.open("a") as log:
            log.write("started worker\nexports: /somewhere/exports\nexports: ha")
            log.flush()
            assert picture(feed, lambda now: now.said).said == ("exports: /somewhere/exports",)
            log.write("lf\n")
            log.flush()
            picture(feed, lambda now: now.said == ("exports: /somewhere/exports", "exports: half"))


def test_a_runner_log_that_comes_into_being_later_is_read_from_its_beginning(stage: Stage) -> None:
    stage.record(1)
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now.runs)
        stage.store.runner_log.write_text("exports: nothing to export\n")
        picture(feed, lambda now: now.said == ("exports: nothing to export",))


def test_whoever_waits_for_the_first_picture_is_told_once_and_when_it_is_complete(stage: Stage) -> None:
    runs = [stage.record(number) for number in (1, 2, 3)]
    told: list[int] = []
    feed = Feed(stage.store.root, gpus=no_driver, on_first=lambda: told.append(len(feed.picture.runs)))
    feed.poll_s = 0.01
    feed.start()
    picture(feed, lambda now: now.runs)
    time.sleep(0.1)
    feed.close()
    assert told == [len(runs)]


def test_a_closed_feed_ends_its_thread(stage: Stage) -> None:
    before = set(threading.enumerate())
    with following(stage.store.root) as feed:
        picture(feed, lambda now: now)
        (thread,) = set(threading.enumerate()) - before
    thread.join(5.0)
    assert not thread.is_alive()


def test_memory_of_a_long_run_stays_bounded(stage: Stage) -> None:
    run: Recorded = stage.record(1, "running", valid=())
    run.append(*(progress(1, step, 5.0, 5_000) for step in range(1, 4_001)))
    with following(stage.store.root) as feed:
        seen = picture(feed, lambda now: now.runs and now.runs[run.run].position == (1, 4_000)).runs[run.run]
    assert 512 <= len(seen.curve) <= 1_024
    assert seen.points == len(seen.curve)
