"""A terminal for a program to draw on, without the drawing: a pty whose bytes are counted, searched and kept.

It answers the questions that Textual asks at the start as most terminals of today do. Everything happens in one thread:
who waits for something reads meanwhile, and a line of limited speed reads no faster than that.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

WIDTH, HEIGHT = 120, 40
READ = 65_536
SLICE = 256
"""Bytes read at once from a slow line."""
ANSWERS = {
    b"\x1b[?2026$p": b"\x1b[?2026;2$y",  # synchronised output: known
    b"\x1b[?2048$p": b"\x1b[?2048;0$y",  # resizing in band: not known
}
_ESCAPES = re.compile(rb"\x1b\[[0-9;:?<=>]*[ -/]*[@-~]|\x1b[@-Z\\-_=>]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class Piece(NamedTuple):
    """Bytes that were read at once, and when."""

    at: float
    data: bytes


class Terminal:
    """``command`` on a pty of 120 × 40. ``bytes_per_s``: how fast the line is; None reads whatever there is."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        bytes_per_s: float | None = None,
        size: tuple[int, int] = (WIDTH, HEIGHT),
    ) -> None:
        self.pieces: list[Piece] = []
        self._bytes_per_s = bytes_per_s
        self._credit, self._credited = 0.0, time.monotonic()
        self._unanswered = dict(ANSWERS)
        self._tail = b""
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.began = time.perf_counter()
        self._began_at = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the program as a closed window does, and wait until it is gone."""
        self._bytes_per_s = None
        if self.process.poll() is None:
            self.process.terminate()
        deadline = time.monotonic() + 10.0
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                self.read(0.05)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def received(self) -> int:
        """Bytes read so far."""
        return sum(len(piece.data) for piece in self.pieces)

    def send(self, keys: bytes) -> float:
        """Press keys; the time at which that was."""
        at = time.monotonic()
        os.write(self._master, keys)
        return at

    def read(self, most_s: float) -> bytes:
        """What arrives next, waiting no longer than ``most_s``; empty if nothing does."""
        most, most_s = self._allowance(most_s)
        deadline = time.monotonic() + most_s
        while not most:
            time.sleep(max(min(deadline - time.monotonic(), SLICE / (self._bytes_per_s or 1.0)), 0.0))
            if time.monotonic() >= deadline:
                return b""
            most, _ = self._allowance(0.0)
        rest_s = max(deadline - time.monotonic(), 0.0)
        if not select.select([self._master], [], [], rest_s)[0]:
            return b""
        try:
            data = os.read(self._master, most)
        except OSError:  # the program has ended and closed the other end
            self._check()
            return b""
        self._credit -= len(data)
        self.pieces.append(Piece(time.monotonic(), data))
        self._answer(data)
        return data

    def _allowance(self, most_s: float) -> tuple[int, float]:
        """Bytes that may be read now. A line that was idle does not catch up on what it did not send."""
        if self._bytes_per_s is None:
            return READ, most_s
        now = time.monotonic()
        self._credit = min(self._credit + (now - self._credited) * self._bytes_per_s, 2.0 * SLICE)
        self._credited = now
        return (SLICE if self._credit >= SLICE else 0), most_s

    def _answer(self, data: bytes) -> None:
        if not self._unanswered:
            return
        self._tail = self._tail[-16:] + data
        for question in [q for q in self._unanswered if q in self._tail]:
            os.write(self._master, self._unanswered.pop(question))

    def _check(self) -> None:
        if self.process.poll() is not None:
            said = shown(b"".join(piece.data for piece in self.pieces[-20:])).decode(errors="replace")
            raise RuntimeError(f"the program has ended with exit code {self.process.returncode}:\n{said[-2_000:]}")
        time.sleep(0.01)

    def watch(self, seconds: float) -> list[Piece]:
        """Read for so long; what has arrived."""
        first, deadline = len(self.pieces), time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            self.read(rest)
        return self.pieces[first:]

    def until(self, found: Callable[[bytes], object], most_s: float, *, first: int = 0) -> float:
        """Read until ``found`` is true of all bytes from the piece ``first`` on; seconds since the program's start.
        Raises TimeoutError."""
        deadline = self._began_at + most_s if first == 0 else time.monotonic() + most_s
        seen = b"".join(piece.data for piece in self.pieces[first:])
        while not found(seen):
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise TimeoutError(f"not on the screen after {most_s:g} s:\n{shown(seen[-4_000:]).decode()}")
            seen += self.read(rest)
        return time.perf_counter() - self.began


def _own_the_terminal() -> None:
    """Makes the pty the controlling terminal of the new session, as a terminal's shell has it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def environment(folder: Path) -> dict[str, str]:
    """For programs under test: a modern terminal, and no settings of the person who measures."""
    hidden = {"COLUMNS", "LINES", "LC_ALL", "LC_CTYPE", "NO_COLOR", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith(("TEXTUAL", "LMCONSOLE"))
    }
    return kept | {
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "LANG": "C.UTF-8",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
    }


def shown(data: bytes) -> bytes:
    """``data`` without its escape sequences: each stands for a jump or a colour, so a space takes its place."""
    return re.sub(rb" +", b" ", _ESCAPES.sub(b" ", data))
