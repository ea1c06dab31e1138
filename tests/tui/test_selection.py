"""Selecting, filtering, sorting and unfolding rows by keys and mouse."""

from collections.abc import Callable

import pytest
from textual.pilot import Pilot
from tui.stage import Stage, experiment, line_with, listed, screen, sees, selected, shows, shows_no_more


def headline(pilot: Pilot[str]) -> str:
    """Return the first line of the screen."""
    return screen(pilot).splitlines()[0]


def first(count: int) -> Callable[[Pilot[str]], list[int]]:
    """Return a function that gives the first ``count`` ids of the table."""
    return lambda pilot: listed(pilot)[:count]


async def test_an_empty_store_lists_the_experiments_and_the_first_keys_to_press(stage: Stage) -> None:
    async with stage.console() as pilot:
        shown = await shows(pilot, "Press a to select all experiments, then r to train them.")
        await sees(pilot, listed, list(range(1, 13)))
        assert experiment(pilot, 9).split() == ["□", "9", "LSTM", "2", "AdamW", "–"]
        await shows(pilot, "no runs")
        assert "Quit" in shown.splitlines()[-1], "the keys are in the footer"


async def test_the_headline_counts_runs_and_names_store_and_preset(stage: Stage) -> None:
    for number, status in enumerate(("finished", "finished", "running", "queued", "failed"), 1):
        stage.record(number, status)
    async with stage.console(preset="paper") as pilot:
        assert headline(pilot).split() == [
            "lmconsole", "~/runs", "preset", "paper", "1", "queued,", "1", "running,", "2", "finished,", "1", "failed",
        ]  # fmt: skip


