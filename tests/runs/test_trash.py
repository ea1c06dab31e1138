"""Deleted runs can be restored."""

from pathlib import Path

import pytest
import tiny
from factories import append_events, finished, locked_by_another_process, started

from lmconsole.errors import RunActiveError, StoreError
from lmconsole.runs.store import Run, Store
from lmconsole.runs.trash import discard, restore


def finished_run(root: Path, seed: int = 1) -> Run:
    run = tiny.queue_tiny(root, seed=seed)
    append_events(run.paths, started(), finished())
    return run


def test_a_deleted_run_disappears_from_the_store_and_can_be_restored(tmp_path: Path) -> None:
    run, other = finished_run(tmp_path, 1), finished_run(tmp_path, 2)
    before = run.paths.events.read_bytes()
    store = Store(tmp_path / "runs")
    assert discard(store, [run.run, run.run, "no-such-run"]) == [run.run]
    assert [each.run for each in store.runs()] == [other.run]
    assert restore(store, [run.run, "no-such-run"]) == [run.run]
    assert {each.run for each in store.runs()} == {run.run, other.run}
    assert run.paths.events.read_bytes() == before


def test_an_active_run_is_not_deleted_nor_any_other_with_it(tmp_path: Path) -> None:
    run, queued = finished_run(tmp_path, 1), tiny.queue_tiny(tmp_path, seed=2)
    store = Store(tmp_path / "runs")
    with pytest.raises(RunActiveError, match=queued.run):
        discard(store, [run.run, queued.run])
    assert len(store.runs()) == 2


def test_a_finished_run_whose_worker_is_still_alive_is_not_deleted(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    store = Store(tmp_path / "runs")
    with locked_by_another_process(run.paths.lock), pytest.raises(RunActiveError):
        discard(store, [run.run])
    assert discard(store, [run.run]) == [run.run]


def test_a_run_is_not_restored_over_another_one(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    store = Store(tmp_path / "runs")
    discard(store, [run.run])
    run.paths.folder.mkdir()
    with pytest.raises(StoreError, match="already exists"):
        restore(store, [run.run])
