"""Following runs until they end."""

import time
from pathlib import Path

import pytest
import tiny

from lmconsole.commands.display import PlainDisplay
from lmconsole.commands.follow import Follower
from lmconsole.commands.interrupts import Interrupts
from lmconsole.runs.store import Store


class Messages(PlainDisplay):
    """Keeps the messages instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


def test_an_unreadable_log_of_the_runner_is_no_error(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path)
    store, display = Store(tmp_path / "runs"), Messages()
    run.request_stop()
    follower = Follower(store, [run.run], display, Interrupts())
    follower.runs.clear()
    store.runner_log.mkdir()
    run.paths.folder.rename(tmp_path / "gone")  # no run is active
    follower.wait_for_exports(tmp_path / "exports")
    assert display.messages[-1] == f"exports: none were written; see {store.runner_log}"


@pytest.mark.parametrize(("read_s", "pause_s"), [(0.0, 0.2), (0.02, 0.4), (0.2, 1.0)])
def test_runs_that_take_long_to_read_are_read_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_s: float, pause_s: float
) -> None:
    run = tiny.queue_tiny(tmp_path)
    store, now_s, pauses = Store(tmp_path / "runs"), [0.0], list[float]()
    follower = Follower(store, [run.run], Messages(), Interrupts())

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        follower.runs.clear()

    class Slow(Messages):
        def refresh(self, _: object) -> None:
            now_s[0] += read_s

    follower._display = Slow()
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", pause)
    follower.follow()
    assert pauses == [pytest.approx(pause_s)]
