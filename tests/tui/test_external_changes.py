"""The console on a store that other processes change, damage and delete."""

import shutil

import pytest
from tui.stage import (
    Stage,
    blocking,
    console_of,
    eventually,
    experiment,
    line_with,
    screen,
    sees,
    selected,
    shows,
    shows_no_more,
)

from lmconsole.runs.events import Queued, Stopped
from lmconsole.runs.store import Store
from lmconsole.runs.trash import discard


async def test_runs_that_another_process_queues_appear(stage: Stage) -> None:
    async with stage.console() as pilot:
        await shows(pilot, "No runs yet.")
        stage.record(4, "queued")
        await shows(pilot, "1 queued")
        assert "queued" in experiment(pilot, 4)
        stage.record(4, "running", seed=7)
        await shows(pilot, "1 queued, 1 running")
        assert "0/2 seeds" in experiment(pilot, 4)


async def test_a_run_that_another_process_stops_and_resumes_is_followed(stage: Stage) -> None:
    run = stage.record(1, "running")
    async with stage.console() as pilot:
        await shows(pilot, "epoch 5/6")
        run.paths.stop.touch()
        await shows(pilot, "stopping")
        run.end(Stopped(epoch=5, step=4))
        run.paths.stop.unlink()
        await shows(pilot, "stopped in 5/6")
        run.append(Queued(devices=("cpu",), jobs=1))
        await shows(pilot, "1 queued")


async def test_runs_that_another_process_deletes_disappear_and_the_highlight_stays(stage: Stage) -> None:
    first = stage.record(1)
    stage.record(3)
    async with stage.console() as pilot:
        await pilot.press("down", "down")
        discard(Store(stage.store.root), [first.run])
        await shows(pilot, "1 finished")
        assert experiment(pilot, 1).endswith("Adam       –")
        await pilot.press("space")
        await sees(pilot, selected, [3])


async def test_deleting_the_unfolded_run_under_the_highlight_leaves_the_highlight_nearby(stage: Stage) -> None:
    stage.record(2, seed=1)
    newest = stage.record(2, seed=2)
    async with stage.console() as pilot:
        await pilot.press("down", "right", "down")
        discard(Store(stage.store.root), [newest.run])
        await shows(pilot, "1 finished")
        await pilot.press("space")
        await sees(pilot, selected, [3])


