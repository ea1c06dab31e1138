"""The command on a pty: started, resized, ended by signals and hung up."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from factories import kill_and_wait
from tui.stage import Stage

from lmconsole.runs.state import Status

PATIENCE_S = 30.0
ANSWERS = {b"\x1b[?2026$p": b"\x1b[?2026;2$y", b"\x1b[?2048$p": b"\x1b[?2048;0$y"}
"""Queries of the app at the start, and the answers of most terminals."""
CONTROLS = re.compile(rb"\x1b\[[0-9;:?<=>]*[ -/]*[@-~]|\x1b[@-Z\\-_=>]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
RESTORED = (b"\x1b[?1049l", b"\x1b[?25h")
"""Back to the primary screen, with the cursor."""

pytestmark = pytest.mark.slow


class Window:
    """`lmconsole` on a pty of ``size`` columns and rows."""

    def __init__(self, cwd: Path, *words: str, environment: Mapping[str, str] = {}, size: tuple[int, int] = (120, 40)):
        self.leader, follower = pty.openpty()
        self._size(follower, *size)
        self.before = termios.tcgetattr(follower)
        self.settings = os.dup(follower)
        self.seen = b""
        self._unanswered = dict(ANSWERS)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmconsole", *words],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)

    @staticmethod
    def _size(descriptor: int, columns: int, rows: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> None:
        """Read output, for at most a twentieth of a second."""
        if not select.select([self.leader], [], [], 0.05)[0]:
            return
        with contextlib.suppress(OSError):  # the process has ended
            self.seen += os.read(self.leader, 65_536)
        for question in [each for each in self._unanswered if each in self.seen]:
            os.write(self.leader, self._unanswered.pop(question))

    def text(self, start: int = 0) -> str:
        """Return the output from byte ``start`` on, without control sequences and line ends."""
        return CONTROLS.sub(b" ", self.seen[start:]).decode(errors="replace")

    def shows(self, words: str, start: int = 0) -> None:
        """Wait until ``words`` have been printed."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text(start):
            assert time.monotonic() < deadline, f"no {words!r} in {self.text(start)[-4000:]}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.text(start)[-4000:]}"
            self.read()

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.leader, keys)

    def resize(self, columns: int, rows: int) -> int:
        """Resize, and return the number of bytes printed before."""
        mark = len(self.seen)
        self._size(self.leader, columns, rows)
        return mark

    def ends(self, within_s: float = PATIENCE_S) -> int:
        """Wait until the command has ended, and return its exit code."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "still running"
            self.read() if self.leader >= 0 else time.sleep(0.05)
        if self.leader >= 0:
            self.read()
        return self.process.returncode

    def hang_up(self) -> None:
        """Close the pty, as a closed window does."""
        os.close(self.settings)
        os.close(self.leader)
        self.leader = self.settings = -1

    def close(self) -> None:
        """End the process and close the pty."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.leader, self.settings):
            if descriptor >= 0:
                os.close(descriptor)


@contextlib.contextmanager
def window(stage: Stage, *words: str, size: tuple[int, int] = (120, 40), **environment: str) -> Iterator[Window]:
    """Open the console on the store of ``stage``."""
    opened = Window(stage.root, "--runs", str(stage.store.root), *words, environment=environment, size=size)
    try:
        yield opened
    finally:
        opened.close()


def test_q_restores_the_terminal(stage: Stage) -> None:
    stage.record(1)
    with window(stage) as terminal:
        terminal.shows("finished")
        terminal.press(b"q")
        assert terminal.ends() == 0
        assert all(code in terminal.seen for code in RESTORED)
        assert termios.tcgetattr(terminal.settings) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_restores_the_terminal_and_runs_continue(stage: Stage, number: int) -> None:
    run = stage.record(1, "running")
    with window(stage) as terminal:
        terminal.shows("epoch 5/6")
        os.kill(terminal.process.pid, number)
        assert terminal.ends() == 0
        assert all(code in terminal.seen for code in RESTORED)
        assert termios.tcgetattr(terminal.settings) == terminal.before
        assert "Traceback" not in terminal.text()
    assert run.holder is not None
    assert run.holder.poll() is None


def test_a_hang_up_ends_the_app_without_spinning(stage: Stage) -> None:
    stage.record(1, "running")
    with window(stage) as terminal:
        terminal.shows("epoch 5/6")
        terminal.hang_up()
        process = psutil.Process(terminal.process.pid)
        before_s = process.cpu_times().user
        spent_s = before_s
        while terminal.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                spent_s = process.cpu_times().user
            terminal.ends(10.0)
        assert spent_s - before_s < 3.0


def test_the_screen_is_redrawn_after_a_resize(stage: Stage) -> None:
    stage.record(1)
    with window(stage, COLUMNS="90", LINES="30") as terminal:  # exported by the shell, and outdated
        terminal.shows("finished")
        assert "Trend" in terminal.text()
        mark = terminal.resize(60, 20)
        terminal.shows("GPT-1", mark)
        terminal.shows("finished", mark)
        assert "Trend" not in terminal.text(mark)
        mark = terminal.resize(120, 40)
        terminal.shows("Trend", mark)


