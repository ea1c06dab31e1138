"""The curves of the selected runs, and the keys that change them."""

import json
import math
import re
from collections import Counter

import pytest
from factories import epoch_events
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot
from tui.stage import Stage, console_of, driver, eventually, experiment, line_with, screen, sees, shows, shows_no_more

from lmconsole.data import wikitext2
from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import load_plan
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.store import Store
from lmconsole.tui.plot.glyphs import UNICODE
from lmconsole.tui.plot.series import Series
from lmconsole.tui.widgets.curves import choose_fairly, shorten

PAPER = CorpusInfo(
    name="WikiText-2", kind="tokens", path="/data", vocabulary=40_479, tokenizer="GPT-1 BPE",
    tokens={"train": 2_356_374, "validation": 245_044, "test": 279_021}, sha256=wikitext2.SHA256, max_tokens=None,
)  # fmt: skip


def title(pilot: Pilot[str]) -> str:
    """Return the heading of the curves."""
    return line_with(pilot, " over ").strip()


def legend(pilot: Pilot[str], label: str) -> list[str]:
    """Return marker, label and values of a run in the legend."""
    found = re.search(rf"(\S) ({re.escape(label)}) +(\S+) +(\S+)", screen(pilot))
    assert found, f"no {label!r} in\n{screen(pilot)}"
    return list(found.groups())


def curves(pilot: Pilot[str]) -> str:
    """Return the lines of the plot."""
    lines = screen(pilot).splitlines()
    first = next(i for i, line in enumerate(lines) if " over " in line)
    return "\n".join(lines[first + 1 : -2])


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
        await shows(pilot, "Not trained yet. Press r to train it.")


async def test_imported_runs_have_the_train_values_that_their_source_has(stage: Stage) -> None:
    source = stage.root / "source"
    for number, with_train in ((1, True), (5, False)):
        folder = source / str(number)
        folder.mkdir(parents=True)
        model = "lstm" if number == 1 else "gpt1"
        (folder / "args.json").write_text(json.dumps({"model": model, "layers": 1, "optimizer": "adam"}))
        (folder / "valid_ppl.txt").write_text("300\n200\n")
        if with_train:
            (folder / "train_ppl.txt").write_text("310\n190\n")
    import_runs(stage.store, source, load_plan(None))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam", "190.0   200.0")
        await pilot.press(*["down"] * 4)
        await shows(pilot, "5 GPT-1 1L Adam")
        assert re.search(r"5 GPT-1 1L Adam {2,}200\.0", screen(pilot)), screen(pilot)


async def test_holding_a_key_ends_with_the_curves_of_the_last_row(stage: Stage) -> None:
    for number in range(1, 13):
        stage.record(number, valid=[7.0 - i / 10 - number / 10 for i in range(20)])
    async with stage.console(gpus=driver(1.0)) as pilot:
        await pilot.press("a", "a", *["down"] * 11)
        await shows(pilot, "12 GPT-1 4L AdamW", seconds=3.0)


async def test_selected_runs_are_drawn_together_with_a_marker_each_and_a_legend(stage: Stage) -> None:
    for number in range(1, 13):
        stage.record(number, valid=(7.0 - number / 10, 6.5 - number / 10))
    async with stage.console() as pilot:
        await pilot.press("a")
        await shows(pilot, "12 GPT-1 4L AdamW")
        labels = ("10 LSTM 4L AdamW", "11 GPT-1 2L AdamW", "12 GPT-1 4L AdamW")
        assert [legend(pilot, label)[0] for label in labels] == list(UNICODE.markers[9:])
        assert all(marker in curves(pilot) for marker in UNICODE.markers)


async def test_the_legend_of_a_narrow_screen_shows_seeds(stage: Stage) -> None:
    for seed in (1, 12345):
        stage.record(8, seed=seed)
    async with stage.console(size=(80, 24)) as pilot:
        await pilot.press(*["down"] * 7, "right", "down", "space", "down", "space")
        await shows(pilot, "8 GPT-1 1L Momentum s12345", "8 GPT-1 1L Momentum s1 ")
        await pilot.resize_terminal(60, 24)
        await shows(pilot, "8 GPT-1 1L… s12345", "8 GPT-1 1L Mom… s1 ")


def test_labels_that_are_too_long_keep_their_last_word() -> None:
    assert shorten("1 LSTM 1L Adam s42", 18) == "1 LSTM 1L Adam s42"
    assert shorten("1 LSTM 1L Adam s42", 17) == "1 LSTM 1L Ad… s42"
    assert shorten("1 LSTM 1L Adam s42", 4) == "1 L…"
    assert shorten(f"1 {'x' * 99}", 9) == "1 xxxxxx…"
    assert all(len(shorten(f"{'a' * n} b s{'4' * n}", room)) <= room for n in range(1, 9) for room in range(1, 12))


