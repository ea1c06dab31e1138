"""Curves, gauges and pages under the keys that only look."""

import math
import re

import msgspec
import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from tui.stage import (
    CORPUS,
    STARTED,
    Recorded,
    Stage,
    driver,
    epoch_events,
    eventually,
    experiment,
    finished,
    line_with,
    no_driver,
    progress,
    screen,
    sees,
    shows,
    shows_no_more,
    telemetry,
)

from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.flops import training_flops
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.runs.events import Failed
from lmconsole.runs.info import CorpusInfo, read_info
from lmconsole.tui.plot.glyphs import UNICODE

PAPER = CorpusInfo(
    name="WikiText-2", kind="tokens", path="/data", vocabulary=40_479, tokenizer="GPT-1 BPE",
    tokens={"train": 2_356_374, "validation": 245_044, "test": 279_021}, sha256="d1" * 32, max_tokens=None,
)  # fmt: skip


def title(pilot: Pilot[str]) -> str:
    """The line over the curves."""
    return line_with(pilot, " over ").strip()


def legend(pilot: Pilot[str], label: str) -> list[str]:
    """Marker, words and values of a run beside the plot."""
    found = re.search(rf"(\S) ({re.escape(label)}) +(\S+) +(\S+)", screen(pilot))
    assert found, f"no {label!r} in\n{screen(pilot)}"
    return list(found.groups())


def curves(pilot: Pilot[str]) -> str:
    """The plot, without what lies above and below it."""
    lines = screen(pilot).splitlines()
    first = next(i for i, line in enumerate(lines) if " over " in line)
    return "\n".join(lines[first + 1 : -2])


# ---- curves


