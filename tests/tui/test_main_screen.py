"""The main screen as a whole: help, command palette, focus, terminals without Unicode or color."""

import math
import re
import threading
from dataclasses import replace

import msgspec
import pytest
import tiny
from factories import epoch_events, started
from textual.binding import Binding
from textual.events import Resize
from textual.geometry import Size
from textual.pilot import Pilot
from tui.stage import Stage, console_of, screen, sees, shows, shows_no_more

from lmconsole.importing.import_runs import import_runs
from lmconsole.plan.load import builtin_file, load_plan
from lmconsole.tui.app import ConsoleApp
from lmconsole.tui.feed import Feed
from lmconsole.tui.filter import SYNTAX
from lmconsole.tui.screens.main import MainScreen
from lmconsole.tui.snapshot import MachineSample, Snapshot


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


async def test_no_color_draws_in_shades_of_gray(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stage.record(1, "running")
    stage.record(2, "failed")
    async with stage.console() as pilot:
        await pilot.press("a")
        used = {
            c.lower() for c in re.findall(r"(?:fill|stroke)[:=]\s*\"?#([0-9a-fA-F]{6})", pilot.app.export_screenshot())
        }
    window = {"ff5f57", "febc2e", "28c840", "c5c8c6"}  # the window that Textual draws around a screenshot
    colored = {c for c in used - window if len({c[0:2], c[2:4], c[4:6]}) > 1}
    assert not colored


async def test_a_size_that_is_outdated_when_it_is_drawn_is_not_drawn_for_ever(stage: Stage) -> None:
    async with stage.console(size=(120, 40)) as pilot:
        screen, drawn = pilot.app.screen, list[object]()
        screen.screen_layout_refresh_signal.subscribe(pilot.app, drawn.append)
        for size in (Size(90, 30), Size(120, 40)):
            screen.post_message(Resize(size, size))
            screen.call_later(lambda: None)
        await pilot.pause(0.5)
        assert len(drawn) < 5
        await pilot.resize_terminal(90, 30)
        await sees(pilot, lambda _: screen.size, Size(90, 30))


def documented(pilot: Pilot[str]) -> list[Binding]:
    """Return the active bindings that have a tooltip."""
    active = pilot.app.screen.active_bindings.values()
    return [each.binding for each in active if each.binding.tooltip]


async def test_the_help_page_explains_every_key(stage: Stage) -> None:
    async with stage.console(size=(120, 60)) as pilot:
        bindings = documented(pilot)
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
        last = SYNTAX[-1][0]
        assert last not in screen(pilot)
        await pilot.press(*["j"] * 60)
        await shows(pilot, last)
        await pilot.press("k", "k", "k")
        await shows_no_more(pilot, last)


async def test_the_footer_of_a_page_offers_scrolling_where_there_is_more(stage: Stage) -> None:
    async with stage.console(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        await shows(pilot, "Keys", "esc Close", "Scroll")
        await pilot.resize_terminal(120, 100)
        await shows_no_more(pilot, "Scroll")
        await shows(pilot, "esc Close")
        await pilot.resize_terminal(80, 24)
        await shows(pilot, "Scroll")


async def test_the_command_palette_lists_every_action(stage: Stage) -> None:
    async with stage.console() as pilot:
        commands = {(c.title, c.help) for c in pilot.app.get_system_commands(pilot.app.screen)}
        help_texts = "\n".join(help_ for _, help_ in commands)
        for binding in documented(pilot):
            assert binding.key == "ctrl+p" or binding.tooltip in help_texts, binding
        assert {"Theme", "Slow connection"} <= {title for title, _ in commands}


async def test_a_command_can_be_found_by_name_and_run(stage: Stage) -> None:
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


async def test_escape_clears_filter_cursor_zoom_and_selection_in_turn(stage: Stage) -> None:
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
        assert pilot.app.is_running, "escape never quits"


async def test_tab_switches_between_table_and_curves(stage: Stage) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "1 LSTM 1L Adam")
        await pilot.press("tab", "left")
        await shows(pilot, "at epoch")
        await pilot.press("shift+tab", "space")
        await shows(pilot, "1 selected")


async def test_the_palette_switches_to_a_slow_connection_and_back(stage: Stage) -> None:
    async with stage.console() as pilot:
        await pilot.press("ctrl+p", *"slow connection", "enter")
        await shows(pilot, "slow connection, no runs")
        await pilot.press("ctrl+p", *"normal rate", "enter")
        await shows_no_more(pilot, "slow connection, no runs")


async def test_imported_runs_are_marked_and_own_runs_take_precedence(stage: Stage) -> None:
    elsewhere = stage.root / "theirs"
    elsewhere.mkdir()
    (elsewhere / "args.json").write_text('{"model": "lstm", "layers": 1, "optimizer": "adamw", "epochs": 3}')
    (elsewhere / "valid_ppl.txt").write_text("300\n200\n")
    import_runs(stage.store, elsewhere, load_plan(builtin_file()))
    async with stage.console() as pilot:
        await shows(pilot, "imported, 2/3", "200.0")
        await pilot.press("down", "enter")
        await shows(pilot, "imported from", "full batches (padded)")
        await pilot.press("escape", "x")
        await shows(pilot, "over training time", "Waiting for the first measurements")
        await pilot.press("x")
        await shows(pilot, "over tokens", "Waiting for the first measurements")
        stage.record(2, "running")
        await shows(pilot, "1 running", "epoch")


async def test_the_table_is_not_built_again_when_only_the_memory_of_the_machine_has_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.record(1)
    async with stage.console() as pilot:
        await shows(pilot, "finished")
        main = console_of(pilot).main
        built = list[MainScreen]()
        monkeypatch.setattr(MainScreen, "_update_table", lambda self: built.append(self))
        main.snapshot = replace(main.snapshot, machine=MachineSample(gpu_reason="none"))
        assert not built
        main.snapshot = replace(main.snapshot, runs=dict(main.snapshot.runs))
        assert built


async def test_the_table_fits_a_screen_that_changed_its_size_under_another_page(stage: Stage) -> None:
    stage.record(1)
    async with stage.console(size=(70, 24)) as pilot:
        await shows(pilot, "finished")
        narrow = screen(pilot).splitlines()[1]
        await pilot.resize_terminal(160, 24)
        await sees(pilot, lambda pilot: screen(pilot).splitlines()[1] != narrow, True)
        await pilot.press("?")
        await pilot.resize_terminal(70, 24)
        await pilot.press("escape")
        await sees(pilot, lambda pilot: screen(pilot).splitlines()[1], narrow)


async def test_until_the_store_has_been_read_the_console_does_not_say_that_it_is_empty(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.queue(1)
    read, poll = threading.Event(), Feed._poll
    monkeypatch.setattr(Feed, "_poll", lambda feed: poll(feed) if read.is_set() else None)
    app = ConsoleApp(stage.options())
    app.feed.poll_s = 0.1
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(pilot, "reading the store", "Reading the store …")
        assert "o runs" not in screen(pilot)
        read.set()
        await shows(pilot, "1 queued")
        await shows_no_more(pilot, "eading the store")


async def test_a_snapshot_that_comes_while_the_console_is_closing_is_ignored(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[bool, bool]] = []

    def late_snapshot(screen: MainScreen) -> None:
        console.feed.snapshot = Snapshot(number=1_000)
        console.on_console_app_first_snapshot()
        shown.append((console.is_running, screen.snapshot is console.feed.snapshot))

    monkeypatch.setattr(MainScreen, "on_unmount", late_snapshot, raising=False)
    async with stage.console() as pilot:
        console = console_of(pilot)
    assert shown == [(False, False)]


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 20)])
async def test_no_number_of_the_table_is_cut(stage: Stage, size: tuple[int, int]) -> None:
    stage.plan = load_plan(tiny.write_experiments(stage.root / "mine.toml", tiny.row(7), tiny.row(999_999)))
    run = stage.queue(999_999, preset="tiny", epochs=2)
    run.append(started(), *epoch_events(1, math.log(1_234_567.0)), *epoch_events(2, math.log(2_345_678.0)))
    last = msgspec.structs.replace(epoch_events(2, 14.0)[-1], epoch=3, elapsed_train_s=11 * 3600.0 + 605.0)
    run.append(last)
    async with stage.console(size=size) as pilot:
        await shows(pilot, "999999", "1.2e+06")
        shown = await shows(pilot, " 7 ")
        assert "11:10:05" in shown or size[0] < 120, "narrower screens have no column for it with such long ids"
