"""Pages that open over the main screen: details and the comparison."""

import math

import msgspec
from factories import evaluation, finished, progress, started
from textual.widgets import RichLog
from tui.stage import CORPUS, Recorded, Stage, eventually, line_with, screen, shows, shows_no_more

from lmconsole.runs.events import Failed


async def test_enter_opens_the_details_of_a_run_with_four_pages(stage: Stage) -> None:
    run = stage.record(5, valid=(6.0, 5.0))
    run.paths.worker_log.write_text("a message of the worker\n")
    async with stage.console() as pilot:
        await pilot.press(*["down"] * 4, "enter")
        await shows(pilot, run.run, "GPT-1 1L Adam", "finished", "148.4 in epoch 2")
        await pilot.press("tab")
        await shows(pilot, "learning_rate", "experiments.toml")
        await pilot.press("right")
        await shows(pilot, "queued", "started", "progress", "valid_ppl 148.4")
        await pilot.press("tab")
        await shows(pilot, "a message of the worker")
        await pilot.press("tab")
        await shows(pilot, "148.4 in epoch 2")
        await pilot.press("left")
        await shows(pilot, "a message of the worker")
        await pilot.press("escape")
        await shows_no_more(pilot, "Worker log")


async def test_details_show_energy_only_where_it_was_measured(stage: Stage) -> None:
    stage.record(1)
    run = stage.record(2, valid=(6.0, 5.0))
    run.append(finished((6.0, 5.0), energy_j=12_340.0))
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "test ppl")
        assert "driver's counter" not in screen(pilot)
        await pilot.press("escape", "down", "enter")
        await shows(pilot, "12.3 kJ in all epochs (board, driver's counter)")


async def test_details_of_a_failed_run_show_the_error_and_its_hint(stage: Stage) -> None:
    run = stage.queue(1)
    run.append(
        started(), Failed(error="out-of-memory", message="the GPU is \x1b[31mfull", hint="Try --precision bf16.")
    )
    async with stage.console() as pilot:
        await pilot.press("enter")
        shown = await shows(pilot, "Try --precision bf16.", "failed")
        assert "the GPU is \\x1b[31mfull" in shown, "control characters are escaped"


async def test_details_follow_a_run_until_f_and_again_after_it(stage: Stage) -> None:
    run = stage.record(1, "running")
    run.paths.worker_log.write_text("".join(f"line {i}\n" for i in range(200)))
    async with stage.console() as pilot:
        await pilot.press("enter", "left")
        shown = await shows(pilot, "line 199", seconds=3.0)
        assert "printed nothing" not in shown
        with run.paths.worker_log.open("a") as log:
            log.write("news\n")
        await shows(pilot, "news")
        await pilot.press("f")
        await shows(pilot, "Not following the log.")
        with run.paths.worker_log.open("a") as log:
            log.write("later news\n")
        log_lines = pilot.app.screen.query_one("#log-body", RichLog)
        await eventually(pilot, lambda: "later news" in log_lines.lines[-1].text)
        assert "later news" not in screen(pilot)
        await pilot.press("f")
        with run.paths.worker_log.open("a") as log:
            log.write("newest\n")
        await shows(pilot, "later news", "newest")


async def test_details_of_a_live_run_are_up_to_date(stage: Stage) -> None:
    run = stage.record(1, "running", valid=(6.0,))
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "epoch 2 of 3, step 4")
        run.append(progress(2, 7, 5.0))
        await shows(pilot, "epoch 2 of 3, step 7")


async def test_an_evaluation_within_an_epoch_is_the_last_point_of_the_curve_and_no_result(stage: Stage) -> None:
    run = stage.record(1, "running", valid=(6.0,))
    stage.record(2, valid=(6.0, 5.5))
    async with stage.console() as pilot:
        await shows(pilot, "403.4")
        run.append(evaluation(2, 5, 5.0))
        assert "148.4" in await shows(pilot, "148.4"), "in the legend of the curves"
        assert "403.4" in line_with(pilot, "epoch 2/3"), "the table has the best epoch"
        await pilot.press("enter")
        await shows(pilot, "148.4 in epoch 2, step 5 of 8", "403.4 in epoch 1")
        await pilot.press("escape", "c")
        await shows(
            pilot, "Comparison", "403.4", "Lower perplexities within epochs, which the curves show, do not count"
        )


async def test_details_close_when_their_run_is_deleted(stage: Stage) -> None:
    run: Recorded = stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, run.run)
        run.paths.folder.rename(stage.root / "elsewhere")
        await shows(pilot, "The run has been deleted.")
        assert "Worker log" not in screen(pilot)


async def test_enter_on_an_untrained_experiment_explains_how_to_train_it(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "This experiment has not been trained yet.")


async def test_c_compares_the_selected_runs_the_best_first(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    stage.record(2, valid=(6.0, 4.8))
    stage.record(5, valid=(6.0, 6.5))
    async with stage.console() as pilot:
        await pilot.press("space", "down", "space", "c")
        shown = await shows(pilot, "Comparison", "To best")
        best, other = math.exp(4.8), math.exp(5.0)
        first, second = line_with(pilot, "1L AdamW  "), line_with(pilot, "LSTM 1L Adam ")
        assert shown.index(first) < shown.index(second)
        assert f"{best:.1f}" in first
        assert f"{other:.1f}" in second
        assert f"+{other - best:.1f} (+22 %)" in second
        assert "GPT-1 1L Adam" not in shown
        assert "a difference between two may be due to their seeds alone" in shown
        await pilot.press("escape")
        await shows_no_more(pilot, "Comparison")


async def test_c_without_a_selection_compares_all_runs_and_needs_two(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    async with stage.console() as pilot:
        await pilot.press("c")
        await shows(pilot, "A comparison needs two runs with", "finite validation")
        stage.record(6, "running")
        await shows(pilot, "epoch 5/6")
        await pilot.press("c")
        await shows(pilot, "Comparison", "LSTM 1L Adam", "GPT-1 1L AdamW")


async def test_a_comparison_warns_of_different_corpora(stage: Stage) -> None:
    stage.record(1)
    other = msgspec.structs.replace(CORPUS, sha256="ab" * 32)
    stage.record(2, corpus=other)
    async with stage.console() as pilot:
        await pilot.press("c")
        await shows(pilot, "These runs have different corpora: do not compare their perplexities.")
