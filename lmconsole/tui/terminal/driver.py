"""A terminal driver that measures how long writes are blocked, and notices when the terminal is gone."""

import os
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from textual.drivers.linux_driver import LinuxDriver

from lmconsole.tui.terminal.textual_internals import set_output

T = TypeVar("T")


class BackpressureOutput:
    """The terminal's output, with the time for which writes to it were blocked."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._blocked_since: float | None = None
        self._total_s = 0.0
        self.gone = False
        """True once a write has failed: the terminal has hung up."""

    @property
    def current_write_s(self) -> float:
        """Seconds that the write under way has taken so far; 0 if there is none."""
        since = self._blocked_since
        return 0.0 if since is None else time.monotonic() - since

    def pop_blocked_s(self) -> float:
        """Return the seconds spent in writes since the last call, or in the write under way if that is longer."""
        blocked_s, self._total_s = max(self._total_s, self.current_write_s), 0.0
        return blocked_s

    def write(self, text: str) -> int:
        """Write ``text``, unless the terminal is gone."""
        return self._timed(lambda: self._file.write(text)) or 0

    def flush(self) -> None:
        """Flush, unless the terminal is gone."""
        self._timed(self._file.flush)

    def _timed(self, call: Callable[[], T]) -> T | None:
        if self.gone:
            return None
        began = self._blocked_since = time.monotonic()
        try:
            return call()
        except OSError:
            self.gone = True
            return None
        finally:
            self._total_s += time.monotonic() - began
            self._blocked_since = None

    def fileno(self) -> int:
        """Return the terminal's file descriptor."""
        return self._file.fileno()

    def isatty(self) -> bool:
        """Whether the output is a terminal."""
        return self._file.isatty()


class BackpressureDriver(LinuxDriver):
    """Textual's driver for Linux and macOS, writing to a ``BackpressureOutput``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert sys.__stderr__ is not None
        self.output = BackpressureOutput(sys.__stderr__)
        set_output(self, self.output)

    @property
    def hung_up(self) -> bool:
        """Whether the terminal is gone."""
        if self.output.gone:
            return True
        try:
            termios.tcgetattr(self.output.fileno())
            os.ttyname(self.output.fileno())
        except (OSError, termios.error):
            return True
        return False
