"""The order of runs rests on their places in the queue, not on the clock."""

import itertools
import json
import random
import shutil
from pathlib import Path

import msgspec
import pytest
import tiny
from factories import append_events, epoch, finished, started
from recorded import record

from lmconsole.commands.list_experiments import listed_experiments
from lmconsole.engine.queue import requeue
from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import load_plan
from lmconsole.report.selection import choose_group
from lmconsole.runs.events import Stopped
from lmconsole.runs.store import MAX_PLACE_GAP, Run, Store, highest_place, latest_by_experiment
from lmconsole.runs.trash import discard, restore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every event and run have the time of the year in this list."""
    year = [2026]
    for module in ("runs.event_log", "engine.queue"):
        monkeypatch.setattr(f"lmconsole.{module}.utc_now", lambda: f"{year[0]}-01-01T00:00:00.000Z")
    return year


def finish(run: Run, loss: float = 5.0) -> Run:
    append_events(run.paths, started(), epoch(1, loss), finished([loss]))
    return run


def place(run: Run) -> int:
    (found,) = [each for each in Store(run.paths.folder.parent).runs() if each.run == run.run]
    assert found.state.queued is not None
    return found.state.queued.place


def names(root: Path) -> list[str]:
    return [run.run for run in Store(root / "runs").runs()]


@pytest.mark.parametrize("years", [(2026, 2025), (2025, 2026), (2026, 2026), (9999, 2026)])
def test_the_latest_run_is_the_one_queued_last_whatever_the_clock_said(
    tmp_path: Path, clock: list[int], years: tuple[int, int]
) -> None:
    runs = []
    for year, seed in zip(years, (1, 2), strict=True):
        clock[0] = year
        runs.append(finish(tiny.queue_tiny(tmp_path, seed=seed, epochs=seed)))
    store = Store(tmp_path / "runs")
    assert [run.run for run in store.runs()] == [run.run for run in runs]
    assert store.find("1").run == runs[1].run
    assert choose_group(store.runs()).reference.run == runs[1].run
    assert latest_by_experiment(store.runs())[1].run == runs[1].run
    plan = load_plan(tmp_path / "experiments" / "1.toml")
    (listed,) = listed_experiments(plan, latest_by_experiment(store.runs()))
    assert listed.latest_run is not None
    assert listed.latest_run.run == runs[1].run


def test_a_run_that_is_queued_again_is_the_latest(tmp_path: Path, clock: list[int]) -> None:
    first = tiny.queue_tiny(tmp_path, seed=1)
    append_events(first.paths, started(), Stopped(epoch=1, step=0))
    second = finish(tiny.queue_tiny(tmp_path, seed=2))
    clock[0] = 2020
    assert requeue(Store(tmp_path / "runs"), [first.run]) == [first.run]
    assert names(tmp_path) == [second.run, first.run]
    assert (place(second), place(first)) == (2, 3)


def test_places_of_deleted_runs_are_not_given_again(tmp_path: Path) -> None:
    runs = [finish(tiny.queue_tiny(tmp_path, seed=seed)) for seed in (1, 2, 3)]
    store = Store(tmp_path / "runs")
    discard(store, [runs[1].run, runs[2].run])
    new = finish(tiny.queue_tiny(tmp_path, seed=4))
    assert place(new) == 4
    restore(store, [runs[2].run])
    assert names(tmp_path) == [runs[0].run, runs[2].run, new.run]


def test_imported_runs_get_places_too(tmp_path: Path) -> None:
    finish(tiny.queue_tiny(tmp_path))
    store, plan = Store(tmp_path / "runs"), load_plan(None)
    (tmp_path / "a.csv").write_text("epoch,train_ppl,valid_ppl,model,layers,optimizer\n1,9,10,lstm,1,sgd\n")
    (tmp_path / "b.csv").write_text("epoch,train_ppl,valid_ppl,model,layers,optimizer\n1,9,11,lstm,1,sgd\n")
    found = [
        place(store.find(name))
        for each in "ab"
        for name in import_runs(store, tmp_path / f"{each}.csv", plan).imported.values()
    ]
    assert found == [2, 3]


def set_places(root: Path, places: dict[str, int | None]) -> None:
    for name, value in places.items():
        log = root / "runs" / name / "events.jsonl"
        first, *others = log.read_text().splitlines(keepends=True)
        event = json.loads(first)
        event.pop("place")
        log.write_text(json.dumps(event if value is None else event | {"place": value}) + "\n" + "".join(others))


def set_time(run: Run, time: str) -> None:
    info = json.loads(run.paths.info.read_text())
    run.paths.info.write_text(json.dumps(info | {"queued_t": time}))


def test_runs_of_version_0_1_0_come_first_by_their_time(tmp_path: Path) -> None:
    runs = [finish(tiny.queue_tiny(tmp_path, seed=seed)) for seed in range(1, 5)]
    for run, time in zip(runs, ("2026-03", "9999-12", "2026-01", "2020-01"), strict=True):
        set_time(run, time)
    set_places(tmp_path, {run.run: None for run in runs[:3]})
    assert names(tmp_path) == [runs[2].run, runs[0].run, runs[1].run, runs[3].run]
    assert place(finish(tiny.queue_tiny(tmp_path, seed=9))) == 5


@pytest.mark.parametrize("huge", [10**9, 2**53, 2**53 + 1, 2**62, 10**30])
def test_an_absurd_place_does_not_win(tmp_path: Path, huge: int) -> None:
    runs = [finish(tiny.queue_tiny(tmp_path, seed=seed)) for seed in (1, 2, 3)]
    set_places(tmp_path, {runs[0].run: huge})
    new = finish(tiny.queue_tiny(tmp_path, seed=4))
    assert place(new) == 4
    assert names(tmp_path) == [run.run for run in (*runs, new)]


def test_a_place_just_above_the_highest_is_overtaken(tmp_path: Path) -> None:
    run = finish(tiny.queue_tiny(tmp_path, seed=1))
    set_places(tmp_path, {run.run: MAX_PLACE_GAP})
    new = finish(tiny.queue_tiny(tmp_path, seed=2))
    assert names(tmp_path) == [run.run, new.run]


def test_copies_of_a_run_are_ordered_by_their_names(tmp_path: Path) -> None:
    run = finish(tiny.queue_tiny(tmp_path))
    for name in ("zz", "00", "mm"):
        shutil.copytree(run.paths.folder, run.paths.folder.with_name(name))
    expected = sorted([run.run, "zz", "00", "mm"])
    for _ in range(3):
        assert names(tmp_path) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_highest_place_does_not_depend_on_their_order(seed: int) -> None:
    chance = random.Random(seed)
    places = [chance.choice([0, 1, 1, 2, 50, 10**12]) for _ in range(6)]
    assert len({highest_place(permuted) for permuted in itertools.permutations(places)}) == 1


def test_the_latest_run_that_has_finished_chooses_the_group(tmp_path: Path, clock: list[int]) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 4.0)])
    clock[0] = 2000
    other = record(tmp_path, 2, "lstm", [(5.0, 4.0)], learning_rate=0.5)
    clock[0] = 2050
    record(tmp_path, 3, "lstm", [(5.0, 4.0)], finish=False)
    assert choose_group(Store(tmp_path / "runs").runs()).reference.run == other.run
    assert msgspec.json.decode(other.paths.info.read_bytes())["queued_t"] < "2001"
