"""Runs queued, stopped, resumed, deleted and exported by keys, with the outcome on disk and on the screen."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import tiny
from factories import epoch_events, finished, started
from textual.app import App
from textual.message import Message
from tui.stage import Recorded, Stage, console_of, eventually, experiment, screen, shows, shows_no_more

from lmconsole.engine.ask import ask
from lmconsole.engine.probe import ProbeAnswer
from lmconsole.engine.run_options import RunRequest
from lmconsole.plan.load import load_plan
from lmconsole.runs.event_reader import EventReader
from lmconsole.runs.events import Failed, Queued, Stopped
from lmconsole.runs.permissions import AfterQueue, Permissions
from lmconsole.runs.state import Status
from lmconsole.runs.store import Run
from lmconsole.telemetry.host import cores
from lmconsole.tui import actions
from lmconsole.tui.options import ConsoleOptions
from lmconsole.tui.rows import Row
from lmconsole.tui.screens.dialogs import Exported
from lmconsole.tui.sorting import Sort
from lmconsole.tui.store_actions import StoreActions
from lmconsole.tui.terminal import clipboard
from lmconsole.tui.widgets.experiment_table import ExperimentTable

LONG_S = 120.0
"""Timeout for a child process that imports torch or pandas on a busy machine."""


@pytest.fixture
def small(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return options for a console on three experiments that train in a second. Messages give their device a short
    name, since the line breaks of a message, which tests search for words, depend on the processor's name."""

    def ask_and_rename(request: RunRequest) -> ProbeAnswer:
        return msgspec.structs.replace(ask(request), device_names=("CPU",))

    monkeypatch.setattr(actions, "ask", ask_and_rename)
    file = tiny.write_experiments(stage.root / "mine.toml", tiny.row(1), tiny.row(2, "gpt1"), tiny.row(3))
    stage.plan = load_plan(file)
    return {"experiments": file, "data": tiny.write_corpus(stage.root / "texts"), "preset": "tiny"}


@pytest.fixture
def no_runner(stage: Stage) -> None:
    """Keep queued runs in the queue."""
    stage.no_runner()


def runs(stage: Stage) -> list[Run]:
    """Return the runs of the store."""
    return stage.store.runs()


def last_event(run: Recorded) -> object:
    """Return the last event of the run's log."""
    return EventReader(run.paths.events).read_new()[-1]


# ---- r and R


@pytest.mark.slow
@pytest.mark.usefixtures("no_runner")
async def test_r_queues_the_selection_with_the_preset_and_reports_it(stage: Stage, small: dict[str, Any]) -> None:
    async with stage.console(**small) as pilot:
        await pilot.press("space", "down", "space", "r")
        await shows(pilot, "Checking data and devices")
        await shows(pilot, "Preset tiny", "2 queued.", "at once", seconds=LONG_S)
        await shows(pilot, "2 selected, 2 queued")
        one, two = sorted(runs(stage), key=lambda run: run.info.experiment.id)
        assert [run.info.experiment.id for run in (one, two)] == [1, 2]
        assert {run.info.preset for run in (one, two)} == {"tiny"}
        assert {run.info.settings.epochs for run in (one, two)} == {2}
        queued = one.state.queued
        assert queued is not None
        assert (queued.devices, queued.jobs) == (("cpu",), cores())
        permission = Permissions(stage.store.root).find(one)
        assert permission is not None
        assert permission.after.exports == str(stage.root / "exports")
        assert (one.info.threads, one.info.jobs) == (1, "auto")
        await pilot.press("escape", "down", "space", "up", "space", "r")
        await shows(pilot, "1 already", seconds=LONG_S)
        assert sorted(run.info.experiment.id for run in runs(stage)) == [1, 2, 3]


