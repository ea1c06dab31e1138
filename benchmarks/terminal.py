"""A terminal that draws nothing: a pty whose output is recorded, counted and searched.

It answers Textual's queries at startup as most modern terminals do. There is only one thread: methods that wait for
something read the output meanwhile, at most as fast as a slow connection would carry it.
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
"""Bytes per read on a slow connection."""
ANSWERS = {
    b"\x1b[?2026$p": b"\x1b[?2026;2$y",  # synchronized output: supported
    b"\x1b[?2048$p": b"\x1b[?2048;0$y",  # in-band resize notifications: not supported
}
_ESCAPES = re.compile(rb"\x1b\[[0-9;:?<=>]*[ -/]*[@-~]|\x1b[@-Z\\-_=>]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class Chunk(NamedTuple):
    """Bytes of one read and the ``time.monotonic()`` of the read."""

    at_s: float
    data: bytes


class Terminal:
    """A program on a pty. ``bytes_per_s`` is the speed of the connection; None is unlimited."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        bytes_per_s: float | None = None,
        size: tuple[int, int] = (WIDTH, HEIGHT),
    ) -> None:
        self.chunks: list[Chunk] = []
        self._bytes_per_s = bytes_per_s
        self._allowance, self._allowance_at_s = 0.0, time.monotonic()
        """Bytes that the connection may carry, and the time at which they were computed."""
        self._unanswered = dict(ANSWERS)
        self._tail = b""
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self._started_s = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_set_controlling_terminal,
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Terminate the program and wait for its end; kill it after ten seconds."""
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
        """Number of bytes read so far."""
        return sum(len(chunk.data) for chunk in self.chunks)

    def send(self, keys: bytes) -> float:
        """Press keys and return the ``time.monotonic()`` at which they were pressed."""
        at_s = time.monotonic()
        os.write(self._master, keys)
        return at_s

    def read(self, timeout_s: float) -> bytes:
        """Return the next bytes, or none if nothing arrives within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not (size := self._readable()):
            time.sleep(max(min(deadline - time.monotonic(), SLICE / (self._bytes_per_s or 1.0)), 0.0))
            if time.monotonic() >= deadline:
                return b""
        rest_s = max(deadline - time.monotonic(), 0.0)
        if not select.select([self._master], [], [], rest_s)[0]:
            return b""
        try:
            data = os.read(self._master, size)
        except OSError:  # the program has ended and its end of the pty is closed
            self._raise_if_ended()
            return b""
        self._allowance -= len(data)
        self.chunks.append(Chunk(time.monotonic(), data))
        self._answer(data)
        return data

    def _readable(self) -> int:
        """Return the number of bytes that may be read now. Capacity of an idle connection is lost."""
        if self._bytes_per_s is None:
            return READ
        now_s = time.monotonic()
        self._allowance = min(self._allowance + (now_s - self._allowance_at_s) * self._bytes_per_s, 2.0 * SLICE)
        self._allowance_at_s = now_s
        return SLICE if self._allowance >= SLICE else 0

    def _answer(self, data: bytes) -> None:
        if not self._unanswered:
            return
        self._tail = self._tail[-16:] + data
        for query in [query for query in self._unanswered if query in self._tail]:
            os.write(self._master, self._unanswered.pop(query))

    def _raise_if_ended(self) -> None:
        if self.process.poll() is not None:
            output = visible(b"".join(chunk.data for chunk in self.chunks[-20:])).decode(errors="replace")
            raise RuntimeError(f"the program ended with exit code {self.process.returncode}:\n{output[-2_000:]}")
        time.sleep(0.01)

    def watch(self, seconds: float) -> list[Chunk]:
        """Read for ``seconds`` and return the chunks."""
        first, deadline = len(self.chunks), time.monotonic() + seconds
        while (rest_s := deadline - time.monotonic()) > 0:
            self.read(rest_s)
        return self.chunks[first:]

    def until(self, found: Callable[[bytes], object], timeout_s: float, *, first: int = 0) -> float:
        """Read until ``found`` is true of all bytes from chunk ``first`` on, and return the seconds since the start of
        the program.

        Raises TimeoutError if that takes more than ``timeout_s`` from now or, if ``first`` is 0, from the start.
        """
        deadline = timeout_s + (self._started_s if first == 0 else time.monotonic())
        output = b"".join(chunk.data for chunk in self.chunks[first:])
        while not found(output):
            rest_s = deadline - time.monotonic()
            if rest_s <= 0:
                raise TimeoutError(f"not on the screen after {timeout_s:g} s:\n{visible(output[-4_000:]).decode()}")
            output += self.read(rest_s)
        return time.monotonic() - self._started_s


def _set_controlling_terminal() -> None:
    """Make the pty the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a program under test: a modern terminal, with default settings and empty folders."""
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


def visible(data: bytes) -> bytes:
    """Return ``data`` with a space for each escape sequence, since a sequence may move the cursor."""
    return re.sub(rb" +", b" ", _ESCAPES.sub(b" ", data))