def test_a_terminal_without_a_size_neither_floods_nor_stops_the_console(stage: Stage) -> None:
    """A container's exec and a serial console have no size at first, and some never get one."""
    stage.record(1)
    sizes = [(0, 0), (80, 0), (0, 24), (1, 1)]
    with contextlib.ExitStack() as stack:
        terminals = [stack.enter_context(window(stage, size=size)) for size in sizes]

        def read_for(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for terminal in terminals:
                    terminal.read()

        for terminal, size in zip(terminals, sizes, strict=True):
            if 0 in size:
                terminal.shows("GPT-1")  # drawn for 80 × 24, as other programs do
        read_for(2.0)  # to start, if nothing is shown
        users = [psutil.Process(terminal.process.pid) for terminal in terminals]
        before = [(len(terminal.seen), user.cpu_times().user) for terminal, user in zip(terminals, users, strict=True)]
        read_for(2.0)
        for terminal, user, (shown, spent_s) in zip(terminals, users, before, strict=True):
            assert len(terminal.seen) - shown < 4_000, "bytes in two seconds"
            assert user.cpu_times().user - spent_s < 0.5
        for terminal, size in zip(terminals, sizes, strict=True):
            mark = terminal.resize(120, 40)
            terminal.shows("Trend", mark)
            terminal.resize(*size)
            terminal.press(b"q")
            assert terminal.ends(10.0) == 0


def test_inherited_variables_of_textual_change_nothing(stage: Stage) -> None:
    stage.record(1)
    inherited: dict[str, Any] = {
        "TEXTUAL": "debug,devtools",
        "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",
        "TEXTUAL_PRESS": "q",
        "TEXTUAL_SCREENSHOT": "0",
        "TEXTUAL_LOG": "textual.log",
        "TEXTUAL_THEME": "none",
        "TEXTUAL_FILTERS": "x",
        "TEXTUAL_FPS": "x",
        "TEXTUAL_COLOR_SYSTEM": "x",
        "TEXTUAL_ANIMATIONS": "x",
        "ESCDELAY": "x",
        "COLUMNS": "0",
        "LINES": "x",
    }
    before = set(stage.root.iterdir())
    with window(stage, **inherited) as terminal:
        terminal.shows("Trend")
        terminal.shows("finished")
        terminal.press(b"q")
        assert terminal.ends() == 0
        assert "Traceback" not in terminal.text()
    assert {path.name for path in set(stage.root.iterdir()) - before} <= {"user-config", "user-cache"}


def test_runs_continue_after_a_hang_up_and_appear_in_the_next_session(stage: Stage) -> None:
    file = tiny.write_experiments(stage.root / "mine.toml", tiny.row(1), tiny.row(2, "gpt1"))
    words = ("--experiments", str(file), "--data", str(tiny.write_corpus(stage.root / "texts")), "--preset", "tiny")
    with window(stage, *words) as terminal:
        terminal.shows("No runs yet.")
        terminal.press(b"ar")
        terminal.shows("queued.")
        terminal.hang_up()
        terminal.ends(10.0)
    deadline = time.monotonic() + 4 * PATIENCE_S
    while [run.status for run in stage.store.runs()] != [Status.FINISHED] * 2 or stage.store.runner() is not None:
        assert time.monotonic() < deadline, [(run.status, run.state.failed) for run in stage.store.runs()]
        time.sleep(0.2)
    assert list((stage.root / "exports").glob("table-1-results.*"))
    with window(stage, *words) as terminal:
        terminal.shows("2 finished")
        terminal.press(b"q")
        assert terminal.ends() == 0


def test_quitting_prints_that_runs_continue(stage: Stage) -> None:
    run = stage.record(1, "running")
    with window(stage) as terminal:
        terminal.shows("epoch 5/6")
        terminal.press(b"q")
        assert terminal.ends() == 0
        after = terminal.seen.rindex(RESTORED[0])
        assert "1 run continues without the console" in terminal.text(after)
    assert run.holder is not None
    kill_and_wait(run.holder)


def test_a_dumb_terminal_is_an_error_with_a_hint(stage: Stage) -> None:
    with window(stage, TERM="dumb") as terminal:
        assert terminal.ends() == 2
        assert "TERM=dumb" in terminal.text()
        assert "lmconsole run --all --headless" in terminal.text()


def test_without_a_terminal_there_is_an_error_with_a_hint(stage: Stage) -> None:
    command = [sys.executable, "-m", "lmconsole", "--runs", str(stage.store.root)]
    done = subprocess.run(command, cwd=stage.root, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no terminal" in done.stderr
    assert "lmconsole run --all --headless" in done.stderr