async def test_the_console_says_that_it_is_still_checking_until_there_is_an_answer(
    stage: Stage, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def start(_: object) -> actions.StartResult:
        answered.wait(60.0)
        return actions.StartResult(preset="tiny", message="the answer", warnings=())

    monkeypatch.setattr(actions, "start", start)
    monkeypatch.setattr("lmconsole.tui.app.CHECKING_S", 0.2)
    async with stage.console(**small) as pilot:
        await pilot.press("r", "r")
        await shows(pilot, "Checking data and devices")
        for _ in range(3):
            await shows(pilot, "Still checking data and devices")
            await pilot.pause(0.2)
        answered.set()
        await shows(pilot, "the answer")
        await shows_no_more(pilot, "Still checking")


@pytest.mark.slow
async def test_a_queue_runs_from_r_to_the_exports(stage: Stage, small: dict[str, Any]) -> None:
    file = small["experiments"]
    file.write_text(file.read_text().replace("epochs = 2", "epochs = 80"))  # long enough to be seen running
    async with stage.console(**small) as pilot:
        await pilot.press("down", "r")
        await shows(pilot, "1 running", seconds=LONG_S)
        await shows(pilot, "1 finished", "All runs have ended", seconds=LONG_S)
        await shows(pilot, str(stage.root / "exports")[:20], seconds=LONG_S)
        (run,) = runs(stage)
        assert (run.info.experiment.id, run.status) == (2, Status.FINISHED)
        best = run.state.best_epoch
        assert best is not None
        assert f"{best.valid_ppl:.1f}" in experiment(pilot, 2)
        assert list((stage.root / "exports").glob("table-1-results.*"))
        await pilot.press("r")
        await shows(pilot, "1 already finished", seconds=LONG_S)
        await eventually(pilot, lambda: stage.store.runner() is None, seconds=LONG_S)


@pytest.mark.slow
async def test_missing_data_is_reported_and_nothing_is_queued(stage: Stage, small: dict[str, Any]) -> None:
    async with stage.console(**{**small, "data": stage.root / "nowhere"}) as pilot:
        await pilot.press("r")
        await shows(pilot, "nowhere", seconds=LONG_S)
        assert runs(stage) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_runner")
async def test_the_form_queues_with_the_typed_settings_and_keeps_them(stage: Stage, small: dict[str, Any]) -> None:
    async with stage.console(**small) as pilot:
        await pilot.press("R")
        await shows(pilot, "Run experiment 1 with", "preset", "tiny", "auto")
        await pilot.click("#epochs")
        await pilot.press(*"5", "tab", *"7..8")
        await shows(pilot, "differences of 10.4 sd", seconds=LONG_S)
        await pilot.press("tab", "tab", *"fp32", "tab", *"2", "ctrl+s")
        await shows(pilot, "2 queued.", seconds=LONG_S)
        found = runs(stage)
        assert [run.info.seed for run in found] == [7, 8]
        assert {(run.info.settings.epochs, run.info.settings.precision) for run in found} == {(5, "fp32")}
        assert {run.state.queued.jobs for run in found if run.state.queued} == {2}
        await pilot.press("down", "R")
        await shows(pilot, "Run experiment 2 with", "7..8", "fp32")


@pytest.mark.usefixtures("no_runner")
@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("jobs", "x", "--jobs x: expected auto, or 1 to"),
        ("epochs", "x", "--epochs x: expected a whole number"),
        ("epochs", "0", "--epochs 0"),
        ("seeds", "4..1", "--seeds 4..1"),
        ("preset", "tinyy", "unknown preset 'tinyy'; did you mean 'tiny'?"),
        ("precision", "fp31", "unknown precision 'fp31'; did you mean"),
    ],
)
async def test_the_form_stays_open_and_names_an_invalid_setting(
    stage: Stage, small: dict[str, Any], field: str, typed: str, words: str
) -> None:
    async with stage.console(**small) as pilot:
        await pilot.press("R")
        await shows(pilot, "Run experiment 1 with")
        await pilot.click(f"#{field}")
        await pilot.press("end", "ctrl+u", *typed, "enter")
        await shows(pilot, words, "Run experiment 1 with")
        await pilot.press("escape")
        await shows_no_more(pilot, "Run experiment 1 with")
    assert runs(stage) == []


async def test_the_form_opens_with_its_first_field_focused(stage: Stage, small: dict[str, Any]) -> None:
    async with stage.console(**small) as pilot:
        await pilot.press("R")
        await shows(pilot, "Run experiment 1 with")
        await pilot.press(*"paper")
        await shows(pilot, "preset       paper")


async def test_the_form_applies_to_the_whole_selection_and_can_be_cancelled(
    stage: Stage, small: dict[str, Any]
) -> None:
    async with stage.console(**small) as pilot:
        await pilot.press("a", "R")
        await shows(pilot, "Run experiments 1, 2, 3 with")
        await pilot.click("#cancel")
        await shows_no_more(pilot, "Run experiments 1, 2, 3 with")
    assert runs(stage) == []


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
async def test_all_fields_of_the_form_can_be_reached_on_a_small_screen(stage: Stage, size: tuple[int, int]) -> None:
    async with stage.console(size=size) as pilot:
        await pilot.press("R")
        await pilot.press(*["tab"] * 5)
        await shows(pilot, "jobs         auto")
        await pilot.press(*["tab"] * 4)
        await shows(pilot, "Cancel", "Run (ctrl+s)")


