"""Choosing a theme, and finding it again in the next session."""

from textual.pilot import Pilot
from tui.stage import Stage, shows, shows_no_more


async def choose_theme(pilot: Pilot[str], name: str) -> None:
    """Choose a theme in the command palette."""
    await pilot.press("ctrl+p", *"theme")
    await shows(pilot, "Change the current theme")
    await pilot.press("enter")
    await shows(pilot, "lmconsole-dark")
    await pilot.press(*name)
    await shows_no_more(pilot, "nord")
    await pilot.press("enter")


async def test_a_chosen_theme_is_used_in_the_next_session(stage: Stage) -> None:
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-dark"
        await choose_theme(pilot, "lmconsole-light")
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-light"


async def test_a_theme_of_the_command_line_takes_precedence_and_is_saved(stage: Stage) -> None:
    async with stage.console(theme="nord") as pilot:
        assert pilot.app.theme == "nord"
    async with stage.console() as pilot:
        assert pilot.app.theme == "nord"


async def test_a_theme_that_cannot_be_saved_is_used_in_this_session(stage: Stage) -> None:
    (stage.root / "user-config").write_text("a file is in the way")
    async with stage.console() as pilot:
        pilot.app.theme = "lmconsole-light"
        await shows(pilot, "The theme was not saved")


async def test_a_saved_theme_that_no_longer_exists_is_ignored(stage: Stage) -> None:
    file = stage.root / "user-config" / "lmconsole" / "console.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"theme": "of a version that is gone"}')
    async with stage.console() as pilot:
        assert pilot.app.theme == "lmconsole-dark"
