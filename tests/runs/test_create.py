"""A new run directory appears whole or not at all."""

import os
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import epoch, queued

from lmconsole.runs.create import create_run
from lmconsole.runs.events import Stopped
from lmconsole.runs.info import RunInfo
from lmconsole.runs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "new")
    store.create()
    return store


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return msgspec.structs.replace(tiny.queue_tiny(tmp_path).info, run="")


def test_a_run_has_its_configuration_its_events_and_an_id_that_names_both(store: Store, info: RunInfo) -> None:
    name = create_run(store, info, [queued(), epoch(1), Stopped(epoch=2, step=0)])
    (run,) = store.runs()
    assert run.run == name
    assert name.startswith("01-lstm-1l-adam-tiny-s42-2")
    assert run.info == msgspec.structs.replace(info, run=name)
    assert run.status == "stopped"
    assert (run.state.seq, len(run.state.epochs)) == (3, 1)
    assert sorted(path.name for path in run.paths.folder.iterdir()) == ["events.jsonl", "lock", "run.json"]


def test_runs_of_the_same_second_get_different_ids(store: Store, info: RunInfo) -> None:
    names = {create_run(store, info, [queued()]) for _ in range(5)}
    assert names == {run.run for run in store.runs()}
    assert len(names) == 5


@pytest.mark.parametrize("function", ["rename", "fsync"])
def test_after_an_error_nothing_is_left_of_a_run(
    store: Store, info: RunInfo, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        create_run(store, info, [queued()])
    assert list(store.root.iterdir()) == []


def test_what_a_killed_process_left_is_not_a_run(store: Store, info: RunInfo) -> None:
    name = create_run(store, info, [queued()])
    (store.root / name).rename(store.temporary(name))
    assert store.runs() == []
    create_run(store, info, [queued()])
    assert len(store.runs()) == 1
