"""Copying in a real tmux with its default settings."""

import base64
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import kill_and_wait, wait_until

from lmconsole.tui.terminal.clipboard import copy_to_tmux

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
COPY = (
    "import sys; from lmconsole.tui.terminal.clipboard import copy_to_tmux; print('copied:', copy_to_tmux(sys.argv[1]))"
)
TABLE = "größer ‡ & 1.5\n| 2 |\n"


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    """Return how to call a tmux of our own, without a configuration."""
    command = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    yield command
    subprocess.run([*command, "kill-server"], capture_output=True, check=False)


@needs_tmux
def test_what_is_copied_in_tmux_can_be_pasted_there_and_reaches_the_terminal(tmux: list[str]) -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    command = [*tmux, "new-session", sys.executable, "-i", "-c", COPY, TABLE]
    client = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, text=True, start_new_session=True
    )
    os.close(follower)
    seen = b""
    try:
        deadline = time.monotonic() + 20.0
        while b"copied: True" not in seen or b"\x1b]52;" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 65_536)
        shown = subprocess.run([*tmux, "show-buffer"], capture_output=True, check=True)
        assert shown.stdout.decode() == TABLE
        assert base64.b64encode(TABLE.encode()) in seen, "tmux sends it to the clipboard of the terminal"
    finally:
        kill_and_wait(client)
        os.close(leader)


def test_outside_tmux_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not copy_to_tmux(TABLE)
    monkeypatch.setenv("TMUX", "/nowhere/socket,1,0")
    assert not copy_to_tmux(TABLE), "no tmux"


def test_an_old_tmux_without_access_to_the_clipboard_gets_a_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tmux"
    program.write_text('#!/bin/sh\n[ "$2" = -w ] && exit 1\n/bin/cat > "$0.buffer"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TMUX", "/tmp/socket,1,0")
    assert copy_to_tmux(TABLE)
    wait_until((tmp_path / "tmux.buffer").exists)
    assert (tmp_path / "tmux.buffer").read_text() == TABLE


@needs_tmux
def test_a_tmux_that_has_ended_is_no_clipboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMUX", f"{tmp_path / 'gone'},1,0")
    assert not copy_to_tmux(TABLE)
