"""The store: runs are found and followed, and everything else in the folder is ignored."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from factories import append_events, finished, locked_by_another_process, progress, started

from lmconsole.errors import RunNotFoundError, StoreError
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run, Store, has_room


def test_a_store_that_does_not_exist_is_empty_and_is_not_created(tmp_path: Path) -> None:
    assert Store(tmp_path / "runs").runs() == []
    assert not (tmp_path / "runs").exists()


def test_runs_are_found_by_id_by_unique_prefix_and_by_experiment(tmp_path: Path) -> None:
    first = tiny.queue_tiny(tmp_path, number=1)
    second = tiny.queue_tiny(tmp_path, number=2, model="gpt1")
    newest = tiny.queue_tiny(tmp_path, number=1, seed=7)
    store = Store(tmp_path / "runs")
    assert store.find(first.run).run == first.run
    assert store.find("02-").run == second.run
    assert store.find("1").run == newest.run
    with pytest.raises(RunNotFoundError, match="matches 2 runs"):
        store.find("01-")
    with pytest.raises(RunNotFoundError, match="experiment 12 has no run"):
        store.find("12")
    for wanted in ("../..", "", "[red]", "\x1b[31m", "01-lstm*"):
        with pytest.raises(RunNotFoundError) as caught:
            store.find(wanted)
        assert "\x1b" not in str(caught.value)


def test_a_run_directory_is_complete(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    assert sorted(path.name for path in run.paths.folder.iterdir()) == ["events.jsonl", "lock", "run.json"]
    info = json.loads(run.paths.info.read_text())
    assert info["schema"] == 1
    assert info["run"] == run.run
    assert info["settings"]["epochs"] == 2
    assert info["origins"]["epochs"].endswith("[presets.tiny]")
    assert info["threads"] == 1
    assert len(info["same_run"]) == len(info["corpus"]["sha256"]) == 64
    assert run.run.startswith("01-lstm-1l-adam-tiny-s42-2")


def test_two_runs_queued_in_one_second_get_different_names(tmp_path: Path) -> None:
    runs = [tiny.queue_tiny(tmp_path, fresh=True, seed=1, epochs=n).run for n in range(1, 8)]
    assert len(set(runs)) == 7


def test_other_files_in_the_store_are_left_alone_and_damaged_runs_are_reported(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    root = tmp_path / "runs"
    (root / "notes.txt").write_text("mine")
    (root / "holiday pictures").mkdir()
    (root / ".hidden").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    (root / "from-the-future").mkdir()
    (root / "from-the-future" / "run.json").write_text('{"schema": 2}')
    store = Store(root)
    assert [each.run for each in store.runs()] == [run.run]
    assert set(store.problems) == {"broken", "from-the-future"}
    assert "newer lmconsole" in store.problems["from-the-future"]
    assert (root / "notes.txt").read_text() == "mine"


def test_a_run_that_finishes_while_it_is_read_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, started())

    def ends_now(run: Run) -> None:
        append_events(run.paths, finished())

    monkeypatch.setattr(Run, "worker", ends_now)
    run.refresh()
    assert run.status is Status.FINISHED


def test_a_run_is_lost_without_its_worker(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    append_events(run.paths, started())

    def status() -> Status:
        run.refresh()
        return run.status

    assert status() is Status.LOST
    with locked_by_another_process(run.paths.lock):
        assert status() is Status.RUNNING
    assert status() is Status.LOST


def test_each_refresh_returns_the_new_events(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    store = Store(tmp_path / "runs")
    (followed,) = store.runs()
    for step in range(1, 4):
        append_events(run.paths, progress(1, step))
        assert [event.seq for event in followed.refresh()] == [step + 1]
        assert followed.refresh() == []
    assert store.runs()[0] is followed


def test_a_deleted_run_disappears_and_a_deleted_log_is_a_problem_of_its_run_only(tmp_path: Path) -> None:
    first, second = tiny.queue_tiny(tmp_path, seed=1), tiny.queue_tiny(tmp_path, seed=2)
    store = Store(tmp_path / "runs")
    assert len(store.runs()) == 2
    first.paths.events.unlink()
    store.runs()
    assert set(store.problems) == {first.run}
    for path in first.paths.folder.iterdir():
        path.unlink()
    first.paths.folder.rmdir()
    assert [run.run for run in store.runs()] == [second.run]


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, ordinary_user: Callable[[], None]) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    ordinary_user()
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "runs").create()


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        Store(tmp_path / "runs").create()
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path / "runs").runs()


@pytest.mark.parametrize(
    ("jobs", "others", "room"),
    [
        (1, [], True),
        (1, [1], False),
        (2, [1], False),
        (1, [2], False),
        (2, [2], True),
        (2, [2, 2], False),
        (3, [3, 3], True),
        (8, [2, 8, 8, 8], True),  # one run resumed with four threads on eight cores, and four runs with one thread
        (8, [2, 8, 8, 8, 8], False),
        (2, [0], False),  # the device waits for the next run in the queue
    ],
)
def test_a_run_takes_one_part_in_jobs_of_a_device(jobs: int, others: list[int], room: bool) -> None:
    assert has_room(jobs, others) is room
