from tui.stage import Stage, screen, shows


async def test_an_empty_store_says_what_to_press_first(stage: Stage) -> None:
    async with stage.console() as pilot:
        shown = await shows(pilot, "Press a to select all experiments, then r to train them.")
        print(shown)
        assert "no runs" in shown


async def test_all(stage: Stage) -> None:
    for n, s in enumerate(["finished", "finished", "running", "queued", "stopped", "failed", "lost", "finished"], 1):
        stage.record(n, s)
    async with stage.console() as pilot:
        await pilot.press("a")
        print(screen(pilot))
