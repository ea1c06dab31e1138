"""The whole screen, compared with screenshots that were checked by eye.

`LMCONSOLE_SNAPSHOTS=write pytest tests/tui/test_snapshots.py` writes new ones. Check them before they are committed.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from tui.conftest import set_locale
from tui.stage import Stage, console_of, driver, lines_of, shows

FOLDER = Path(__file__).parent / "snapshots"
SIZES = ((120, 40), (80, 24), (40, 12))
LOOKS = ("dark", "light", "ascii", "no-colour")


def record_everything(stage: Stage) -> None:
    """Record a run of every status."""
    stage.no_runner()
    stage.record(1)
    stage.record(2, valid=(6.0, 5.7, 5.6, 5.55))
    stage.record(3, "diverged", valid=(6.4, 6.2, float("nan")))
    stage.record(4, "stopped", valid=(6.3, 6.1))
    stage.record(5, "running", valid=(5.9, 5.3), epochs=6)
    stage.record(6, "failed", valid=(6.0,))
    stage.record(7, "lost", valid=(6.5, 6.3))
    stage.record(8, "queued")
    for seed in (1, 2, 3):
        stage.record(9, seed=seed, valid=(6.1, 5.6, 5.4, 5.2 + seed / 100))


@pytest.fixture
def one_machine_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample the machine only once."""
    monkeypatch.setattr("lmconsole.tui.feed.IDLE_POLL_S", 1e9)


@pytest.mark.usefixtures("one_machine_sample")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_screen_matches_its_screenshot(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], look: str
) -> None:
    record_everything(stage)
    if look == "ascii":
        set_locale(monkeypatch, "C")
    if look == "no-colour":
        monkeypatch.setenv("NO_COLOR", "1")
    more: dict[str, Any] = {"theme": "lmconsole-light"} if look == "light" else {}
    async with stage.console(size=size, gpus=driver(6.0), **more) as pilot:
        await shows(pilot, "1 queued" if size[0] > 40 else "diverged")
        await pilot.press("space", "down", "space", "down", "down", "down", "space")
        if size[0] > 40:
            await shows(pilot, "3 selected")
        console_of(pilot).main.restyle()
        await pilot.pause()
        svg = pilot.app.export_screenshot(title="lmconsole", simplify=True)
    if look == "ascii":
        assert "".join(lines_of(svg)).isascii()
    file = FOLDER / f"{size[0]}x{size[1]}-{look}.svg"
    if os.environ.get("LMCONSOLE_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(svg, encoding="utf-8")
    if svg != file.read_text(encoding="utf-8"):
        seen = stage.root / file.name
        seen.write_text(svg, encoding="utf-8")
        assert lines_of(svg) == lines_of(file.read_text(encoding="utf-8")), f"{seen} and {file} differ"
        pytest.fail(f"{seen} and {file} differ only in colors")