async def test_the_highlighted_run_is_drawn_and_another_highlight_draws_another(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    stage.record(2, valid=(7.0, 6.5))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        assert legend(pilot, "1 LSTM 1L Adam")[3] == f"{math.exp(5.0):.1f}"
        await pilot.press("down")
        await shows(pilot, "2 LSTM 1L AdamW", f"{math.exp(6.5):.1f}")
        assert "1 LSTM 1L Adam " not in screen(pilot)
        await pilot.press("down")
        await shows(pilot, "Not trained yet: r runs it.")


async def test_running_down_the_table_ends_with_the_curves_of_the_row_it_ends_on(stage: Stage) -> None:
    for number in range(1, 13):
        stage.record(number, valid=[7.0 - i / 10 - number / 10 for i in range(20)])
    async with stage.console(gpus=driver(1.0)) as pilot:
        await pilot.press("a", "a", *["down"] * 11)
        await shows(pilot, "12 GPT-1 4L AdamW", seconds=3.0)


async def test_what_is_selected_is_drawn_together_with_a_marker_each_and_a_legend(stage: Stage) -> None:
    for number in range(1, 13):
        stage.record(number, valid=(7.0 - number / 10, 6.5 - number / 10))
    async with stage.console() as pilot:
        await pilot.press("a")
        await shows(pilot, "12 GPT-1 4L AdamW")
        labels = ("10 LSTM 4L AdamW", "11 GPT-1 2L AdamW", "12 GPT-1 4L AdamW")
        assert [legend(pilot, label)[0] for label in labels] == list(UNICODE.markers[9:])
        assert all(marker in curves(pilot) for marker in UNICODE.markers)


async def test_a_live_run_grows_on_the_screen(stage: Stage) -> None:
    run = stage.record(1, "running", valid=(6.0,))
    async with stage.console() as pilot:
        await shows(pilot, "epoch 2/3 step 4/8")
        run.append(*epoch_events(2, 5.0))
        best = f"{math.exp(5.0):.1f}"
        await shows(pilot, "epoch 3/3")
        assert best in experiment(pilot, 1)
        await eventually(pilot, lambda: legend(pilot, "1 LSTM 1L Adam")[3] == best)


async def test_x_goes_round_epochs_time_and_tokens(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await shows(pilot, "over epochs")
        await pilot.press("x")
        await shows(pilot, "over training time")
        assert re.search(r"\d+ s\b", curves(pilot).splitlines()[-1])
        await pilot.press("x")
        await shows(pilot, "over tokens")
        assert re.search(r"\d+k\b", curves(pilot).splitlines()[-1])
        await pilot.press("x")
        await shows(pilot, "over epochs")


async def test_y_goes_between_logarithmic_and_linear(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        before = curves(pilot)
        await shows(pilot, "(log,")
        await pilot.press("y")
        await shows(pilot, "(linear,")
        assert re.search(r"^ +0[┤┼]", curves(pilot), re.MULTILINE), "a linear axis begins at 0"
        await pilot.press("y")
        await sees(pilot, curves, before)


async def test_v_goes_round_both_validation_and_train(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await shows(pilot, "train and validation")
        assert "·" in curves(pilot)
        await pilot.press("v")
        await shows(pilot, ", validation)")
        assert "·" not in curves(pilot)
        await pilot.press("v")
        await shows(pilot, ", train)")
        assert curves(pilot).count("●") == 1, "in the legend only"
        await pilot.press("v")
        await shows(pilot, "train and validation")


async def test_g_smooths_in_two_steps(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await pilot.press("g")
        await shows(pilot, "smoothing 0.7")
        await pilot.press("g")
        await shows(pilot, "smoothing 0.95")
        await pilot.press("g")
        await shows_no_more(pilot, "smoothing")


async def test_brackets_move_a_cursor_that_reads_values_off(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.5, 5.2, 5.0))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        assert legend(pilot, "1 LSTM 1L Adam")[3] == f"{math.exp(5.0):.1f}"
        await pilot.press(*["left_square_bracket"] * 3)
        await eventually(pilot, lambda: re.search(r"at epoch 3\.[89]\d", title(pilot)))
        assert "│" in curves(pilot)
        assert legend(pilot, "1 LSTM 1L Adam")[3] == f"{math.exp(5.2):.1f}", "the last epoch up to there"
        await pilot.press(*["right_square_bracket"] * 5)
        await shows(pilot, "at epoch 4.00")  # it stops at the end
        await pilot.press("escape")
        await shows_no_more(pilot, "at epoch")


async def test_a_click_into_the_curves_puts_the_cursor_there_and_arrows_move_it(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await pilot.click("#curves", offset=(40, 8))
        await shows(pilot, "at epoch")
        at = re.search(r"at epoch (\d\.\d\d)", title(pilot))
        assert at
        assert 1.0 < float(at[1]) < 3.0
        await pilot.press("right")
        await shows_no_more(pilot, at[0])
        further = re.search(r"at epoch (\d\.\d\d)", title(pilot))
        assert further
        assert float(further[1]) > float(at[1])
        await pilot.press("home")
        await shows(pilot, "at epoch 0.00")
        await pilot.press("end")
        await shows(pilot, "at epoch 4.00")


async def test_z_gives_the_whole_screen_to_the_curves_and_takes_it_back(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        before = len(curves(pilot).splitlines())
        await pilot.press("z")
        shown = await shows_no_more(pilot, "Optimizer")
        assert len(curves(pilot).splitlines()) > before + 8
        assert "1 LSTM 1L Adam" in shown
        await pilot.press("z")
        await shows(pilot, "Optimizer")


async def test_on_a_tiny_screen_curves_are_a_key_away(stage: Stage) -> None:
    stage.record(1)
    async with stage.console(size=(40, 12)) as pilot:
        assert "epochs" not in screen(pilot)
        await pilot.press("z")
        await shows(pilot, "over epochs")
        await pilot.press("escape")
        await shows_no_more(pilot, "over epochs")


async def test_p_hides_and_shows_the_published_result_of_paper_runs(stage: Stage) -> None:
    stage.record(1, preset="paper", corpus=PAPER, valid=(6.0, 5.5))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await shows(pilot, "published")
        assert "╌" in curves(pilot)
        await pilot.press("p")
        await shows(pilot, "Published results are hidden.")
        await shows_no_more(pilot, "╌")
        await pilot.press("p")
        await shows(pilot, "Published results are shown.", "╌")


async def test_p_says_where_published_results_would_be_if_there_are_none(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("p", "p")
        await shows(pilot, "Published results are shown where a run used the paper")
        assert "╌" not in curves(pilot)


async def test_a_diverged_run_is_drawn_with_crosses_and_named_in_the_legend(stage: Stage) -> None:
    stage.record(3, "diverged", valid=(6.0, math.nan, math.nan))
    async with stage.console() as pilot:
        await pilot.press("down", "down")
        await shows(pilot, "3 LSTM 1L SGD")
        assert "✗" in curves(pilot)
        assert legend(pilot, "3 LSTM 1L SGD")[3] == "nan/inf"
        assert "diverged" in experiment(pilot, 3)


async def test_seeds_of_one_experiment_are_curves_with_their_seed(stage: Stage) -> None:
    stage.record(1, seed=1, valid=(6.0, 5.0))
    stage.record(1, seed=2, valid=(6.0, 5.1))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam s1", "1 LSTM 1L Adam s2")


@pytest.mark.usefixtures("ascii_locale")
async def test_without_unicode_every_page_is_ascii(stage: Stage) -> None:
    stage.record(1, "running")
    stage.record(2, seed=1)
    stage.record(2, seed=2)
    stage.record(3, "diverged", valid=(6.0, math.nan))
    async with stage.console() as pilot:
        await pilot.press("a", "left_square_bracket")
        await shows(pilot, "at epoch")
        assert screen(pilot).isascii()
        for key, words in (
            ("question_mark", "Keys"),
            ("c", "Comparison"),
            ("enter", "attempt"),
            ("R", "Cancel"),
            ("ctrl+p", "Search"),
            ("s", "Stop 1 run?"),
        ):
            await pilot.press(key)
            shown = await shows(pilot, words)
            assert shown.isascii(), key
            await pilot.press("escape")
            await shows_no_more(pilot, words)


async def test_without_colours_nothing_is_coloured(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stage.record(1, "running")
    stage.record(2, "failed")
    async with stage.console() as pilot:
        await pilot.press("a")
        used = {
            c.lower() for c in re.findall(r"(?:fill|stroke)[:=]\s*\"?#([0-9a-fA-F]{6})", pilot.app.export_screenshot())
        }
    chrome = {"ff5f57", "febc2e", "28c840", "c5c8c6"}  # the picture's own window and its writing
    coloured = {c for c in used - chrome if len({c[0:2], c[2:4], c[4:6]}) > 1}
    assert not coloured


# ---- gauges


async def test_each_gpu_has_a_gauge_with_what_our_runs_hold_of_it(stage: Stage) -> None:
    run = stage.queue(5)
    run.append(
        msgspec.structs.replace(STARTED, device="cuda:0", device_name="Fake 24G", device_uuid="GPU-00000001"),
        progress(1, 4, 6.0),
        telemetry(process_used_mib=6_144.0),
    )
    run.holder = stage.hold(run.paths.lock)
    async with stage.console(gpus=driver(4.0, 12.0)) as pilot:
        await shows(pilot, "GPU 1", seconds=3.0)
        first, second = line_with(pilot, "GPU 0"), line_with(pilot, "GPU 1")
        assert "4.0/24.0 GiB" in first
        assert "runs" not in first
        assert all(words in second for words in ("12.0/24.0 GiB", "runs 6.0 GiB", "87 %", "61 °C", "250 W", "Fake 24G"))
        assert second.count("█") > first.count("█")


async def test_a_gpu_that_does_not_tell_everything_has_dashes(stage: Stage) -> None:
    async with stage.console(gpus=driver(4.0, watts=None)) as pilot:
        await shows(pilot, "GPU 0")
        assert "– W" in line_with(pilot, "GPU 0")


async def test_without_a_gpu_the_machines_memory_is_shown_and_named_so(stage: Stage) -> None:
    stage.record(1, "running")
    async with stage.console(gpus=no_driver) as pilot:
        await shows(pilot, "Host memory")
        gauge = line_with(pilot, "Host memory")
        assert "runs 2.0 GiB" in gauge
        assert "(no NVIDIA driver)" in gauge


async def test_speed_is_shown_live_with_its_share_of_what_was_measured(stage: Stage) -> None:
    """Two runs on one device add up; the arithmetic is that of the plan."""
    first, second = stage.queue(2), stage.queue(3)
    info = read_info(first.paths.info)
    flops = training_flops(info.settings, info.corpus.vocabulary).total
    started = msgspec.structs.replace(STARTED, peak_matmul_gflops=10_000 * flops / 1e9)
    for run in (first, second):
        pace = msgspec.structs.replace(progress(1, 4, 6.0), tokens_per_s=3_000.0)
        run.append(started, pace, telemetry())
        run.holder = stage.hold(run.paths.lock)
    async with stage.console(gpus=no_driver) as pilot:
        await shows(pilot, "of ceiling")
        assert all(words in line_with(pilot, "Host memory") for words in ("6.0k tokens/s", "60 % of ceiling"))
        await pilot.press("down", "enter")
        await shows(pilot, "tokens/s, 30 % of the device's measured ceiling")


# ---- pages


async def test_enter_opens_the_details_of_a_run_with_four_pages(stage: Stage) -> None:
    run = stage.record(5, valid=(6.0, 5.0))
    run.paths.worker_log.write_text("a word of the worker\n")
    async with stage.console() as pilot:
        await pilot.press(*["down"] * 4, "enter")
        await shows(pilot, run.run, "GPT-1 1L Adam", "finished", "148.4 in epoch 2")
        await pilot.press("tab")
        await shows(pilot, "learning_rate", "experiments.toml")
        await pilot.press("right")
        await shows(pilot, "queued", "started", "progress", "valid_ppl 148.4")
        await pilot.press("tab")
        await shows(pilot, "a word of the worker")
        await pilot.press("tab")
        await shows(pilot, "148.4 in epoch 2")
        await pilot.press("left")
        await shows(pilot, "a word of the worker")
        await pilot.press("escape")
        await shows_no_more(pilot, "Worker log")


async def test_details_give_the_energy_of_a_run_on_a_gpu_and_no_dash_without_one(stage: Stage) -> None:
    stage.record(1)
    run = stage.record(2, valid=(6.0, 5.0))
    run.append(msgspec.structs.replace(finished((6.0, 5.0)), energy_j=12_340.0))
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "test ppl")
        assert "driver's counter" not in screen(pilot)
        await pilot.press("escape", "down", "enter")
        await shows(pilot, "12.3 kJ in all epochs (board, driver's counter)")


async def test_details_of_a_failed_run_say_what_happened_and_what_to_do(stage: Stage) -> None:
    run = stage.queue(1)
    run.append(STARTED, Failed(error="out-of-memory", message="the GPU is \x1b[31mfull", hint="Try --precision bf16."))
    async with stage.console() as pilot:
        await pilot.press("enter")
        shown = await shows(pilot, "Try --precision bf16.", "failed")
        assert "the GPU is \\x1b[31mfull" in shown, "what comes from elsewhere cannot steer the terminal"


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
        await shows(pilot, "Staying here.")
        with run.paths.worker_log.open("a") as log:
            log.write("later news\n")
        await pilot.pause(1.3)
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


async def test_details_close_when_their_run_is_deleted(stage: Stage) -> None:
    run: Recorded = stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, run.run)
        run.paths.folder.rename(stage.root / "elsewhere")
        await shows(pilot, "The run has been deleted.")
        assert "Worker log" not in screen(pilot)


async def test_enter_on_an_experiment_without_a_run_says_how_to_train_it(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("enter")
        await shows(pilot, "This experiment has not been trained yet: r runs it.")


async def test_c_compares_what_is_selected_the_best_first(stage: Stage) -> None:
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
        await pilot.press("escape")
        await shows_no_more(pilot, "Comparison")


async def test_c_with_one_run_compares_everything_and_with_none_says_what_it_takes(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    async with stage.console() as pilot:
        await pilot.press("c")
        await shows(pilot, "It takes two runs with a finished epoch to compare.")
        stage.record(6, "running")
        await shows(pilot, "epoch 5/6")
        await pilot.press("c")
        await shows(pilot, "Comparison", "LSTM 1L Adam", "GPT-1 1L AdamW")


async def test_a_comparison_warns_of_what_cannot_be_compared(stage: Stage) -> None:
    stage.record(1)
    other = msgspec.structs.replace(CORPUS, sha256="ab" * 32)
    stage.record(2, corpus=other)
    async with stage.console() as pilot:
        await pilot.press("c")
        await shows(pilot, "These runs have different corpora: their perplexities cannot be compared.")


# ---- finding one's way


def explained(pilot: Pilot[str]) -> list[Binding]:
    """Every key of the screen and of what has the focus that has words about it."""
    active = pilot.app.screen.active_bindings.values()
    return [each.binding for each in active if each.binding.tooltip]


async def test_the_help_page_has_every_key_with_what_it_does(stage: Stage) -> None:
    async with stage.console(size=(120, 60)) as pilot:
        bindings = explained(pilot)
        assert len(bindings) > 25
        await pilot.press("question_mark")
        shown = await shows(pilot, "Keys")
        for binding in bindings:
            words = binding.tooltip.rpartition(": ")[2]
            assert re.search(re.escape(words), shown, re.IGNORECASE), binding
        await pilot.press("q")
        await shows_no_more(pilot, "Keys")


async def test_help_can_be_scrolled_on_a_short_screen(stage: Stage) -> None:
    async with stage.console(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        await shows(pilot, "Keys")
        assert "eave; runs go on" not in screen(pilot)
        await pilot.press(*["j"] * 30)
        await shows(pilot, "eave; runs go on")
        await pilot.press("k", "k", "k")
        await shows_no_more(pilot, "eave; runs go on")


async def test_the_command_palette_lists_every_action(stage: Stage) -> None:
    async with stage.console() as pilot:
        commands = {(c.title, c.help) for c in pilot.app.get_system_commands(pilot.app.screen)}
        told = "\n".join(help_ for _, help_ in commands)
        for binding in explained(pilot):
            assert binding.key == "ctrl+p" or binding.tooltip in told, binding
        assert {"Theme", "Slow line"} <= {title for title, _ in commands}


async def test_a_command_can_be_found_by_name_and_done(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("ctrl+p", *"x axis")
        await shows(pilot, "over epochs, training time or tokens")
        await pilot.press("enter")
        await shows(pilot, "over training time")


async def test_commands_of_the_table_work_from_the_palette(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("down", "ctrl+p", *"select")
        await shows(pilot, "Select: select or unselect this row")
        await pilot.press("enter")
        await shows(pilot, "1 selected")


async def test_escape_undoes_the_nearest_first(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("space", "z", "left_square_bracket", "slash", *"lstm")
        await shows(pilot, "1 selected", "at epoch", "lstm")
        await pilot.press("escape")
        shown = await shows(pilot, "1 selected", "at epoch")
        assert " lstm" not in shown
        await pilot.press("escape")
        shown = await shows_no_more(pilot, "at epoch")
        assert "Optimizer" not in shown, "still on the whole screen"
        await pilot.press("escape")
        await shows(pilot, "1 selected", "Optimizer")
        await pilot.press("escape")
        await shows_no_more(pilot, "selected")
        await pilot.press("escape")
        assert pilot.app.is_running, "and it never leaves"


async def test_tab_goes_from_the_table_to_the_curves_and_back(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await pilot.press("tab", "left")
        await shows(pilot, "at epoch")
        await pilot.press("shift+tab", "space")
        await shows(pilot, "1 selected")


async def test_a_slow_line_can_be_announced_and_revoked(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("ctrl+p", *"slow line", "enter")
        await shows(pilot, "slow line, no runs")
        await pilot.press("ctrl+p", *"usual line", "enter")
        await shows_no_more(pilot, "slow line, no runs")


# ---- themes


async def choose_theme(pilot: Pilot[str], name: str) -> None:
    """By the palette, as a person does."""
    await pilot.press("ctrl+p", *"theme")
    await shows(pilot, "Change the current theme")
    await pilot.press("enter")
    await shows(pilot, "lmconsole-dark")
    await pilot.press(*name)
    await shows_no_more(pilot, "nord")
    await pilot.press("enter")


async def test_a_theme_that_was_chosen_is_there_the_next_time(stage: Stage) -> None:
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-dark"
        await choose_theme(pilot, "lmconsole-light")
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-light"


async def test_a_theme_of_the_command_line_comes_first_and_is_remembered(stage: Stage) -> None:
    async with stage.console(theme="nord") as pilot:
        assert pilot.app.theme == "nord"
    async with stage.console() as pilot:
        assert pilot.app.theme == "nord"


async def test_a_theme_that_cannot_be_remembered_is_used_all_the_same(stage: Stage) -> None:
    (stage.root / "user-config").write_text("a file is in the way")
    async with stage.console() as pilot:
        pilot.app.theme = "lmconsole-light"
        await shows(pilot, "The theme is not remembered")


async def test_a_remembered_theme_that_no_longer_exists_does_not_matter(stage: Stage) -> None:
    file = stage.root / "user-config" / "lmconsole" / "console.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"theme": "of a version that is gone"}')
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-dark"


async def test_imported_runs_are_marked_and_stand_behind_our_own(stage: Stage) -> None:
    theirs = stage.root / "theirs"
    theirs.mkdir()
    (theirs / "args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adamw", "epochs": 3}')
    (theirs / "valid_ppl.txt").write_text("300\n200\n")
    import_runs(stage.store, theirs, load_plan(builtin_file()))
    async with stage.console() as pilot:
        await shows(pilot, "imported, 2/3", "200.0")
        await pilot.press("down", "enter")
        await shows(pilot, "imported from", "slot, padding included")
        await pilot.press("escape", "x")
        await shows(pilot, "over training time", "Waiting for the first measurements")
        await pilot.press("x")
        await shows(pilot, "over tokens", "Waiting for the first measurements")
        stage.record(2, "running")
        await shows(pilot, "1 running", "epoch")
