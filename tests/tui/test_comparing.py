"""Comparing runs in the console: a baseline, settings that differ, seeds as one curve; and notes on runs."""

import msgspec
from textual.events import Paste
from textual.pilot import Pilot
from tui.stage import CORPUS, Stage, console_of, experiment, line_with, screen, sees, shows, shows_no_more

from lmconsole.runs.notes import change_notes, read_notes
from lmconsole.tui.widgets.field import Field


def change_of(pilot: Pilot[str], number: int) -> str:
    """Return the difference to the baseline in the row of an experiment."""
    row = console_of(pilot).main.table.rows_shown[number - 1]
    return row.cells[8]


async def test_a_baseline_adds_a_column_of_differences_and_its_curve(stage: Stage) -> None:
    stage.record(1, valid=(6.0, 5.0))
    stage.record(2, valid=(6.0, 4.9))
    stage.record(3, valid=(6.0, 5.9))
    stage.record(4, corpus=msgspec.structs.replace(CORPUS, sha256="ab" * 32))
    for seed in (1, 2):
        stage.record(5, seed=seed, valid=(6.0, 4.0 + seed))
    async with stage.console() as pilot:
        assert "vs 1" not in screen(pilot)
        await pilot.press("b")
        await shows(pilot, "vs 1", "Baseline: 1 LSTM 1L Adam.")
        assert experiment(pilot, 1).split()[8] == "baseline"
        assert [change_of(pilot, number) for number in (2, 3, 4, 5, 6)] == ["-9.5 %", "×2.5", "–", "+85.9 %", ""]
        await pilot.press("down")
        await shows(pilot, "1 LSTM 1L Adam", "2 LSTM 1L AdamW")  # both curves
        await pilot.press("enter")
        await shows(pilot, "vs baseline", "-9.5 % in best valid ppl (baseline 1: 148.4)")
        await pilot.press("tab")
        await shows(pilot, "baseline: adam ")
        assert "baseline: " not in line_with(pilot, "learning_rate")
        await pilot.press("escape", "down", "down", "enter")
        await shows(pilot, "cannot be compared")
        await pilot.press("escape", "up", "up", "up", "b")
        await shows_no_more(pilot, "vs 1")
        await pilot.press("down", "down", "down", "down", "right", "down", "b")
        await shows(pilot, "vs 5 s2")
        await sees(pilot, lambda _: change_of(pilot, 2), "-66.7 %")
        await pilot.resize_terminal(80, 24)
        await shows(pilot, "vs 5 s2")
        await pilot.press("down", "down", "down", "down", "b")
        await shows(pilot, "A baseline needs a run.")


async def test_settings_that_differ_are_listed(stage: Stage) -> None:
    stage.record(5, valid=(6.0, 5.0))
    stage.record(6, valid=(6.0, 4.9), learning_rate=5e-3)
    async with stage.console() as pilot:
        await pilot.press("D")
        await shows(pilot, "Select two runs with space, or pin a baseline with b.")
        await pilot.press(*["down"] * 4, "space", "down", "space", "D")
        await shows(pilot, "Differences", "5 GPT-1 1L Adam s42", "6 GPT-1 1L AdamW s42", "settings are equal")
        assert line_with(pilot, "learning_rate").split("│")[1].split() == ["learning_rate", "0.001", "0.005"]
        assert line_with(pilot, "best valid ppl").split("│")[1].split()[-2:] == ["148.4", "134.3"]
        assert "batch_size" not in screen(pilot)
        await pilot.press("escape", "a", "a", "up", "b", "down", "D")
        await shows(pilot, "Differences", "0.005")


async def test_seeds_are_drawn_as_one_curve_with_its_range(stage: Stage) -> None:
    for seed in (1, 2, 3):
        stage.record(1, seed=seed, valid=(6.0, 5.0 - seed / 2, 4.0 - seed / 2))
    stage.record(1, "running", seed=4, valid=(6.0,), epochs=3)
    stage.record(2)
    async with stage.console() as pilot:
        await pilot.press("space", "down", "space")
        await shows(pilot, "1 LSTM 1L Adam s1", "1 LSTM 1L Adam s4", "2 LSTM")
        await pilot.press("w")
        shown = await shows(pilot, "1 LSTM 1L Adam ×3", "2 LSTM 1L AdamW", "░░░ min to max of seeds")
        assert shown.count("░") > 20
        assert "s1" not in shown
        await shows(pilot, "Seeds: mean, with the range from lowest to highest.")
        await pilot.press("w")
        await shows(pilot, "1 LSTM 1L Adam s1")


async def test_notes_are_written_in_a_form_shown_and_kept(stage: Stage) -> None:
    one = stage.record(1)
    two, three = stage.record(2, seed=1), stage.record(2, seed=2)
    change_notes(three.paths, note="its own", add=["old", "both"])
    change_notes(two.paths, add=["both"])
    async with stage.console() as pilot:
        await pilot.press("n")
        await shows(pilot, "Note and tags of 01-lstm", "Save (ctrl+s)")
        await pilot.press(*"odd", "tab", *"#good, x/y", "enter")
        await shows(pilot, "'x/y' cannot be a tag")
        await pilot.press(*["backspace"] * 3, "ctrl+s")
        await shows(pilot, "#good odd", "Notes of 1 run saved.")
        assert (read_notes(one.paths).note, read_notes(one.paths).tags) == ("odd", ("good",))
        await pilot.press("down", "n")
        await shows(pilot, "Note and tags of 2 runs", "the notes differ")
        await pilot.press("tab", *["backspace"] * 4, *"new", "ctrl+s")
        await sees(pilot, lambda _: [read_notes(run.paths).tags for run in (two, three)], [("new",), ("old", "new")])
        assert read_notes(three.paths).note == "its own", "not touched"
        await shows(pilot, "#new #old its own")
        await pilot.press("down", "n")
        await shows(pilot, "There is no run to write a note on.")
        await pilot.resize_terminal(80, 24)
        await shows(pilot, "✎1")
        assert "#good" not in screen(pilot)
        one.paths.notes.write_text("{")
        await pilot.resize_terminal(120, 40)
        await shows(pilot, "notes unreadable")
        await pilot.press("up", "up", "n")
        await shows(pilot, "not notes of a run", "Remove it")


async def test_a_field_sends_no_control_characters_to_the_terminal(stage: Stage) -> None:
    run = stage.record(1)
    change_notes(run.paths, note="a\x1b]0;title\x07 b")
    async with stage.console() as pilot:
        await pilot.press("n")
        await shows(pilot, r"a\x1b]0;title\x07 b")
        await pilot.press("ctrl+s")  # without a change
        await shows_no_more(pilot, "Save (ctrl+s)")
        assert read_notes(run.paths).note == "a\x1b]0;title\x07 b"
        await pilot.press("n")
        await shows(pilot, "Save (ctrl+s)")
        field = pilot.app.screen.query_one("#note", Field)
        for text, expected in [("x\x1b[31m\n\ty", r"x\x1b[31m y"), ("z" * 3_000, "z" * 2_000)]:
            field.value = ""
            field.post_message(Paste(text))
            await sees(pilot, lambda _: field.value, expected)
