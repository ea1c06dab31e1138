"""A terminal driver that knows how long the terminal takes to accept what it is sent, and notices when it is gone."""

import os
import sys
import termios
import time
from typing import Any, TextIO

from textual.drivers.linux_driver import LinuxDriver


class MeasuredOutput:
    """The terminal's output, with the time for which writing to it had to wait."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting_since: float | None = None
        self.waited_s = 0.0
        """Seconds of waiting since somebody last set this to 0."""
        self.gone = False

    @property
    def waiting_s(self) -> float:
        """How long the write under way has been waiting; 0 if there is none."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def write(self, text: str) -> int:
        """Write through, unless the terminal is gone."""
        return self._timed(self._file.write, text) or 0

    def flush(self) -> None:
        """Flush through, unless the terminal is gone."""
        self._timed(self._file.flush)

    def _timed(self, call: Any, *arguments: Any) -> Any:
        if self.gone:
            return None
        began = self._waiting_since = time.monotonic()
        try:
            return call(*arguments)
        except OSError:
            self.gone = True  # hung up: nobody sees what is written from here on
            return None
        finally:
            self.waited_s += time.monotonic() - began
            self._waiting_since = None

    def fileno(self) -> int:
        """The terminal's descriptor."""
        return self._file.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._file.isatty()


class MeasuredDriver(LinuxDriver):
    """Textual's driver for Linux and macOS with a ``MeasuredOutput``."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        assert sys.__stderr__ is not None
        self.output = MeasuredOutput(sys.__stderr__)
        self._file = self.output  # type: ignore[assignment]

    @property
    def hung_up(self) -> bool:
        """Whether there is no terminal any more."""
        if self.output.gone:
            return True
        try:
            termios.tcgetattr(self.output.fileno())
            os.ttyname(self.output.fileno())
        except (OSError, termios.error):
            return True
        return False
