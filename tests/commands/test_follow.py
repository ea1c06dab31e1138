"""Following runs until they end."""

from pathlib import Path

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