async def test_space_selects_the_highlighted_row_and_unselects_it_again(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("down", "down", "space")
        await sees(pilot, selected, [3])
        await shows(pilot, "1 selected")
        await pilot.press("down", "space")
        await sees(pilot, selected, [3, 4])
        await pilot.press("up", "space")
        await sees(pilot, selected, [4])
        await pilot.press("down", "space")
        await shows_no_more(pilot, "selected")


async def test_a_selects_all_and_then_none(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("space", "a")
        await sees(pilot, selected, list(range(1, 13)))
        await shows(pilot, "12 selected")
        await pilot.press("a")
        await sees(pilot, selected, [])


async def test_a_selects_and_unselects_nothing_where_no_row_is_shown(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("space", "slash", *"zzz", "enter")
        await sees(pilot, listed, [])
        await pilot.press("a")
        await pilot.press("escape")
        await sees(pilot, selected, [1])


async def test_a_click_selects_or_moves_and_a_double_click_opens(stage: Stage) -> None:
    stage.record(5)
    async with stage.console() as pilot:
        await pilot.click("#experiments", offset=(1, 5))
        await sees(pilot, selected, [5])
        await pilot.click("#experiments", offset=(1, 5))
        await sees(pilot, selected, [])
        await pilot.click("#experiments", offset=(12, 2))
        await pilot.press("space")
        await sees(pilot, selected, [2])  # the highlight has moved there
        await pilot.click("#experiments", offset=(12, 5), times=2)
        await shows(pilot, "GPT-1 1L Adam", "Worker log")


async def test_slash_filters_enter_keeps_and_escape_clears_the_filter(stage: Stage) -> None:
    stage.record(6)
    async with stage.console() as pilot:
        await pilot.press("slash", *"gpt")
        await sees(pilot, listed, [5, 6, 7, 8, 11, 12])
        await pilot.press(*" adamw", "enter")
        await sees(pilot, listed, [6, 11, 12])
        await shows(pilot, "gpt adamw")  # the filter stays visible
        await pilot.press("a")
        await sees(pilot, selected, [6, 11, 12])  # the table has the focus again, and "all" means all that match
        await pilot.press("escape")
        await sees(pilot, listed, list(range(1, 13)))
        await sees(pilot, selected, [6, 11, 12])  # the selection stays
        await shows(pilot, "3 selected")


async def test_letters_typed_into_the_filter_are_not_commands(stage: Stage) -> None:
    stage.record(6)
    async with stage.console() as pilot:
        await pilot.press("slash", *"rsdq?")
        await shows(pilot, "rsdq?", "No row matches the filter. Press escape to clear it.")
        await sees(pilot, listed, [])
        await pilot.press("escape")
        await sees(pilot, listed, list(range(1, 13)))


async def test_enter_closes_an_empty_filter(stage: Stage) -> None:
    async with stage.console() as pilot:
        before = screen(pilot).splitlines()[:14]
        await pilot.press("slash", "x", "backspace", "enter")
        await sees(pilot, lambda pilot: screen(pilot).splitlines()[:14], before)


async def test_o_sorts_by_the_next_column_and_capital_o_reverses(stage: Stage) -> None:
    stage.record(3, valid=(6.0, 5.0))
    stage.record(7, valid=(6.0, 4.0))
    async with stage.console() as pilot:
        await pilot.press("o")
        await shows(pilot, "Sorted by Model.", "Model↑")
        await sees(pilot, first(6), [5, 6, 7, 8, 11, 12])
        await pilot.press("O")
        await shows(pilot, "Sorted by Model, descending.", "Model↓")
        await sees(pilot, first(6), [1, 2, 3, 4, 9, 10])
        await pilot.press("o", "o", "o", "o", "o")
        await shows(pilot, "Sorted by Valid.", "↑Valid")
        await sees(pilot, first(3), [7, 3, 1])
        await pilot.press("O")
        await sees(pilot, first(3), [3, 7, 1])  # unknown values come last in either order


async def test_a_click_on_a_heading_sorts_and_a_second_one_reverses(stage: Stage) -> None:
    stage.record(3, valid=(6.0, 5.0))
    stage.record(7, valid=(6.0, 4.0))
    async with stage.console() as pilot:
        column = line_with(pilot, "Optimizer").index("Valid") + 1
        await pilot.click("#experiments", offset=(column, 0))
        await sees(pilot, first(3), [7, 3, 1])
        await pilot.click("#experiments", offset=(column, 0))
        await sees(pilot, first(3), [3, 7, 1])
        await pilot.click("#experiments", offset=(line_with(pilot, "Optimizer").index("ID"), 0))
        await sees(pilot, listed, list(range(1, 13)))


async def test_the_highlight_stays_on_its_row_when_rows_move(stage: Stage) -> None:
    stage.record(7, valid=(6.0, 4.0))
    async with stage.console() as pilot:
        await pilot.press("down", "down", "o", "space")
        await sees(pilot, selected, [3])
        await pilot.press("slash", *"lstm", "enter", "down", "space")
        await sees(pilot, selected, [3, 4])


async def test_right_unfolds_the_runs_of_an_experiment_and_left_folds_them(stage: Stage) -> None:
    stage.record(2, seed=1, valid=(6.0, 5.0))
    second = stage.record(2, seed=2, valid=(6.0, 4.0))
    async with stage.console() as pilot:
        assert experiment(pilot, 2).startswith("□▸")
        assert "finished, 2 seeds" in experiment(pilot, 2)
        await pilot.press("down", "right")
        shown = (await shows(pilot, "seed 1")).splitlines()
        at = shown.index(line_with(pilot, "finished, 2 seeds"))
        assert [line.split()[:4] for line in shown[at + 1 : at + 3]] == [
            ["└□", "demo", "seed", "2"],
            ["└□", "demo", "seed", "1"],
        ]
        await pilot.press("down", "space")
        await shows(pilot, "└■")
        await pilot.press("enter")
        await shows(pilot, second.run, "Worker log")
        await pilot.press("escape")
        await pilot.press("left")
        folded = await shows_no_more(pilot, "seed 1")
        assert "1 selected" in folded, "the selection stays, visible or not"


async def test_on_a_short_screen_every_row_can_be_reached(stage: Stage) -> None:
    async with stage.console(size=(80, 12)) as pilot:
        assert 12 not in listed(pilot)
        await pilot.press(*["down"] * 11, "space")
        await sees(pilot, selected, [12])
        await pilot.press(*["pageup"] * 2, "space")
        await sees(pilot, selected, [1])


async def test_home_and_end_go_to_the_first_and_the_last_row(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("end", "space")
        await sees(pilot, selected, [12])
        await pilot.press("home", "space")
        await sees(pilot, selected, [1, 12])


@pytest.mark.parametrize(("width", "gone"), [(120, []), (80, ["Trend"]), (60, ["Trend"]), (40, ["Trend", "Time"])])
async def test_narrow_screens_leave_out_columns_but_never_validation(stage: Stage, width: int, gone: list[str]) -> None:
    stage.record(3, valid=(6.0, 5.0))
    async with stage.console(size=(width, 24)) as pilot:
        headings = line_with(pilot, "Status")
        assert all(name not in headings for name in gone)
        assert "Valid" in headings
        assert "148.4" in experiment(pilot, 3)
        assert "finished" in experiment(pilot, 3)
        assert max(len(line) for line in screen(pilot).splitlines()) <= width


async def test_resizing_changes_the_columns(stage: Stage) -> None:
    stage.record(3, valid=(6.0, 5.0))
    async with stage.console(size=(120, 40)) as pilot:
        await pilot.press("down", "down", "space")
        await pilot.resize_terminal(60, 20)
        await sees(pilot, lambda pilot: "Valid" in line_with(pilot, "Status"), True)
        assert "Trend" not in screen(pilot)
        assert max(len(line) for line in screen(pilot).splitlines()) <= 60
        await pilot.press("space")
        await sees(pilot, selected, [])
        await pilot.press("space")
        await sees(pilot, selected, [3])
        await pilot.resize_terminal(120, 40)
        await shows(pilot, "Trend")
        await pilot.press("space")
        await sees(pilot, selected, [])


@pytest.mark.parametrize("size", [(40, 12), (20, 5), (1, 1), (300, 100)])
async def test_no_size_is_too_small_or_too_large(stage: Stage, size: tuple[int, int]) -> None:
    stage.record(1, "running")
    stage.record(2)
    async with stage.console(size=size) as pilot:
        await pilot.press("a", "x", "left_square_bracket", "enter")
        shown = screen(pilot).splitlines()
        assert len(shown) <= size[1]
        assert max(map(len, shown), default=0) <= size[0]