async def test_a_deleted_store_is_shown_as_empty(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 finished")
        shutil.rmtree(stage.store.root)
        await shows(pilot, "no runs", "No runs yet.")
        stage.record(5)
        await shows(pilot, "1 finished")


async def test_an_unreadable_store_is_reported_and_its_runs_stay_visible(stage: Stage) -> None:
    stage.link_store()
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 finished")
        with stage.unreadable_store():
            await shows(pilot, "the store cannot be read")
            assert "finished" in experiment(pilot, 1)
        await shows(pilot, "1 finished")


async def test_the_reason_for_an_unreadable_store_replaces_the_curves(stage: Stage) -> None:
    stage.link_store()
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 finished", "1 LSTM 1L Adam")
        with stage.unreadable_store():
            await shows(pilot, "the store cannot be read", "Not", "directory", seconds=3.0)  # it wraps anywhere


async def test_a_damaged_run_is_counted_and_the_others_are_shown(stage: Stage) -> None:
    stage.record(1)
    bad = stage.record(2)
    bad.paths.info.write_text("{")
    async with stage.console() as pilot:
        await shows(pilot, "1 unreadable, 1 finished")
        assert "finished" in experiment(pilot, 1)


async def test_a_run_that_was_never_readable_has_a_row_and_enter_shows_the_reason(stage: Stage) -> None:
    bad = stage.record(2)
    bad.paths.info.write_text("{")
    async with stage.console() as pilot:
        await shows(pilot, "1 unreadable")
        await shows(pilot, f"unreadable: {bad.run[:20]}", seconds=3.0)
        await pilot.press("end", "space", "enter")
        await shows(pilot, "A run that cannot be read", "not a run.json of lmconsole")
        assert console_of(pilot).main.checked == frozenset(), "it cannot be selected"


@pytest.mark.parametrize("key", ["r", "R"])
async def test_a_run_that_was_never_readable_cannot_be_trained(stage: Stage, key: str) -> None:
    bad = stage.record(2)
    bad.paths.info.write_text("{")
    async with stage.console() as pilot:
        await shows(pilot, "1 unreadable")
        await pilot.press("end")
        await shows(pilot, "This run cannot be read. Press enter for the reason.")
        await pilot.press(key)
        await shows(pilot, "There is no experiment to train.")


@pytest.mark.parametrize("name", ["e3", "3", "²-x"])
async def test_folders_may_have_any_name(stage: Stage, name: str) -> None:
    run = stage.record(1)
    shutil.copytree(run.paths.folder, stage.store.root / name)
    (stage.store.root / f"{name}²").mkdir()
    (stage.store.root / f"{name}²" / "run.json").write_text("{")
    async with stage.console() as pilot:
        await shows(pilot, f"unreadable: {name}²", "1 unreadable, 2 finished")
        await pilot.press("right", "down", "space", "down", "space")
        await shows(pilot, "2 selected", "1 LSTM 1L Adam s42")
        await pilot.press("end", "s")
        await shows(pilot, "None of the selected runs is queued or running.")


async def test_a_run_without_a_log_is_unreadable_and_its_details_show_the_reason(stage: Stage) -> None:
    run = stage.record(2)
    async with stage.console() as pilot:
        await shows(pilot, "1 finished")
        run.paths.events.unlink()
        await shows(pilot, "1 unreadable")
        assert "unreadable" in experiment(pilot, 2)
        await pilot.press("down", "enter")
        await shows(pilot, "problem", "there is no such file")


async def test_details_count_damaged_lines(stage: Stage) -> None:
    run = stage.record(1)
    with run.paths.events.open("ab") as log:
        log.write(b"\x00 damaged\n\xff\xfe\n")
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "2 damaged lines skipped")
        await pilot.press("tab", "tab")
        await shows(pilot, "damaged: \\x00 damaged")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the feed set aside runs that block it for a third of a second."""
    monkeypatch.setattr("lmconsole.tui.feed.PATIENCE_S", 0.3)


@pytest.mark.usefixtures("impatient")
async def test_a_run_that_blocks_is_counted_and_the_others_are_updated(stage: Stage) -> None:
    stuck, live = stage.record(1), stage.record(2, "running")
    with blocking(stuck.paths.info):
        async with stage.console() as pilot:
            await shows(pilot, "1 unreadable, 1 running")
            live.end(Stopped(epoch=5, step=4))
            await shows(pilot, "1 unreadable, 1 stopped")
            await pilot.press("down", "space")
            await sees(pilot, selected, [2])


@pytest.mark.usefixtures("impatient")
async def test_a_run_that_starts_to_block_keeps_its_row(stage: Stage) -> None:
    stuck = stage.record(1, "running")
    async with stage.console() as pilot:
        await shows(pilot, "1 running")
        with blocking(stuck.paths.lock):
            await shows(pilot, "1 unreadable")
            await shows(pilot, "not answering", seconds=3.0)
            assert "121.5" in line_with(pilot, "not answering"), "its last values stay"


async def test_a_failed_deletion_is_reported(stage: Stage) -> None:
    run = stage.record(1)
    (stage.store.root / ".trash").write_text("a file is in the way")
    async with stage.console() as pilot:
        await pilot.press("d")
        await shows(pilot, "Delete 1 run?")
        await pilot.press("y")
        await shows(pilot, "cannot be moved")
        assert run.paths.folder.exists()
        await shows_no_more(pilot, "Delete 1 run?")


async def test_exports_of_the_runner_are_announced(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 finished")
        stage.store.runner_log.write_text("exports: 12 files in /somewhere/exports\n")
        await shows(pilot, "Exports: 12 files in /somewhere/exports")
        stage.store.runner_log.write_text("exports: 12 files in /somewhere/exports\nexports: \x1b[31mred\n")
        await shows(pilot, "\\x1b[31mred")


async def test_two_consoles_show_the_same_store(stage: Stage) -> None:
    run = stage.record(1, "running")
    async with stage.console() as one, stage.console() as other:
        await shows(one, "1 running")
        run.end(Stopped(epoch=5, step=4))
        await shows(one, "1 stopped")
        await shows(other, "1 stopped")
        await one.press("d")
        await shows(one, "Delete 1 run?")
        await one.press("y")
        await eventually(one, lambda: not run.paths.folder.exists())
        await shows(other, "no runs")
        assert "1 stopped" not in screen(other)