async def test_a_file_of_experiments_that_vanishes_after_the_form_was_checked_does_no_harm(
    stage: Stage, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[RunRequest] = []

    def start(request: RunRequest) -> actions.StartResult:
        started.append(request)
        return actions.StartResult(preset="tiny", message="2 queued.", warnings=())

    def parse_and_delete(options: ConsoleOptions, ids: Sequence[int], values: Mapping[str, str]) -> RunRequest:
        request = parse(options, ids, values)
        small["experiments"].unlink()
        return request

    parse = actions.parse
    monkeypatch.setattr(actions, "parse", parse_and_delete)
    monkeypatch.setattr(actions, "start", start)
    async with stage.console(**small) as pilot:
        await pilot.press("R")
        await shows(pilot, "Run experiment 1 with")
        await pilot.press("ctrl+s")
        await shows(pilot, "2 queued.")
    assert [request.ids for request in started] == [(1,)]


async def test_r_reports_a_file_of_experiments_that_cannot_be_read(stage: Stage, small: dict[str, Any]) -> None:
    async with stage.console(**small) as pilot:
        small["experiments"].unlink()
        await pilot.press("r")
        await shows(pilot, "mine.toml")
    assert runs(stage) == []


# ---- s


async def test_s_asks_first_and_enter_means_no(stage: Stage) -> None:
    run = stage.record(2, "running")
    async with stage.console() as pilot:
        for answer in ("n", "escape", "enter"):
            await pilot.press("a", "s")
            await shows(pilot, "Stop 1 run?", "2 LSTM 1L AdamW (running)", "Press u to resume it")
            await pilot.press(answer)
            await shows_no_more(pilot, "Stop 1 run?")
            await pilot.press("escape")
        assert not run.paths.stop.exists()


async def test_s_shows_a_run_as_stopping_and_then_as_stopped(stage: Stage) -> None:
    run = stage.record(1, "running")
    async with stage.console() as pilot:
        await pilot.press("s", "y")
        await shows(pilot, "1 run will stop.")
        assert run.paths.stop.exists()
        await shows(pilot, "stopping")
        await pilot.press("s")
        await shows(pilot, "None of the selected runs is queued or running.")
        run.end(Stopped(epoch=5, step=6))
        await shows(pilot, "stopped in 5/6", "All runs have ended")


@pytest.mark.usefixtures("no_runner")
async def test_s_stops_the_active_runs_of_the_selection(stage: Stage) -> None:
    wanted = ("finished", "running", "queued", "failed")
    made = [stage.record(number, status) for number, status in enumerate(wanted, 1)]
    other = stage.record(5, "queued")
    async with stage.console() as pilot:
        await pilot.press("space", "down", "space", "down", "space", "down", "space", "s")
        shown = await shows(pilot, "Stop 2 runs?", "2 LSTM 1L AdamW (running)", "3 LSTM 1L SGD (queued)")
        assert "5 GPT-1 1L Adam" not in shown
        await pilot.click("#yes")
        await shows(pilot, "2 runs will stop.")
    assert [run.paths.stop.exists() for run in [*made, other]] == [False, True, True, False, False]


async def test_s_with_nothing_to_stop_asks_nothing(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("s")
        await shows(pilot, "None of the selected runs is queued or running.")
        await pilot.press("down", "s")
        assert "Stop" not in screen(pilot).replace("s Stop", "")


# ---- u


@pytest.mark.usefixtures("no_runner")
@pytest.mark.parametrize("status", ["stopped", "lost", "failed"])
async def test_u_queues_runs_that_ended_early_again(stage: Stage, status: str) -> None:
    run = stage.record(1, status)
    async with stage.console() as pilot:
        await pilot.press("u")
        await shows(pilot, "1 run queued to resume.")
        await shows(pilot, "1 queued")
    event = last_event(run)
    assert isinstance(event, Queued)
    assert event.devices == ("cpu",)


@pytest.mark.usefixtures("no_runner")
async def test_u_queues_a_test_again_that_failed_and_leaves_tuning_runs_alone(stage: Stage) -> None:
    untested = finished(test_ppl_best=None, test_ppl_final=None)
    run = stage.queue(1)
    run.append(started(), *epoch_events(1, 5.0), untested)
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "–, not tested: a tuning run (--no-test)")
        await pilot.press("escape")
        run.append(Queued(devices=("cpu",), jobs=1, place=2), started(attempt=2))
        run.append(Failed(error="killed", message="the worker was killed", hint="Ask again."))
        await shows(pilot, "test failed")
        await pilot.press("u")
        await shows(pilot, "1 run queued to be tested.", "1 queued")


@pytest.mark.usefixtures("no_runner")
async def test_u_queues_a_run_that_nobody_will_start_for_the_user_of_the_console(stage: Stage) -> None:
    run = stage.queue(1)
    permissions = Permissions(stage.store.root)
    permissions.forget(run.run)
    async with stage.console() as pilot:
        await shows(pilot, "queued, not by you")
        await pilot.press("enter")
        await shows(pilot, "not started", "it is not started", "or u in the console")
        await pilot.press("escape", "u")
        await shows(pilot, "1 run queued to resume.", "queued, 1 of 1")
    (permission,) = permissions.saved()
    assert (permission.run, permission.queued_seq) == (run.run, 2)
    assert permission.after == AfterQueue(exports=str(stage.root / "exports"))


async def test_u_leaves_finished_and_active_runs_alone(stage: Stage) -> None:
    made = [stage.record(1), stage.record(2, "running"), stage.record(3, "queued")]
    before = [run.paths.events.read_bytes() for run in made]
    async with stage.console() as pilot:
        await pilot.press("a", "u")
        await shows(pilot, "None of the selected runs was stopped")
    assert [run.paths.events.read_bytes() for run in made] == before


# ---- d and U


async def test_d_deletes_after_a_question_and_capital_u_restores(stage: Stage) -> None:
    run = stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("d")
        await shows(pilot, "Delete 1 run?", run.run, "Press U to restore them")
        await pilot.press("n")
        await shows_no_more(pilot, "Delete 1 run?")
        assert run.paths.folder.exists()
        await pilot.press("delete")
        await shows(pilot, "Delete 1 run?")
        await pilot.press("y")
        await shows(pilot, "1 run deleted. Press U to undo.", "no runs")
        assert not run.paths.folder.exists()
        assert experiment(pilot, 1).endswith("Adam       –")
        await pilot.press("U")
        await shows(pilot, "1 run restored.", "1 finished")
        assert run.paths.info.exists()
        await pilot.press("U")
        await shows(pilot, "Nothing has been deleted since the console was opened.")


async def test_deletions_are_restored_in_reverse_order(stage: Stage) -> None:
    first, second = stage.record(1), stage.record(2)
    async with stage.console() as pilot:
        await pilot.press("d", "y")
        await shows(pilot, "1 finished")
        await pilot.press("down", "d", "y")
        await shows(pilot, "no runs")
        await pilot.press("U")
        await eventually(pilot, second.paths.info.exists)
        assert not first.paths.folder.exists()
        await pilot.press("U")
        await eventually(pilot, first.paths.info.exists)


async def test_runs_that_could_not_be_restored_can_be_restored_later(stage: Stage) -> None:
    run = stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("d", "y")
        await shows(pilot, "no runs")
        run.paths.folder.mkdir()
        await pilot.press("U")
        await shows(pilot, "already exists")
        run.paths.folder.rmdir()
        await pilot.press("U")
        await shows(pilot, "1 run restored.")
    assert run.paths.info.exists()


async def test_nothing_is_deleted_if_one_of_the_runs_is_active(stage: Stage) -> None:
    over, live = stage.record(1), stage.record(2, "running")
    async with stage.console() as pilot:
        await pilot.press("a", "d")
        await shows(pilot, "Delete 2 runs?")
        await pilot.press("y")
        await shows(pilot, "still queued or running", "Stop it first")
    assert over.paths.folder.exists()
    assert live.paths.folder.exists()


async def test_deleting_every_seed_of_an_experiment_names_them_all_or_counts_the_rest(stage: Stage) -> None:
    for seed in range(15):
        stage.record(1, seed=seed, valid=(6.0,))
    async with stage.console() as pilot:
        await pilot.press("d")
        await shows(pilot, "Delete 15 runs?", "and 3 more")
        await pilot.press("y")
        await shows(pilot, "no runs")
        await pilot.press("U")
        await shows(pilot, "15 finished", "finished, 15 seeds")


async def test_d_without_a_run_deletes_nothing(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("d")
        await shows(pilot, "There is no run to delete.")


async def test_deleted_runs_are_unselected(stage: Stage) -> None:
    stage.record(1, seed=1)
    stage.record(1, seed=2)
    async with stage.console() as pilot:
        await pilot.press("right", "down", "space", "d", "y")
        await shows(pilot, "1 finished")
        await shows_no_more(pilot, "selected")


async def test_runs_deleted_by_another_process_are_unselected(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.record(1, seed=1)
    newer = stage.record(1, seed=2)
    async with stage.console() as pilot:
        await pilot.press("right", "down", "space")
        await shows(pilot, "1 selected")
        updates: list[int] = []
        show = ExperimentTable.show

        def count_updates(table: ExperimentTable, rows: Sequence[Row], sort: Sort, *baseline: str) -> None:
            updates.append(len(rows))
            show(table, rows, sort, *baseline)

        monkeypatch.setattr(ExperimentTable, "show", count_updates)
        newer.paths.folder.rename(stage.root / "elsewhere")
        await shows(pilot, "1 finished")
        await shows_no_more(pilot, "selected", seconds=3.0)
        assert updates == [12], "once for the snapshot and the selection together"


# ---- e, t and m


@pytest.mark.slow
async def test_e_writes_the_exports_and_lists_them(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    async with stage.console() as pilot:
        await pilot.press("e")
        await shows(pilot, "Exported", "report.md", seconds=LONG_S)
        assert (stage.root / "exports" / "table-1-results.tex").exists()
        shown = await shows(pilot, "Validation PPL", f"{math.exp(5.0):.2f}")
        assert "**" not in shown, "no markdown"
        assert "|" not in shown
        assert "--" not in shown
        await pilot.press("escape")
        await shows_no_more(pilot, "Exported")


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (40, 20)])
async def test_the_exported_table_is_shown_as_a_table(stage: Stage, size: tuple[int, int]) -> None:
    markdown = "**Table 1.** A \\*caption\\*, <b>bold</b>.\n\n" + "\n".join(
        [
            "| Architecture | Layers | Train PPL | Validation PPL | Experiment |",
            "| ------------ | -----: | --------: | -------------: | ---------: |",
            "| **GPT-1**    |  **2** | **12.5**  |   **1234.567** |      **5** |",
            "| my \\| model  |      1 |     170.1 |          185.9 |         11 |",
        ]
    )
    async with stage.console(size=size) as pilot:
        page = Exported([stage.root / "exports" / "report.md"], markdown, [])
        pilot.app.push_screen(page)
        shown = await shows(pilot, "Exported", "Table 1. A *caption*, bold.")
        assert "<b>" not in shown
        await pilot.press("end")
        for _ in range(8):
            shown += screen(pilot)
            await pilot.press(*["right"] * 5)
        for words in ("GPT-1", "12.5", "1234.567", "185.9", "my | model", "Experiment"):
            assert words in shown, "whole, after scrolling"
        assert "**" not in shown
        assert "--" not in shown


@pytest.mark.slow
async def test_e_with_nothing_to_export_writes_nothing_and_explains(stage: Stage) -> None:
    stage.record(1, "queued")
    async with stage.console() as pilot:
        await pilot.press("e")
        await shows(pilot, "Nothing was exported", seconds=LONG_S)
        await pilot.press("escape", "t")
        await shows(pilot, "nothing to export: the run has not completed an epoch", seconds=LONG_S)
        assert pilot.app.clipboard == ""
    assert not (stage.root / "exports").exists()


async def test_e_is_ignored_while_the_exports_are_being_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    written, calls = threading.Event(), list[str]()

    def export(_options: ConsoleOptions) -> tuple[list[Path], str]:
        calls.append("export")
        written.wait(10.0)
        return [stage.root / "exports" / "report.md"], ""

    monkeypatch.setattr(actions, "export", export)
    async with stage.console() as pilot:
        await pilot.press("e")
        await shows(pilot, "Writing the exports")
        await pilot.press("e")
        await shows(pilot, "The exports are already being written.")
        written.set()
        await shows(pilot, "Exported", "report.md")
        await pilot.press("escape", "e")
        await eventually(pilot, lambda: calls == ["export"] * 2)


@pytest.mark.slow
async def test_t_and_m_copy_the_results_table_to_the_clipboard(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    best = f"{math.exp(5.0):.2f}"
    async with stage.console() as pilot:
        await pilot.press("t")
        await shows(pilot, "Sent the results table as LaTeX", "export --format latex -o FILE", seconds=LONG_S)
        assert r"\begin{tabular}" in pilot.app.clipboard
        assert best in pilot.app.clipboard
        await pilot.press("m")
        await shows(pilot, "Sent the results table as markdown", seconds=LONG_S)
        assert any(line.startswith("|") and best in line for line in pilot.app.clipboard.splitlines())


async def test_in_tmux_the_table_is_said_to_be_in_its_buffer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "table", lambda *_: "| a |\n| b |\n")
    monkeypatch.setattr(clipboard, "copy_to_tmux", lambda _: True)
    async with stage.console() as pilot:
        await pilot.press("m")
        await shows(pilot, "Copied the results table as markdown: 2 lines.", "prefix key and ]")


# ---- q


@pytest.mark.parametrize("key", ["q", "ctrl+q", "ctrl+c"])
async def test_quitting_reports_how_many_runs_continue(stage: Stage, key: str) -> None:
    stage.record(1, "running")
    stage.record(2, "queued")
    stage.record(3)
    async with stage.console() as pilot:
        await pilot.press(key)
        await eventually(pilot, lambda: not pilot.app.is_running)
    assert pilot.app.return_value == "2 runs continue without the console. Run `lmconsole` to see them again."


async def test_quitting_with_one_active_run_uses_the_singular(stage: Stage) -> None:
    stage.record(1, "running")
    async with stage.console() as pilot:
        await pilot.press("q")
        await eventually(pilot, lambda: not pilot.app.is_running)
    assert str(pilot.app.return_value).startswith("1 run continues")


async def test_quitting_without_active_runs_reports_nothing(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("q")
        await eventually(pilot, lambda: not pilot.app.is_running)
    assert pilot.app.return_value is None


async def test_the_end_of_the_queue_is_announced_with_the_failures(stage: Stage) -> None:
    one, two = stage.record(1, "running"), stage.record(2, "running")
    async with stage.console() as pilot:
        one.end(finished([5.0]))
        await shows(pilot, "1 running, 1 finished")
        assert "All runs have ended" not in screen(pilot)
        two.end()
        await shows(pilot, "1 lost", "All runs have ended", "1 run failed. Press enter on a failed row")


async def test_a_key_shows_no_run_that_has_not_been_announced(stage: Stage) -> None:
    """Between two ticks a key redraws the snapshot on the screen, not a newer one: otherwise a run could be shown as
    running that ends before the next tick, and its end would never be announced."""
    async with stage.console() as pilot:
        console = console_of(pilot)
        console.set_slow(True)  # two seconds to the next tick
        stage.record(1, "running")
        await eventually(pilot, lambda: console.feed.snapshot.runs)
        shown = console.main.snapshot
        await pilot.press("space")
        await shows(pilot, "1 selected")
        assert console.main.snapshot is shown
        assert "1 running" not in screen(pilot)
        await shows(pilot, "1 running")


# ---- threads


class MessageQueue:
    """An app of which nothing exists but its workers and its message queue."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def run_worker(self, work: Callable[[], None], *, thread: bool, group: str) -> None:
        """Run ``work`` in a thread, and wait for it."""
        assert thread, group
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()

    def post_message(self, message: Message) -> bool:
        """Keep the message."""
        self.messages.append(message)
        return True


@pytest.mark.usefixtures("no_runner")
def test_store_actions_change_the_store_and_only_post_messages(stage: Stage) -> None:
    run, live = stage.record(1, "stopped"), stage.record(2, "running")
    queue = MessageQueue()
    store_actions = StoreActions(cast("App[str]", queue), stage.options())
    store_actions.delete([run.run])
    assert not run.paths.folder.exists()
    store_actions.restore([run.run])
    store_actions.resume([run.run], ())
    store_actions.stop([live.run])
    assert live.paths.stop.exists()
    store_actions.delete([live.run])
    kinds = [StoreActions.Deleted, *[StoreActions.Changed] * 3, StoreActions.Failed]
    assert [type(message) for message in queue.messages] == kinds
    texts = [message.text for message in queue.messages if isinstance(message, StoreActions.Changed)]
    assert texts == ["1 run restored.", "1 run queued to resume.", "1 run will stop."]