async def test_a_live_run_grows_on_the_screen(stage: Stage) -> None:
    run = stage.record(1, "running", valid=(6.0,))
    async with stage.console() as pilot:
        await shows(pilot, "epoch 2/3 step 4/8")
        run.append(*epoch_events(2, 5.0))
        best = f"{math.exp(5.0):.1f}"
        await shows(pilot, "epoch 3/3")
        assert best in experiment(pilot, 1)
        await eventually(pilot, lambda: legend(pilot, "1 LSTM 1L Adam")[3] == best)


async def test_x_cycles_through_epochs_time_and_tokens(stage: Stage) -> None:
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


async def test_y_switches_between_logarithmic_and_linear(stage: Stage) -> None:
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


async def test_v_cycles_through_both_validation_and_train(stage: Stage) -> None:
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
        await pilot.press("v")
        await shows(pilot, ", validation)")
        await shows_no_more(pilot, "smoothing")
        await pilot.press("v")
        await shows(pilot, ", train, smoothing 0.95)")
        await pilot.press("g")
        await shows_no_more(pilot, "smoothing")


async def test_brackets_move_a_cursor_that_reads_off_values(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.5, 5.2, 5.0))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        assert legend(pilot, "1 LSTM 1L Adam")[3] == f"{math.exp(5.0):.1f}"
        await pilot.press(*["left_square_bracket"] * 3)
        await eventually(pilot, lambda: re.search(r"at epoch 3\.[89]\d", title(pilot)))
        assert "│" in curves(pilot)
        assert legend(pilot, "1 LSTM 1L Adam")[3] == f"{math.exp(5.2):.1f}", "the last epoch before the cursor"
        await pilot.press(*["right_square_bracket"] * 5)
        await shows(pilot, "at epoch 4.00")  # it stops at the end
        await pilot.press("escape")
        await shows_no_more(pilot, "at epoch")


async def test_a_click_on_the_curves_sets_the_cursor_and_arrows_move_it(stage: Stage) -> None:
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


async def test_z_zooms_the_curves_to_the_whole_screen_and_back(stage: Stage) -> None:
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


async def test_on_a_tiny_screen_z_shows_the_curves(stage: Stage) -> None:
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


async def test_p_explains_which_runs_have_published_results(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await pilot.press("p", "p")
        await shows(pilot, "Published results are shown for runs of the paper")
        assert "╌" not in curves(pilot)


async def test_a_diverged_run_is_drawn_with_crosses_and_marked_in_the_legend(stage: Stage) -> None:
    stage.record(3, "diverged", valid=(6.0, math.nan, math.nan))
    async with stage.console() as pilot:
        await pilot.press("down", "down")
        await shows(pilot, "3 LSTM 1L SGD")
        assert "✗" in curves(pilot)
        assert legend(pilot, "3 LSTM 1L SGD")[3] == "nan/inf"
        assert "diverged" in experiment(pilot, 3)


async def test_labels_name_the_seed_where_an_experiment_has_several_runs(stage: Stage) -> None:
    stage.record(1, seed=1, valid=(6.0, 5.0))
    stage.record(1, seed=2, valid=(6.0, 5.1))
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam s1", "1 LSTM 1L Adam s2")


@given(st.lists(st.integers(1, 12), max_size=80), st.integers(1, 30))
def test_curves_that_do_not_all_fit_are_chosen_evenly_from_all_experiments(experiments: list[int], most: int) -> None:
    given_series = [
        Series(
            run=f"run-{place}", experiment=number, label="", slot=place, train=(), validations=(), planned_epochs=1,
            tokens_per_epoch=None, expected_s=None,
        )
        for place, number in enumerate(experiments)
    ]  # fmt: skip
    chosen = choose_fairly(given_series, most)
    assert len(chosen) == min(len(experiments), most)
    places = [int(each.run.removeprefix("run-")) for each in chosen]
    assert places == sorted(places)
    assert [each.slot for each in chosen] == list(range(len(chosen)))
    drawn, wanted = Counter(each.experiment for each in chosen), Counter(experiments)
    least_limited = min((drawn[number] for number in wanted if drawn[number] < wanted[number]), default=most)
    assert all(count <= least_limited + 1 for count in drawn.values())


async def test_runs_that_are_not_drawn_are_counted(stage: Stage) -> None:
    for number in (1, 2):
        for seed in range(15):
            stage.record(number, valid=(6.0, 5.0), seed=seed)
    async with stage.console() as pilot:
        await pilot.press("a")
        await shows(pilot, "6 more runs not drawn")


async def test_runs_from_the_cache_get_their_train_curve_when_they_are_drawn(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(stage.root / "cache"))
    for module in ("lmconsole.tui.feed", "lmconsole.runs.store"):
        monkeypatch.setattr(f"{module}.FEWEST_RUNS", 1)
    stage.record(1)
    shown = stage.record(2)
    Store(stage.store.root, cached=True).runs()
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam", "·")
        await pilot.press("down")
        await shows(pilot, "2 LSTM 1L AdamW", "·")
        assert console_of(pilot).feed.snapshot.runs[shown.run].has_whole_curve
